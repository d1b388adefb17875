import math

import pytest
import torch

from model.optim import OptimizerConfig, build_optimizer, set_learning_rate
from model.schedules import learning_rate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan: must be above 0"),
        ({"momentum": 1.0}, "momentum=1.0: must lie in"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001: must not be negative"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov=True: needs a momentum"),
        ({"warmup": 5}, "warmup=5: .* a fraction of the run"),
        ({"schedule": "cosin"}, "schedule='cosin': must be one of constant, step, linear, cosine"),
        ({"schedule": "step"}, "milestones=.*: the schedule `step` needs them"),
        ({"schedule": "cosine", "milestones": (0.5,)}, "milestones=.*: .* the others have none"),
        ({"schedule": "step", "milestones": (0.6, 0.3)}, "milestones=.*: must ascend"),
        ({"schedule": "step", "milestones": (30, 60)}, "milestones=.*: .* fractions of the run"),
        ({"schedule": "step", "milestones": (0.5,), "step_factor": 10}, "step_factor=10: must lie in"),
    ],
)
def test_a_field_out_of_range_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # At 0, 5, 10, 25, 50, 75 and 100 of 100 samples.
        (OptimizerConfig(learning_rate=2.0), [2, 2, 2, 2, 2, 2, 2]),
        (OptimizerConfig(learning_rate=2.0, warmup=0.1), [0, 1, 2, 2, 2, 2, 2]),
        (OptimizerConfig(learning_rate=2.0, schedule="linear"), [2, 1.9, 1.8, 1.5, 1, 0.5, 0]),
        (OptimizerConfig(learning_rate=2.0, schedule="linear", warmup=0.5), [0, 0.2, 0.4, 1, 2, 1, 0]),
        (
            OptimizerConfig(learning_rate=2.0, schedule="cosine"),
            [2, 1.987688, 1.951057, 1 + 2**-0.5, 1, 1 - 2**-0.5, 0],
        ),
        (
            OptimizerConfig(learning_rate=2.0, schedule="step", milestones=(0.1, 0.75), step_factor=0.5),
            [2, 2, 1, 1, 1, 0.5, 0.5],
        ),
    ],
)
def test_schedules_are_the_literal_tables(config: OptimizerConfig, expected: list[float]) -> None:
    rates = [learning_rate(config, seen, 100) for seen in (0, 5, 10, 25, 50, 75, 100)]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_the_schedule_depends_on_the_fraction_of_the_run_alone() -> None:
    config = OptimizerConfig(schedule="cosine", warmup=0.1)
    long = 128 * 10**9
    assert learning_rate(config, 3 * long // 8, long) == pytest.approx(learning_rate(config, 3, 8), rel=1e-12)


@pytest.mark.parametrize(("samples_seen", "total_samples"), [(-1, 10), (11, 10), (0, 0)])
def test_samples_outside_the_run_are_refused(samples_seen: int, total_samples: int) -> None:
    with pytest.raises(ValueError, match=f"samples_seen={samples_seen}: "):
        learning_rate(OptimizerConfig(), samples_seen, total_samples)


@pytest.mark.parametrize("nesterov", [False, True])
def test_three_steps_of_the_written_update(nesterov: bool) -> None:
    model = torch.nn.Linear(3, 2).double()
    config = OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    optimizer = build_optimizer(model, config)
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    velocity = [torch.zeros_like(parameter) for parameter in expected]
    for rate, gradient in ((0.1, 1.0), (0.05, -2.0), (0.01, 0.5)):
        set_learning_rate(optimizer, rate)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        for weight, speed in zip(expected, velocity, strict=True):
            full_gradient = gradient + 0.01 * weight
            speed.mul_(0.9).add_(full_gradient)
            weight -= rate * (full_gradient + 0.9 * speed if nesterov else speed)
    for parameter, weight in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, rtol=1e-12, atol=0)
