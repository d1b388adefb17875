"""The promise: a run's numbers do not tell how many workers it had. Float64, so that all that remains is rounding."""

import dataclasses

import numpy as np
import pytest
import torch
from coded_source import CodedSource
from runs import ALONE, CONFIG, entries, losses
from worker_process import run_workers

from cluster.run.run_folder import RunFolder
from cluster.worker.training import Trainer
from pipeline.dataset import Dataset
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.pictures.encode import EncodingConfig

pytestmark = pytest.mark.slow

NUM_STEPS = 20
# Dropout and every augmentation are on; 5 workers don't divide 96.
INVARIANT = dataclasses.replace(
    CONFIG, global_batch_size=96, num_epochs=NUM_STEPS * 96 / 250, evaluations_per_epoch=0.5
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    out = tmp_path_factory.mktemp("dataset")
    source = CodedSource(out, 250, 30, 32, pixels=False)
    shard_dataset(source, out, ShardingConfig(encoding=EncodingConfig(encoding="jpeg", size=32)), num_workers=1)
    return Dataset.open(out)


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory) -> RunFolder:
    run = RunFolder.create(tmp_path_factory.mktemp("run") / "alone", INVARIANT, dataset)
    trainer = Trainer(dataset, run, ALONE)
    trainer.run()
    trainer.close()
    return run


def test_dropout_and_every_augmentation_are_on():
    assert INVARIANT.model.dropout > 0 and INVARIANT.precision == "float64"
    augmentation = INVARIANT.augmentation
    assert augmentation.flip and augmentation.color_noise_sigma > 0 and augmentation.crop_size < 32


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_samples_losses_and_weights_are_those_of_one_worker(alone, dataset, tmp_path, world_size):
    run = RunFolder.create(tmp_path / "run", INVARIANT, dataset)
    run_workers(world_size, "train", dataset.path, run.path)
    mine, theirs = (list(r.ledger.read()) for r in (run, alone))
    assert {size for part in mine for size in part.world_sizes_S} == {world_size}
    mine_ids, their_ids = (np.concatenate([part.sample_ids_SG for part in parts]) for parts in (mine, theirs))
    assert mine_ids.shape == (NUM_STEPS, 96)
    np.testing.assert_array_equal(mine_ids, their_ids)
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-8)
    counts, expected = ([e["num_samples"] for e in entries(r, "evaluation")] for r in (run, alone))
    assert counts == expected and set(counts) == {30}
    left, right = run.checkpoints.load_latest()["model"], alone.checkpoints.load_latest()["model"]
    for name, weights in right.items():
        torch.testing.assert_close(left[name], weights, rtol=1e-6, atol=1e-9)
