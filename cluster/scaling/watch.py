"""Watches a training step from outside: how long each of its parts takes, and for how long the exchange holds it up.

Held up is the step's own thread: in each wait for a collective operation, and from the last gradient's computation to
the end of the backward pass, where DistributedDataParallel waits in compiled code. What is exchanged meanwhile behind
computation does not count. On a GPU nothing of that can be seen from the thread: what is held up is the GPU.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

from cluster.worker.learner import Learner


class Watch:
    """Watches the steps made while its block runs.

    Args:
        learner: Makes the steps.
        wait_for_device: Waits until the device has done the work given to it; on a CPU there is nothing to wait for.

    Attributes:
        step_seconds: Time of the block.
        data_wait_seconds: Of it, waiting for batches.
        forward_seconds: Of it, the forward passes and the loss, with the exchanges they wait for.
        backward_seconds: Of it, the backward passes and what follows until the update, with the exchanges.
        update_seconds: Of it, the weights' update.
        blocked_seconds: Of it, waiting for the exchange.
    """

    def __init__(self, learner: Learner, wait_for_device: Callable[[], object] = lambda: None) -> None:
        self._learner, self._wait_for_device = learner, wait_for_device
        self.step_seconds = self.data_wait_seconds = self.forward_seconds = self.backward_seconds = 0.0
        self.update_seconds = self.blocked_seconds = 0.0

    def __enter__(self) -> "Watch":
        """Begin."""
        self._last_gradient = time.perf_counter()
        self._hooks = [p.register_post_accumulate_grad_hook(self._note_gradient) for p in self._parameters()]
        self._wait, self._backward, self._update = dist.Work.wait, Tensor.backward, self._learner.optimizer.step
        self._set(self._blocking(self._wait), self._backward_watched)
        self._learner.optimizer.step = self._update_watched  # type: ignore[method-assign]
        self._mark = self._began = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        """End, and leave everything as it was."""
        self.step_seconds = self._now() - self._began
        self._set(self._wait, self._backward)
        del self._learner.optimizer.step  # the class's own shows again
        for hook in self._hooks:
            hook.remove()

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the block as waiting for a batch."""
        yield
        self._take("data_wait_seconds")

    @staticmethod
    def _set(wait: Any, backward: Any) -> None:
        """Let all waits and backward passes of this process be these."""
        setattr(dist.Work, "wait", wait)  # noqa: B010
        setattr(Tensor, "backward", backward)  # noqa: B010

    def _parameters(self) -> list[Any]:
        return [parameter for parameter in self._learner.model.parameters() if parameter.requires_grad]

    def _note_gradient(self, parameter: Tensor) -> None:
        self._last_gradient = time.perf_counter()

    @property
    def _backward_watched(self) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            self._take("forward_seconds")
            self._backward(*arguments, **options)
            self.blocked_seconds += time.perf_counter() - self._last_gradient
            self._take("backward_seconds")

        return call

    def _update_watched(self, *arguments: Any, **options: Any) -> Any:
        self._take("backward_seconds")
        try:
            return self._update(*arguments, **options)
        finally:
            self._take("update_seconds")

    def _blocking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.blocked_seconds += time.perf_counter() - began

        return call

    def _take(self, name: str) -> None:
        """Add the time since the last part's end to a part."""
        now = self._now()
        setattr(self, name, getattr(self, name) + now - self._mark)
        self._mark = now

    def _now(self) -> float:
        self._wait_for_device()
        return time.perf_counter()
