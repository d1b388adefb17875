"""Ten steps of each recipe, through the worker loop, on noise: the losses that they had when they were last changed.

Batches of 16 in float32. The tolerance of 1e-3 is room for another processor's order of sums (on one machine repeated
runs agree to 1e-6); a changed rate, mask, starting weight or formula moves some loss by more.
"""

from dataclasses import replace

import pytest
from coded_source import CodedSource
from runs import ALONE, losses

from cluster.run_folder import RunFolder
from cluster.training import Trainer
from jobs.recipes import RECIPES
from pipeline.dataset import Dataset
from pipeline.encode import EncodingConfig
from pipeline.shard_plan import ShardingConfig
from pipeline.sharding import shard_dataset

BATCH_SIZE, NUM_STEPS, TOLERANCE = 16, 10, 1e-3
STORED_SIZES = {"small_demo": 28, "mnist_tutorial": 28, "cifar_tutorial": 32}  # the others: 256

GOLDEN: dict[str, list[float]] = {}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[int, Dataset]:
    made = {}
    for size in (28, 32, 256):
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
        precision="float32",
        synthetic_data=True,
    )
    dataset = datasets[STORED_SIZES.get(name, 256)]
    run = RunFolder.create(tmp_path, config, dataset)
    trainer = Trainer(dataset, run, ALONE)
    trainer.run()
    trainer.close()
    assert losses(run) == pytest.approx(GOLDEN[name], rel=TOLERANCE)
