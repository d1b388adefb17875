"""Ten steps of each recipe, from stored noise through the worker loop: the losses that they had when last changed.

Batches of 16 in float64, so that they are the same on any processor: in float32 another order of sums moves the losses
of the nets that learn fast by up to 5e-4 within the ten steps. The tolerance of 1e-5 is the digits that are written
here; a changed rate, mask, starting weight, augmentation or formula moves some loss by more.
"""

from dataclasses import replace

import pytest
from coded_source import CodedSource
from runs import ALONE, STORED_SIZES, losses

from cluster.run.run_folder import RunFolder
from cluster.worker.training import Trainer
from jobs.recipes import RECIPES
from pipeline.dataset import Dataset
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.pictures.encode import EncodingConfig

BATCH_SIZE, NUM_STEPS, TOLERANCE = 16, 10, 1e-5

GOLDEN = {
    "small_demo": [8.39012, 6.43624, 9.38181, 4.33152, 1.65693, 1.71464, 1.48899, 1.48509, 1.52736, 1.66117],
    "synthetic_demo": [7.67886, 4.74459, 6.60726, 8.38337, 4.86144, 4.86816, 3.81154, 4.16456, 6.25025, 3.75368],
    "own_pictures": [9.50522, 8.86364, 4.37808, 8.45347, 4.26149, 4.33888, 3.03666, 3.69535, 4.24446, 2.93504],
    "krizhevsky_2012": [1.35176, 1.57024, 1.41757, 1.47557, 1.45292, 1.70741, 1.34769, 1.47357, 1.41481, 1.58057],
    "caffe_alexnet": [1.35093, 1.40751, 1.38612, 1.34362, 1.44385, 1.41978, 1.37585, 1.39651, 1.42501, 1.38545],
    "caffenet": [1.351, 1.40731, 1.38594, 1.34371, 1.4438, 1.4197, 1.37578, 1.39673, 1.42458, 1.38548],
    "torchvision_owt": [1.38877, 1.38444, 1.38976, 1.38803, 1.38633, 1.38343, 1.38471, 1.38415, 1.39352, 1.38838],
    "owt_2014": [1.38877, 1.38446, 1.38966, 1.38795, 1.38622, 1.38356, 1.38454, 1.3846, 1.39473, 1.38882],
    "bn_lars_32k": [1.35906, 1.39906, 1.39481, 1.35063, 1.44236, 1.41292, 1.38325, 1.38742, 1.3824, 1.3809],
    "torchvision_resnet18": [1.53046, 1.44315, 1.41129, 1.42683, 1.49214, 1.50099, 1.42307, 1.48046, 1.70769, 1.50456],
    "mnist_tutorial": [1.40118, 1.39758, 1.42022, 1.40437, 1.40905, 1.41045, 1.39787, 1.42999, 1.51642, 1.43203],
    "cifar_tutorial": [1.38632, 1.38759, 1.38421, 1.38395, 1.38485, 1.38904, 1.38511, 1.39061, 1.40394, 1.39201],
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[int, Dataset]:
    made = {}
    for size in sorted(set(STORED_SIZES.values())):
        out = tmp_path_factory.mktemp(f"stored{size}")
        source = CodedSource(out, num_train=BATCH_SIZE * NUM_STEPS, num_val=0, size=size)
        shard_dataset(source, out, ShardingConfig(encoding=EncodingConfig(encoding="raw", size=None), val_fraction=0))
        made[size] = Dataset.open(out)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_first_losses_of_a_recipe_are_what_they_were(name: str, datasets: dict[int, Dataset], tmp_path) -> None:
    recipe = RECIPES[name]()
    config = replace(
        recipe,
        model=replace(recipe.model, batch_norm_group=8),
        optimizer=replace(recipe.optimizer, reference_batch_size=recipe.global_batch_size),  # scales the rate
        global_batch_size=BATCH_SIZE,
        num_epochs=1,
        precision="float64",
        stuck_after_epochs=100,  # there is nothing to learn
    )
    dataset = datasets[STORED_SIZES[name]]
    run = RunFolder.create(tmp_path, config, dataset)
    trainer = Trainer(dataset, run, ALONE)
    trainer.run()
    trainer.close()
    assert losses(run) == pytest.approx(GOLDEN[name], rel=TOLERANCE)
