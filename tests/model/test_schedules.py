"""Learning rates against literal tables and their bounds; the plateau against torch's own."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.optim_config import OptimizerConfig
from model.schedules import Plateau, learning_rate

TOTAL = 1000


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # At 0, 5, 10, 25, 50, 75 and 100 of 100 samples.
        ({}, [2, 2, 2, 2, 2, 2, 2]),
        ({"warmup": 0.1}, [0, 1, 2, 2, 2, 2, 2]),
        ({"schedule": "linear"}, [2, 1.9, 1.8, 1.5, 1, 0.5, 0]),
        ({"schedule": "linear", "warmup": 0.5}, [0, 0.2, 0.4, 1, 2, 1, 0]),
        ({"schedule": "poly"}, [2, 1.805, 1.62, 1.125, 0.5, 0.125, 0]),
        ({"schedule": "poly", "power": 0.5, "warmup": 0.5}, [0, 0.2, 0.4, 1, 2, 2**0.5, 0]),
        ({"schedule": "cosine"}, [2, 1.987688, 1.951057, 1 + 2**-0.5, 1, 1 - 2**-0.5, 0]),
        ({"schedule": "step", "milestones": (0.1, 0.75), "step_factor": 0.5}, [2, 2, 1, 1, 1, 0.5, 0.5]),
        ({"schedule": "plateau", "warmup": 0.1}, [0, 1, 2, 2, 2, 2, 2]),
    ],
)
def test_schedules_are_the_literal_tables(fields: dict, expected: list[float]) -> None:
    config = OptimizerConfig(learning_rate=2.0, **fields)
    rates = [learning_rate(config, seen, 100) for seen in (0, 5, 10, 25, 50, 75, 100)]
    assert rates == pytest.approx(expected, abs=1e-6)


@given(
    schedule=st.sampled_from(["constant", "step", "poly", "linear", "cosine", "plateau"]),
    warmup=st.integers(0, 900).map(lambda part: part / TOTAL),
    power=st.floats(0.1, 5),
    seen=st.integers(0, TOTAL - 1),
    num_reductions=st.integers(0, 3),
)
def test_rates_rise_to_the_peak_and_fall_from_there(schedule, warmup, power, seen, num_reductions) -> None:
    fields = {"poly": {"power": power}, "step": {"milestones": (0.95, 0.97)}}.get(schedule, {})
    config = OptimizerConfig(learning_rate=0.3, warmup=warmup, schedule=schedule, **fields)
    rate, following = (learning_rate(config, at, TOTAL, num_reductions) for at in (seen, seen + 1))
    assert 0 <= rate <= 0.3 * (1 + 1e-12)
    if seen + 1 < warmup * TOTAL:
        assert rate < following
    elif seen >= warmup * TOTAL:
        assert following <= rate
    peak = 0.3 * 0.1**num_reductions if schedule == "plateau" else 0.3
    assert learning_rate(config, round(warmup * TOTAL), TOTAL, num_reductions) == pytest.approx(peak)
    if warmup:
        assert learning_rate(config, 0, TOTAL) == 0
    if schedule in ("poly", "linear", "cosine"):
        assert learning_rate(config, TOTAL, TOTAL) == 0


def test_the_schedule_depends_on_the_fraction_of_the_run_alone() -> None:
    config = OptimizerConfig(schedule="cosine", warmup=0.1)
    long = 128 * 10**9
    assert learning_rate(config, 3 * long // 8, long) == pytest.approx(learning_rate(config, 3, 8), rel=1e-12)


@pytest.mark.parametrize(("samples_seen", "total_samples"), [(-1, 10), (11, 10), (0, 0)])
def test_samples_outside_the_run_are_refused(samples_seen: int, total_samples: int) -> None:
    with pytest.raises(ValueError, match=f"samples_seen={samples_seen}: "):
        learning_rate(OptimizerConfig(), samples_seen, total_samples)


def _plateau(**fields) -> Plateau:
    return Plateau(OptimizerConfig(schedule="plateau", **fields))


@pytest.mark.parametrize(
    ("fields", "errors", "stalls", "is_over"),
    [
        ({"patience": 2}, [0.9, 0.8, 0.8, 0.8, 0.8, 0.7, 0.7, 0.75], [3, 7], False),
        ({"patience": 1, "max_reductions": 1}, [0.9, 0.9, 0.8, 0.8], [1, 3], True),
        ({"patience": 2, "max_reductions": 0}, [0.5, 0.6, 0.6], [2], True),
        ({"patience": 2, "min_improvement": 0.125}, [1.0, 0.875, 0.875, 0.75, 0.625], [2], False),
        ({"patience": 1}, [math.nan, 0.5, 0.4], [0], False),
    ],
)
def test_a_stall_is_so_many_evaluations_without_improvement(fields, errors, stalls, is_over) -> None:
    plateau = _plateau(**fields)
    assert [number for number, error in enumerate(errors) if plateau.observe(error)] == stalls
    assert plateau.num_reductions == len(stalls) - is_over
    assert plateau.is_over == is_over


ERRORS = st.lists(st.integers(0, 8).map(lambda eighths: eighths / 8), max_size=40)


@given(errors=ERRORS, patience=st.integers(1, 4), min_improvement=st.sampled_from([0.0, 0.125, 0.25]))
def test_reductions_are_those_of_torch(errors, patience, min_improvement) -> None:
    plateau = _plateau(patience=patience, min_improvement=min_improvement, max_reductions=100)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    # torch's patience is the number of evaluations that are forgiven.
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience - 1, threshold=min_improvement, threshold_mode="abs", eps=0
    )
    for error in errors:
        plateau.observe(error)
        theirs.step(error)
        assert optimizer.param_groups[0]["lr"] == 0.5**plateau.num_reductions


@given(errors=ERRORS, cut=st.integers(0, 40), patience=st.integers(1, 4), max_reductions=st.integers(0, 3))
def test_a_resumed_plateau_decides_the_same(errors, cut, patience, max_reductions) -> None:
    fields = {"patience": patience, "max_reductions": max_reductions}
    straight, first, second = _plateau(**fields), _plateau(**fields), _plateau(**fields)
    decisions = [straight.observe(error) for error in errors]
    before = [first.observe(error) for error in errors[:cut]]
    second.load_state_dict(first.state_dict())
    assert before + [second.observe(error) for error in errors[cut:]] == decisions
    assert second.state_dict() == straight.state_dict()
    assert straight.num_reductions <= max_reductions
