"""What `benchmarks.lossy_exchange` compares, and its bytes."""

import dataclasses

import pytest
from runs import CONFIG

from benchmarks.lossy_exchange import OPTIONS, mean_bytes
from cluster.run.run_folder import RunFolder
from jobs.train import parse


def test_each_exchange_is_another_recipe():
    configs = [parse(["--recipe", "small_demo", *options])[1] for options in OPTIONS.values()]
    assert len({repr(config.identity()) for config in configs}) == len(OPTIONS)
    assert [config.is_exchange_lossy for config in configs] == [name != "allreduce" for name in OPTIONS]


@pytest.mark.parametrize(
    ("changes", "fraction"),
    [
        ({"gradient_compression": "bf16"}, 1 / 2),
        ({"local_sgd_steps": 4}, 1 / 4),
        ({"local_sgd_steps": 4, "local_sgd_start": 0.5}, 5 / 8),
        ({"gradient_compression": "powersgd", "powersgd_rank": 10**6}, 1),
    ],
)
def test_the_bytes_are_a_mean_over_the_run(changes, fraction, raw_dataset, tmp_path):
    configs = [CONFIG, dataclasses.replace(CONFIG, **changes)]
    runs = [RunFolder.create(tmp_path / str(index), config, raw_dataset) for index, config in enumerate(configs)]
    exact, lossy = (mean_bytes(run, 4, raw_dataset) for run in runs)
    assert lossy == pytest.approx(exact * fraction)
    assert mean_bytes(runs[1], 2, raw_dataset) == pytest.approx(lossy * 2 / 3)
