"""Overfitting is said where the curves show it beyond chance, and nowhere else."""

import numpy as np
import pytest

from cluster.run.curves import Curves
from cluster.run.overfitting import overfitting, standard_error

BATCH, STEPS_PER_EPOCH, EPOCHS = 10, 10, 10


def curves(train_top1=0.6, val_top1=0.6, losses=None, val_losses=None) -> Curves:
    steps = np.arange(1, STEPS_PER_EPOCH * EPOCHS + 1) * BATCH
    each_epoch = steps[STEPS_PER_EPOCH - 1 :: STEPS_PER_EPOCH]
    return Curves(
        num_samples=BATCH * STEPS_PER_EPOCH,
        global_batch_size=BATCH,
        samples_seen=steps,
        losses=np.linspace(2, 0.2, len(steps)) if losses is None else np.asarray(losses, dtype=float),
        top1_errors=np.full(len(steps), 1 - train_top1),
        val_samples_seen=each_epoch,
        val_losses=np.linspace(2, 1, EPOCHS) if val_losses is None else np.asarray(val_losses, dtype=float),
        val_top1_errors=np.full(EPOCHS, 1 - val_top1),
    )


def test_a_gap_of_many_pictures_counts_and_the_same_gap_of_few_is_chance():
    found = curves(train_top1=0.8, val_top1=0.62)
    many, few = overfitting(found, num_val=1000), overfitting(found, num_val=12)
    assert many[0].startswith("overfitting: top-1 is 80.0% on the training pictures and 62.0% on the 1,000 held out")
    assert "fewer epochs (--num-epochs)" in many[1] and len(many) == 2
    assert few == []


@pytest.mark.parametrize(("train", "val"), [(0.69, 0.60), (0.60, 0.80)])
def test_a_small_gap_or_none_is_no_sign(train, val):
    assert overfitting(curves(train_top1=train, val_top1=val), num_val=100_000) == []


RISING = [2, 1.5, 1.0, 0.8, 0.9, 1.0, 1.1, 1.0, 1.1, 1.2]


def test_a_loss_that_rises_while_the_training_loss_falls_is_said():
    (sign, remedy) = overfitting(curves(val_losses=RISING), num_val=500)
    assert sign.startswith("overfitting: the loss on val has risen from 0.800 at step 40 to 1.200, while the training")
    assert "more pictures" in remedy


@pytest.mark.parametrize(
    "val_losses",
    [
        [2, 1.5, 1.0, 0.8, 0.9, 0.8, 0.85, 0.82, 0.87, 0.86],  # noise
        [2, 1.5, 1.0, 0.9, 0.8, 0.8, 0.8, 0.7, 1.0, 1.1],  # two evaluations are too few
        [2, 1.5, 1.0, 0.8, 0.9, 1.0, 1.1, 1.0, 0.85, 1.2],  # one of the last three is as low
        [0.2, 0.1, 0.01, 0.006, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02],  # from almost nothing to a little more
    ],
)
def test_a_loss_that_only_scatters_is_no_sign(val_losses):
    assert overfitting(curves(val_losses=val_losses), num_val=500) == []


def test_a_rise_of_the_loss_of_few_pictures_may_be_chance():
    assert overfitting(curves(val_losses=RISING), num_val=50) == []  # 25 %, and two standard errors are 28 %


def test_a_run_that_diverges_is_no_overfitting():
    losses = np.linspace(0.5, 2, STEPS_PER_EPOCH * EPOCHS)
    assert overfitting(curves(losses=losses, val_losses=RISING), num_val=500) == []


def test_without_evaluations_nothing_is_said():
    empty = np.array([])
    found = curves()
    none = Curves(100, BATCH, found.samples_seen, found.losses, found.top1_errors, empty.astype(int), empty, empty)
    assert overfitting(none, num_val=0) == []


def test_the_standard_error_is_that_of_a_fraction_and_never_zero():
    assert standard_error(0.5, 10_000) == pytest.approx(0.005, rel=1e-3)
    assert standard_error(1.0, 40) == pytest.approx((41 / 42 * 1 / 42 / 42) ** 0.5)
