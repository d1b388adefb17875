"""The learning rate: a pure function of the samples seen, except for the schedule `plateau`, which has state.

A resumed run, or one on another world size, gets the same learning rates.
"""

import math
from typing import Any

from model.optim_config import OptimizerConfig


def learning_rate(config: OptimizerConfig, samples_seen: int, total_samples: int, num_reductions: int = 0) -> float:
    """Compute the learning rate of the step that follows `samples_seen` samples.

    Args:
        config: Schedule and its settings.
        samples_seen: Number of samples before the step, in [0, total_samples].
        total_samples: Length of the run.
        num_reductions: Number of reductions so far, of a `Plateau`.

    Raises:
        ValueError: `samples_seen` lies outside the run.
    """
    if not 0 <= samples_seen <= total_samples or total_samples == 0:
        raise ValueError(f"samples_seen={samples_seen}: must lie in [0, {total_samples}], the run's length")
    progress = samples_seen / total_samples
    if progress < config.warmup:
        return config.learning_rate * progress / config.warmup
    remaining = (1 - progress) / (1 - config.warmup)
    match config.schedule:
        case "step":
            num_steps = sum(milestone <= progress for milestone in config.milestones)
            return config.learning_rate * config.step_factor**num_steps
        case "poly":
            return config.learning_rate * remaining**config.power
        case "linear":
            return config.learning_rate * remaining
        case "cosine":
            return config.learning_rate * (1 - math.cos(math.pi * remaining)) / 2
        case "plateau":
            return config.learning_rate * config.step_factor**num_reductions
        case _:
            return config.learning_rate


class Plateau:
    """Counts the reductions of the learning rate: one each time the error on `val` stops falling.

    The paper's rule (section 5): "divide the learning rate by 10 when the validation error rate stopped improving with
    the current learning rate", three times "prior to termination". The paper does not define "stopped"; here it means
    `patience` evaluations in a row of which none is better than the run's best by more than `min_improvement`. A stall
    after `max_reductions` reductions ends the run.

    torch.optim.lr_scheduler.ReduceLROnPlateau is not used: it multiplies the optimiser's own rates, which are computed
    anew at each step here, and it never ends a run.

    Every rank keeps its own copy, updated from evaluations that are the same on all ranks.

    Attributes:
        num_reductions: Number of reductions so far.
        is_over: Whether the last stall ended the run.
    """

    def __init__(self, config: OptimizerConfig) -> None:
        """Start without any evaluation."""
        self._config = config
        self.num_reductions = 0
        self.is_over = False
        self._best_error = math.inf
        self._num_stalled = 0

    def observe(self, error: float) -> bool:
        """Record the result of an evaluation.

        Args:
            error: Top-1 error on `val`, in [0, 1].

        Returns:
            Whether this was a stall, which reduces the rate or ends the run.
        """
        if error < self._best_error - self._config.min_improvement:
            self._best_error, self._num_stalled = error, 0
            return False
        self._num_stalled += 1
        if self._num_stalled < self._config.patience:
            return False
        self._num_stalled = 0
        if self.num_reductions == self._config.max_reductions:
            self.is_over = True
        else:
            self.num_reductions += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the state to keep in a checkpoint."""
        return {
            "num_reductions": self.num_reductions,
            "is_over": self.is_over,
            "best_error": self._best_error,
            "num_stalled": self._num_stalled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.num_reductions, self.is_over = state["num_reductions"], state["is_over"]
        self._best_error, self._num_stalled = state["best_error"], state["num_stalled"]
