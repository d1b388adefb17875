"""Agreement of the workers on the step after which they stop, and on when a checkpoint may be written."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from cluster.worker.world import World

ASK_SECONDS = 1.0  # about the time between two exchanges; slower steps exchange before each step


class StopAgreement:
    """Lets all workers stop after the same step, about a second after any of them wants to.

    Before a step, every worker sends its wish; the wishes are exchanged while the step computes, so no worker waits. An
    exchange also tells after how many more steps the next one follows, in the workers' shortest estimate: a number of
    steps, so that all exchange before the same step. It at most doubles from one exchange to the next, since the first
    steps after a start are no measure of the later ones.

    Args:
        world: Place of this worker.
        clock: Source of the time in seconds.

    Attributes:
        is_checkpoint_time: Whether the latest step exchanged wishes, and the first worker wants a checkpoint.
    """

    def __init__(self, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        self._world, self._clock = world, clock
        self.is_checkpoint_time = False
        self.renew()

    def renew(self) -> None:
        """Exchange wishes before the next step: other steps begin, which may take another time."""
        self._num_steps, self._num_left = 1, 0
        self._asked: float | None = None
        self._answer: Callable[[], torch.Tensor] | None = None

    def ask(self, is_checkpoint_time: bool = False) -> None:
        """Tell the others what this worker wants, if it is time; every worker calls this before a step.

        Args:
            is_checkpoint_time: Whether a checkpoint may be written; only the first worker's answer counts.
        """
        self._answer, self.is_checkpoint_time = None, False
        if self._num_left:
            self._num_left -= 1
            return
        wants_checkpoint = is_checkpoint_time and self._world.is_first
        # The maximum over the workers is taken of each, so the smallest number of steps is the largest negative one.
        wishes = torch.tensor([int(self._world.wants_to_stop()), int(wants_checkpoint), -self._estimate()])
        if self._world.world_size == 1:
            self._answer = lambda: wishes
            return
        work = dist.all_reduce(wishes, dist.ReduceOp.MAX, async_op=True)

        def wait() -> torch.Tensor:
            work.wait()
            return wishes

        self._answer = wait

    def is_reached(self) -> bool:
        """Return, after the step, whether any worker wanted to stop before it; the answer is the same on all."""
        if self._answer is None:
            return False
        wants_to_stop, wants_checkpoint, negative = self._answer().tolist()
        self._num_steps, self._answer = -negative, None
        self._num_left = self._num_steps - 1
        self.is_checkpoint_time = bool(wants_checkpoint)
        return bool(wants_to_stop)

    def _estimate(self) -> int:
        """Return the number of steps until the next exchange, by the time of those since the previous one."""
        now, before = self._clock(), self._asked
        self._asked = now
        if before is None:
            return 1
        step_seconds = (now - before) / self._num_steps
        most = 2 * self._num_steps
        return most if step_seconds * most < ASK_SECONDS else max(1, round(ASK_SECONDS / step_seconds))
