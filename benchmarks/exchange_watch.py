"""Watches a training step from outside: how long it takes, and for how long the exchange holds it up.

Held up is the step's own thread: in each wait for a collective operation, and from the last gradient's computation to
the end of the backward pass, where DistributedDataParallel waits in compiled code. What is exchanged meanwhile behind
computation does not count.
"""

import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from cluster.worker.learner import Learner


class Watch:
    """Watches the steps made while its block runs.

    Attributes:
        step_seconds: Time of the block.
        update_seconds: Of it, the weights' update.
        blocked_seconds: Of it, waiting for the exchange.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self.step_seconds = self.update_seconds = self.blocked_seconds = 0.0

    def __enter__(self) -> "Watch":
        """Begin."""
        self._last_gradient = time.perf_counter()
        self._hooks = [p.register_post_accumulate_grad_hook(self._note_gradient) for p in self._parameters()]
        self._wait, self._backward, self._update = dist.Work.wait, Tensor.backward, self._learner.optimizer.step
        dist.Work.wait = self._timed(self._wait, "blocked_seconds")
        Tensor.backward = self._with_its_end(self._backward)
        self._learner.optimizer.step = self._timed(self._update, "update_seconds")
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        """End, and leave everything as it was."""
        self.step_seconds = time.perf_counter() - self._began
        dist.Work.wait, Tensor.backward = self._wait, self._backward
        del self._learner.optimizer.step  # the class's own shows again
        for hook in self._hooks:
            hook.remove()

    def _parameters(self) -> list[Any]:
        return [parameter for parameter in self._learner.model.parameters() if parameter.requires_grad]

    def _note_gradient(self, parameter: Tensor) -> None:
        self._last_gradient = time.perf_counter()

    def _with_its_end(self, backward: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            backward(*arguments, **options)
            self.blocked_seconds += time.perf_counter() - self._last_gradient

        return call

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                setattr(self, name, getattr(self, name) + time.perf_counter() - began)

        return call
