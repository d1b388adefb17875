"""When a checkpoint is begun: as often as a recipe says in steps, but not more often than it says in seconds."""

import time
from collections.abc import Callable

from cluster.run.config import TrainingConfig


class CheckpointSchedule:
    """Decides after which steps a checkpoint is begun; the same on all workers.

    One is due at the first step that reaches or has passed a multiple of the recipe's number of steps since the
    previous one was begun, once enough time has passed. Only the first worker's clock counts; what it shows reaches the
    others with the workers' exchange of wishes (`stopping.py`).

    Args:
        config: Recipe of the run.
        step: Step that the run begins at.
        clock: Source of the time in seconds.
    """

    def __init__(self, config: TrainingConfig, step: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_steps, self._seconds = config.steps_between_checkpoints, config.seconds_between_checkpoints
        self._clock = clock
        self.begin(step)

    @property
    def is_time(self) -> bool:
        """Whether enough time has passed on this worker's clock."""
        return self._clock() - self._began >= self._seconds

    def allow(self) -> None:
        """Take note that enough time has passed on the first worker's clock; every worker calls this."""
        self._is_allowed = True

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint must be begun after `step`."""
        return self._is_allowed and step // self._num_steps > self._step // self._num_steps

    def begin(self, step: int) -> None:
        """Take note that a checkpoint is begun after `step`, for whatever reason; every worker calls this."""
        self._step, self._began = step, self._clock()
        self._is_allowed = not self._seconds
