"""How workers are asked to stop at a checkpoint, and how they agree on the step."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.world import World


class StopRequest:
    """A stop flag for the workers of a run, stored in a file that all see; the process that launches them writes it.

    It is written in place: a file that is opened anew shows its latest content on network file systems too, where a
    file that newly appears may stay unseen for half a minute.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def clear(self) -> None:
        """Let the workers run."""
        self._path.write_text("go on\n")

    def make(self) -> None:
        """Ask the workers to stop."""
        self._path.write_text("stop\n")

    def is_made(self) -> bool:
        """Return whether they were asked to."""
        try:
            return self._path.read_text() == "stop\n"
        except OSError:  # nobody has written it yet
            return False


class StopAgreement:
    """Lets all workers stop after the same step, soon after any of them wants to.

    Each says before a step what it wants; the answers travel while the step computes, so nobody waits for them.
    """

    def __init__(self, world: World) -> None:
        """Begin without a wish."""
        self._world = world
        self._answer: Callable[[], torch.Tensor] | None = None

    def ask(self) -> None:
        """Tell the others whether this worker wants to stop; every worker calls it before a step."""
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
        """Return, after the step, whether any worker wanted to stop before it; the same on all workers."""
        assert self._answer is not None, "ask before the step"
        return bool(self._answer().item())
