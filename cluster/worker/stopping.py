"""Agreement of the workers on the step after which they stop."""

from collections.abc import Callable

import torch
import torch.distributed as dist

from cluster.worker.world import World


class StopAgreement:
    """Lets all workers stop after the same step, soon after any of them wants to.

    Before each step, every worker sends its wish; the wishes are exchanged while the step computes, so no worker waits.
    """

    def __init__(self, world: World) -> None:
        """Start without any worker's wish."""
        self._world = world
        self._answer: Callable[[], torch.Tensor] | None = None

    def ask(self) -> None:
        """Tell the others whether this worker wants to stop; every worker calls this before a step."""
        wish = torch.tensor(int(self._world.wants_to_stop()))
        if self._world.world_size == 1:
            self._answer = lambda: wish
            return
        work = dist.all_reduce(wish, async_op=True)

        def wait() -> torch.Tensor:
            work.wait()
            return wish

        self._answer = wait

    def is_reached(self) -> bool:
        """Return, after the step, whether any worker wanted to stop before it; the answer is the same on all."""
        assert self._answer is not None, "ask before the step"
        return bool(self._answer().item())
