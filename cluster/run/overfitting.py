"""Whether a run has learnt its training pictures by heart: verdicts from its curves, with the noise of few pictures.

Two signs count, each beyond chance:

- the training top-1 of the last epoch lies at least 10 points, and two standard errors, above that on `val`. The error
  of the difference of two fractions is Agresti's and Caffo's ("Simple and effective confidence intervals for
  proportions", 2000), which also holds for few pictures. Training pictures are augmented, and seen with dropout if the
  model has it: both lower the training top-1, so the sign errs towards silence;
- each of the last three losses on `val` lies above the lowest one by at least 10 %, by two standard errors and by 0.05,
  and the training loss has fallen since. A picture's loss scatters about as much as its mean, so a standard error is
  the lowest loss over the root of the number of pictures. A rise from almost nothing to a little more does not count.
"""

import math

import numpy as np

from cluster.run.curves import Curves

_LEAST_GAP, _NUM_ERRORS = 0.10, 2.0
_LEAST_RISE, _LEAST_RELATIVE_RISE, _NUM_LAST = 0.05, 0.10, 3
_REMEDIES = "more pictures help, or fewer epochs (--num-epochs), or smaller crops (--augmentation.crop-fraction)"


def overfitting(curves: Curves, num_val: int) -> list[str]:
    """Return a line for each sign of overfitting, for a person; none if there is no sign.

    Args:
        curves: Curves of the run.
        num_val: Number of pictures of `val`.
    """
    if not len(curves.val_losses) or num_val < 1:
        return []
    signs = [sign for sign in (_gap(curves, num_val), _rise(curves, num_val)) if sign]
    return [f"overfitting: {sign}" for sign in signs] + [_REMEDIES] * bool(signs)


def standard_error(fraction: float, num_samples: int) -> float:
    """Return the standard error of a fraction of samples, by Agresti's and Caffo's correction."""
    corrected = (fraction * num_samples + 1) / (num_samples + 2)
    return math.sqrt(corrected * (1 - corrected) / (num_samples + 2))


def _gap(curves: Curves, num_val: int) -> str | None:
    end = int(curves.val_samples_seen[-1])
    train, val = 1 - _of_epoch(curves, curves.top1_errors, end), 1 - float(curves.val_top1_errors[-1])
    error = math.hypot(standard_error(train, curves.num_samples), standard_error(val, num_val))
    if train - val < max(_LEAST_GAP, _NUM_ERRORS * error):
        return None
    return (
        f"top-1 is {train:.1%} on the training pictures and {val:.1%} on the {num_val:,} held out; chance explains "
        f"{_NUM_ERRORS * error * 100:.0f} points"
    )


def _rise(curves: Curves, num_val: int) -> str | None:
    losses = curves.val_losses
    lowest = int(np.argmin(losses))
    relative = max(_LEAST_RELATIVE_RISE, _NUM_ERRORS / math.sqrt(num_val))
    bound = losses[lowest] + max(_LEAST_RISE, relative * losses[lowest])
    if len(losses) - lowest <= _NUM_LAST or np.any(losses[-_NUM_LAST:] <= bound):
        return None
    at_lowest = _of_epoch(curves, curves.losses, int(curves.val_samples_seen[lowest]))
    at_end = _of_epoch(curves, curves.losses, int(curves.val_samples_seen[-1]))
    if at_end >= at_lowest:
        return None
    step = int(curves.val_samples_seen[lowest]) // curves.global_batch_size
    return (
        f"the loss on val has risen from {losses[lowest]:.3f} at step {step} to {losses[-1]:.3f}, while the training "
        f"loss fell from {at_lowest:.3f} to {at_end:.3f}"
    )


def _of_epoch(curves: Curves, values: np.ndarray, end: int) -> float:
    """Return the mean of training values over the epoch that ends with `end` samples seen."""
    is_inside = (curves.samples_seen <= end) & (curves.samples_seen > end - max(curves.num_samples, 1))
    chosen = values[is_inside]
    return float(chosen.mean()) if len(chosen) else float(values[-1])
