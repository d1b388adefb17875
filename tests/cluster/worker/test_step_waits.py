"""Nothing in a training step makes the process wait for a GPU."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from coded_source import CodedSource
from runs import ALONE, STORED_SIZES, entries
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.run.config import Precision
from cluster.run.run_folder import RunFolder
from cluster.worker.training import Trainer
from cluster.worker.world import World
from jobs.recipes import RECIPES
from pipeline.dataset import Dataset
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.pictures.encode import EncodingConfig

BATCH_SIZE = 16
# Operators whose result the process must know, or whose shape follows from values.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")
BY_MASK = ("index", "index_put", "index_put_", "_index_put_impl_")


@pytest.fixture(scope="module")
def make_trainer(tmp_path_factory):
    """Make a trainer of a recipe on noise, for small batches."""
    datasets: dict[int, Dataset] = {}

    def make(name: str, world: World, precision: Precision) -> Trainer:
        size = STORED_SIZES[name]
        if size not in datasets:
            out = tmp_path_factory.mktemp(f"stored{size}")
            source = CodedSource(out, num_train=4 * BATCH_SIZE, num_val=0, size=size)
            stored = EncodingConfig(encoding="raw", size=None)
            shard_dataset(source, out, ShardingConfig(encoding=stored, val_fraction=0))
            datasets[size] = Dataset.open(out)
        recipe = RECIPES[name]()
        config = replace(
            recipe,
            model=replace(recipe.model, batch_norm_group=8),
            global_batch_size=BATCH_SIZE,
            num_epochs=100,
            precision=precision,
            synthetic_data=True,
        )
        run = RunFolder.create(tmp_path_factory.mktemp("run") / name, config, datasets[size])
        return Trainer(datasets[size], run, world)

    return make


class Watch(TorchDispatchMode):
    """Notes the operators that would make the process wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        has_mask = name in BY_MASK and any(index is not None and index.dtype == torch.bool for index in args[1])
        if has_mask or name in WAITING:
            self.found.append(name)
        return operator(*args, **kwargs or {})


@pytest.mark.parametrize(
    "use", [lambda t: t[0].item(), lambda t: bool((t > 0).all()), lambda t: t[t > 0], lambda t: t.nonzero()]
)
def test_what_would_wait_is_found(use: Callable[[torch.Tensor], object]) -> None:
    with Watch() as watch:
        use(torch.ones(3))
    assert watch.found


@pytest.mark.parametrize("name", ["small_demo", pytest.param("bn_lars_32k", marks=pytest.mark.slow)])
def test_a_step_asks_for_no_result(name: str, make_trainer) -> None:
    trainer = make_trainer(name, ALONE, "float32")
    trainer.make_step()
    batch = next(trainer.loader)
    with Watch() as watch:
        trainer.learner.step([batch], BATCH_SIZE, 0)
    trainer.close()
    assert watch.found == []


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", RECIPES)
def test_steps_lines_and_a_checkpoint_wait_for_no_gpu(name: str, precision: Precision, make_trainer) -> None:
    trainer = make_trainer(name, World(0, 1, torch.device("cuda", 0)), precision)
    trainer.make_step()  # the first one loads libraries and compiles kernels
    trainer.write_line()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            for _ in range(10):
                trainer.make_step()
            trainer.write_line()
        trainer.save_checkpoint()
        trainer.make_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.close()
    assert [line["step"] for line in entries(trainer._run, "step")] == [1, 11, 21]
    assert trainer._run.checkpoints.latest_step() == 21
