"""Progress of a run: its step, and the results of its evaluations so far."""

from typing import Any

from cluster.run.config import TrainingConfig
from model.schedules import Plateau


class Progress:
    """Steps and evaluations of a run so far; the same on all workers.

    Attributes:
        step: Number of steps made.
        total_steps: Length of the run.
        best_top1: Best top-1 accuracy on `val`, or None.
        is_evaluation_due: Whether an evaluation must be made before the next step.
        plateau: Stalls of the error on `val`, for the schedule `plateau`.
    """

    def __init__(self, config: TrainingConfig, num_samples: int) -> None:
        """Begin at step 0.

        Args:
            config: Recipe of the run.
            num_samples: Samples of the training set.
        """
        self._config = config
        self.total_steps = config.total_steps(num_samples)
        self.step = 0
        self.best_top1: float | None = None
        self.is_evaluation_due = False
        self.plateau = Plateau(config.optimizer)
        self._num_evaluations_since_best = 0

    @property
    def samples_seen(self) -> int:
        """Number of samples, over all workers, that have entered the loss."""
        return self.step * self._config.global_batch_size

    @property
    def is_last(self) -> bool:
        """Whether no further step will be made."""
        patience = self._config.early_stop_patience
        is_early = patience is not None and self._num_evaluations_since_best >= patience
        return self.step == self.total_steps or self.plateau.is_over or is_early

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.is_last and not self.is_evaluation_due

    def observe(self, top1: float) -> tuple[bool, bool]:
        """Record the result of an evaluation, which is then no longer due.

        Returns:
            Whether it is the best so far, and whether the error has stalled (schedule `plateau`).
        """
        self.is_evaluation_due = False
        is_best = self.best_top1 is None or top1 > self.best_top1
        self._num_evaluations_since_best += 1
        if is_best:
            self.best_top1, self._num_evaluations_since_best = top1, 0
        has_stalled = self._config.optimizer.schedule == "plateau" and self.plateau.observe(1 - top1)
        return is_best, has_stalled

    def state_dict(self) -> dict[str, Any]:
        """Return the state to keep in a checkpoint."""
        return {
            "step": self.step,
            "samples_seen": self.samples_seen,
            "best_top1": self.best_top1,
            "num_evaluations_since_best": self._num_evaluations_since_best,
            "is_evaluation_due": self.is_evaluation_due,
            "plateau": self.plateau.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.step, self.best_top1 = state["step"], state["best_top1"]
        self._num_evaluations_since_best = state["num_evaluations_since_best"]
        self.is_evaluation_due = state.get("is_evaluation_due", False)  # missing in older checkpoints
        self.plateau.load_state_dict(state["plateau"])
