"""Five steps of each recipe, from stored noise through the worker loop: the losses that they had when last changed.

Batches of 16 in float64, so that they are the same on any processor: in float32 another order of sums moves the losses
of the nets that learn fast by up to 5e-4 within ten steps. The tolerance of 1e-5 is the digits that are written
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

BATCH_SIZE, NUM_STEPS, TOLERANCE = 16, 5, 1e-5

GOLDEN = {
    "small_demo": [6.1492, 6.02772, 10.36842, 7.00558, 2.14545],
    "synthetic_demo": [5.90771, 4.56515, 7.43532, 5.56127, 7.68441],
    "own_pictures": [10.98537, 7.8848, 5.57861, 5.76088, 5.35618],
    "krizhevsky_2012": [1.68728, 1.3968, 1.46706, 1.75689, 1.44978],
    "caffe_alexnet": [1.42067, 1.36775, 1.36875, 1.39513, 1.40751],
    "caffenet": [1.42063, 1.36779, 1.36875, 1.39504, 1.40738],
    "torchvision_owt": [1.38669, 1.38468, 1.38633, 1.38736, 1.38923],
    "owt_2014": [1.38668, 1.38471, 1.38635, 1.3875, 1.38909],
    "bn_lars_32k": [1.4247, 1.37022, 1.36934, 1.38621, 1.41123],
    "torchvision_resnet18": [1.40104, 1.44166, 1.4139, 1.43253, 1.36471],
    "mnist_tutorial": [1.36623, 1.40186, 1.40568, 1.39708, 1.41911],
    "cifar_tutorial": [1.3873, 1.38778, 1.38677, 1.38674, 1.38635],
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
