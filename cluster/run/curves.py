"""A run's numbers over its steps, read from its log, without the steps that were rolled back."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Evaluated, Resumed, Steps, only, read_metrics
from pipeline.command import InputError


@dataclass(frozen=True)
class Curves:
    """Training and validation curves of one run.

    The log has the loss of each step, but the training error only as a mean over the steps of a line (20, fewer at the
    start), so all steps of a line have the same error. Training numbers are for augmented pictures, and with dropout if
    the model has it.

    Attributes:
        num_samples: Number of samples in the training set.
        global_batch_size: Samples per step.
        samples_seen: Samples seen after each logged step, int64, ascending.
        losses: Loss of each step, float64.
        top1_errors: Training error of each step, as a fraction, float64.
        val_samples_seen: Samples seen at each evaluation, int64, ascending.
        val_losses: Loss of each evaluation, float64.
        val_top1_errors: Error of each evaluation, as a fraction, float64.
    """

    num_samples: int
    global_batch_size: int
    samples_seen: np.ndarray
    losses: np.ndarray
    top1_errors: np.ndarray
    val_samples_seen: np.ndarray
    val_losses: np.ndarray
    val_top1_errors: np.ndarray


def read_curves(run: RunFolder) -> Curves:
    """Read the curves from a run's log.

    Raises:
        InputError: The log has no step.
    """
    lines = read_metrics(run.metrics_path)
    steps: dict[int, tuple[float, float]] = {}
    evaluations: dict[int, tuple[float, float]] = {}
    for line in lines:
        match line:
            case Steps():
                first = line.step - len(line.losses) + 1
                steps |= {first + i: (loss, 1 - line.top1) for i, loss in enumerate(line.losses)}
            case Evaluated():
                evaluations[line.step] = line.loss, 1 - line.top1
            case Resumed():
                steps, evaluations = _up_to(line.step, steps), _up_to(line.step, evaluations)
    if not steps:
        raise InputError(f"{run.path} has logged no step yet; train it first: jobs/train.py")
    last = only(Steps, lines)[-1]
    batch_size = run.config.global_batch_size
    num_samples = round(last.samples_seen / last.epoch)
    return Curves(num_samples, batch_size, *_columns(steps, batch_size), *_columns(evaluations, batch_size))


def smoothed(samples_seen: np.ndarray, values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples seen and the mean of the last `window` values, from the first full window on."""
    return samples_seen[window - 1 :], np.convolve(values, np.full(window, 1 / window), mode="valid")


def samples_to_error(curves: Curves, error: float, window: int) -> int | None:
    """Return the samples seen when the smoothed training error first falls to `error`, or None if it never does."""
    samples_seen, errors = smoothed(curves.samples_seen, curves.top1_errors, window)
    reached = np.flatnonzero(errors <= error + 1e-9)  # means are rounded
    return int(samples_seen[reached[0]]) if len(reached) else None


def _up_to(step: int, values: dict[int, Any]) -> dict[int, Any]:
    return {key: value for key, value in values.items() if key <= step}


def _columns(values: dict[int, tuple[float, float]], batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return samples seen, losses and errors in the order of the steps."""
    steps = sorted(values)
    losses, errors = (np.array([values[step][i] for step in steps], dtype=np.float64) for i in (0, 1))
    return np.array(steps, dtype=np.int64) * batch_size, losses, errors
