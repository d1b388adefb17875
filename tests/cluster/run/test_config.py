"""The fields of a recipe for lossy exchanges check themselves."""

import dataclasses

import pytest
from runs import CONFIG

from cluster.run.config import TrainingConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_compression": "fp16"}, "gradient_compression='fp16': must be one of none, bf16, powersgd"),
        ({"local_sgd_steps": 1}, "local_sgd_steps=1: must be at least 2, or none"),
        ({"local_sgd_steps": 4, "local_sgd_start": 1.5}, "local_sgd_start=1.5: must lie in .0, 1., a fraction"),
        ({"gradient_compression": "powersgd", "powersgd_rank": 0}, "powersgd_rank=0: must be at least 1"),
        ({"gradient_compression": "powersgd", "powersgd_start": -0.1}, "powersgd_start=-0.1: must lie in"),
        (
            {"gradient_compression": "bf16", "local_sgd_steps": 4},
            "local_sgd_steps=4: does not go with gradient_compression='bf16'; choose one of them",
        ),
        (
            {"gradient_compression": "bf16", "powersgd_rank": 2},
            "powersgd_rank=2: is used only if gradient_compression is powersgd; leave it at 4",
        ),
        ({"powersgd_start": 0.2}, "powersgd_start=0.2: is used only if gradient_compression is powersgd"),
        ({"local_sgd_start": 0.5}, "local_sgd_start=0.5: is used only if local_sgd_steps is a number; leave it at 0.0"),
    ],
)
def test_wrong_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_compression": "bf16"},
        {"gradient_compression": "powersgd", "powersgd_rank": 1, "powersgd_start": 0.0},
        {"local_sgd_steps": 8, "local_sgd_start": 0.5},
    ],
)
def test_right_fields_round_trip_and_are_lossy(changes):
    config = dataclasses.replace(CONFIG, **changes)
    assert TrainingConfig.from_json(config.to_json()) == config
    assert config.is_exchange_lossy and not CONFIG.is_exchange_lossy
