"""The exchange of factors: the same gradients as all-reduce, whatever the layers, the precision and the workers."""

import dataclasses

import pytest
import torch
from runs import CONFIG
from worker_process import run_workers

from cluster.run.run_folder import RunFolder
from model.optim_config import OptimizerConfig

UNEVEN = dataclasses.replace(CONFIG, global_batch_size=13, num_epochs=3)
LARS = OptimizerConfig(name="lars", learning_rate=1.0, weight_decay=5e-4)


def _weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return run.checkpoints.load_latest()["model"]


def assert_same_weights(run: RunFolder, reference: RunFolder) -> None:
    """Assert that the weights differ by at most 1e-10 of each tensor's largest."""
    mine, theirs = _weights(run), _weights(reference)
    assert list(mine) == list(theirs)
    for name, expected in theirs.items():
        assert mine[name].shape == expected.shape
        assert float((mine[name] - expected).abs().max()) <= 1e-10 * float(expected.abs().max()), name


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(2, ""), (3, ""), (2, "3")])
@pytest.mark.parametrize("optimizer", [CONFIG.optimizer, LARS], ids=["sgd", "lars"])
def test_a_run_by_factors_is_the_run_by_allreduce(raw_dataset, tmp_path, world_size, micro_batch_size, optimizer):
    config = dataclasses.replace(UNEVEN, optimizer=optimizer)
    runs = {name: RunFolder.create(tmp_path / name, config, raw_dataset) for name in ("allreduce", "factors")}
    for name, run in runs.items():
        run_workers(world_size, "train", raw_dataset.path, run.path, micro_batch_size, name)
    assert_same_weights(runs["factors"], runs["allreduce"])
