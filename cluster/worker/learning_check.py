"""A check that ends a run whose loss says that it is lost."""

import math
from collections import deque

import torch

from cluster.run.config import TrainingConfig
from pipeline.command import InputError
from pipeline.dataset import Dataset

_STUCK = 0.01  # fraction of the loss of guessing
_NUM_JUDGED = 20  # number of latest steps whose mean loss is checked


class LearningCheck:
    """Checks the losses of a run's steps, in order.

    Args:
        config: Recipe of the run.
        dataset: Training dataset.
    """

    def __init__(self, config: TrainingConfig, dataset: Dataset) -> None:
        self._config, self._num_classes = config, dataset.num_classes
        self._num_samples = dataset.num_samples("train")
        self._last_losses: deque[float] = deque(maxlen=_NUM_JUDGED)

    def __call__(self, step: int, losses: torch.Tensor) -> None:
        """Check the losses of the latest steps, up to `step`.

        Raises:
            InputError: The loss became NaN or infinite, or is still that of guessing among all classes.
        """
        config, guess = self._config, math.log(self._num_classes)
        if not bool(losses.isfinite().all()):
            raise InputError(
                f"the loss became NaN or infinite at step {step}; lower the rate: --optimizer.learning-rate "
                f"(now {config.optimizer.learning_rate:g})"
            )
        self._last_losses.extend(losses.tolist())
        loss = sum(self._last_losses) / len(self._last_losses)
        epoch = step * config.global_batch_size / self._num_samples
        if config.synthetic_data or epoch < config.stuck_after_epochs or len(self._last_losses) < _NUM_JUDGED:
            return
        if guess == 0 or abs(loss - guess) > _STUCK * guess:  # with one class there is nothing to learn
            return
        raise InputError(
            f"the loss is {loss:.4f} after {epoch:.1f} epochs, that of a guess, ln {self._num_classes} = "
            f"{guess:.4f}: nothing is learnt. Try another rate (--optimizer.learning-rate, now "
            f"{config.optimizer.learning_rate:g}), other starting biases (--model.initial-bias 0.1) or weights "
            f"(--model.initialization kaiming), and see with pipeline.preview whether the labels fit the pictures"
        )
