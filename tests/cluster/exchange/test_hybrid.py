"""The exchange with dense layers that are cut: gradients, norms, checkpoints, evaluations and whole runs."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runs import ALONE, CONFIG, entries
from torch import nn
from torch.nn import functional
from worker_group import run_group

from cluster.exchange.hybrid import Hybrid
from cluster.run.run_folder import RunFolder
from cluster.worker.learner import Learner
from cluster.worker.options import WorkerOptions
from cluster.worker.training import Trainer, train
from cluster.worker.world import World
from model.dropout import CountedDropout
from model.lars import squared_norms
from model.optim_config import OptimizerConfig
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.online.order import RankShare

BATCH_SIZE = 13
OPTIMIZERS = {
    "sgd": dataclasses.replace(CONFIG.optimizer, weight_decay=5e-3),
    "lars": OptimizerConfig(name="lars", learning_rate=1.0, weight_decay=5e-4),
    "adam": OptimizerConfig(name="adam", learning_rate=1e-4, weight_decay=5e-4),
}
UNEVEN = dataclasses.replace(CONFIG, global_batch_size=BATCH_SIZE, num_epochs=2)


class Net(nn.Module):
    """Like alexnet_owt: dropout before the first dense layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3, padding=1)
        self.classifier = nn.Sequential(
            CountedDropout(0.5, seed=4, layer=0),
            nn.Linear(5 * 6 * 6, 44),
            nn.ReLU(inplace=True),
            CountedDropout(0.5, seed=4, layer=3),
            nn.Linear(44, 33, bias=False),
            nn.Tanh(),
            nn.Linear(33, 7),
        )

    def forward(self, images: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        values = self.conv(images).relu().flatten(1)
        for layer in self.classifier:
            values = layer(values, positions) if isinstance(layer, CountedDropout) else layer(values)
        return values


class OnlyDense(Net):
    """No parameter but those of the chain, of which all are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Identity()
        self.classifier = nn.Sequential(nn.Linear(36, 33), nn.ReLU(), nn.Linear(33, 7, bias=False))


def _model(kind: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    return kind().to(dtype)


def _loss_sum(model: nn.Module, batch: tuple[torch.Tensor, ...], *, is_bfloat16: bool) -> torch.Tensor:
    images, labels, positions = batch
    with torch.autocast("cpu", torch.bfloat16) if is_bfloat16 else nullcontext():
        logits = model(images, positions)
    return functional.cross_entropy(logits.float() if is_bfloat16 else logits, labels, reduction="sum")


def gradients() -> None:
    for kind in (Net, OnlyDense):
        for micro_batch_size in (None, 3):
            _check_gradients(kind, micro_batch_size, torch.float64, is_bfloat16=False)
    _check_gradients(Net, None, torch.float32, is_bfloat16=True)


def _check_gradients(
    kind: type[nn.Module], micro_batch_size: int | None, dtype: torch.dtype, *, is_bfloat16: bool
) -> None:
    """Compare two steps' gradients with those of the whole batch, and their norms."""
    share = RankShare(BATCH_SIZE, dist.get_rank(), dist.get_world_size(), micro_batch_size=micro_batch_size)
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(BATCH_SIZE, 1, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    batch = images, torch.randint(7, (BATCH_SIZE,), generator=generator), torch.arange(BATCH_SIZE) * 2**31
    whole, model = _model(kind, dtype), _model(kind, dtype)
    (_loss_sum(whole, batch, is_bfloat16=is_bfloat16) / BATCH_SIZE).backward()
    exchange = Hybrid(share)
    wrapped = exchange.wrap(model)
    names = list(whole.state_dict())
    assert list(model.state_dict()) == names
    own = [values[slice(*share.range_from(0))] for values in batch]
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        for index, piece in enumerate(share.pieces):
            with nullcontext() if index == len(share.pieces) - 1 else exchange.accumulating():
                loss_sum = _loss_sum(wrapped, tuple(values[piece] for values in own), is_bfloat16=is_bfloat16)
                (exchange.loss_scale * loss_sum).backward()
        exchange.finish()
        for name, parameter in model.named_parameters():
            expected = whole.get_parameter(name).grad
            assert exchange.is_cut(name) == (name.startswith("classifier") and name != "classifier.6.bias")
            error = (parameter.grad - exchange.part(name, expected)).abs().max() / expected.abs().max()
            assert error < (0.03 if is_bfloat16 else 1e-13), (name, error)
    parameters = list(model.parameters())
    norms = exchange.squared_norms(parameters, [parameter.grad for parameter in parameters])
    expected = squared_norms(list(whole.parameters()), [parameter.grad for parameter in whole.parameters()])
    torch.testing.assert_close(norms, expected, rtol=0.1 if is_bfloat16 else 1e-12, atol=0)


@pytest.mark.parametrize("world_size", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 4))])
def test_gradients_and_norms_are_those_of_the_whole_batch(world_size):
    run_group(world_size, __file__, "gradients")


@pytest.fixture(scope="module")
def alone(raw_dataset, tmp_path_factory) -> Path:
    """Runs of one worker, in a folder by the optimiser's name."""
    folder = tmp_path_factory.mktemp("alone")
    for name, optimizer in OPTIMIZERS.items():
        config = dataclasses.replace(UNEVEN, optimizer=optimizer)
        run = RunFolder.create(folder / name, config, raw_dataset)
        trainer = Trainer(raw_dataset, run, ALONE)
        trainer.run()
        trainer.close()
    return folder


def train_all(dataset: str, folder: str, alone: str) -> None:
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    for run in sorted(Path(folder).iterdir()):
        micro_batch_size = 3 if run.name == "sgd" else None
        train(Path(dataset), run, world, WorkerOptions(exchange="hybrid", micro_batch_size=micro_batch_size))
    for run in sorted(Path(alone).iterdir()):
        _restore_and_keep(RunFolder.open(run), Dataset.open(Path(dataset)).num_classes, world)


def _restore_and_keep(run: RunFolder, num_classes: int, world: World) -> None:
    """Cut a checkpoint into parts, and put it together again."""
    state = run.checkpoints.load_latest()
    learner = Learner(run.config, num_classes, 10, world)
    learner.connect(Hybrid(RankShare(BATCH_SIZE, world.rank, world.world_size)), state)
    assert learner.has_shared_state
    again = learner.state_dict()
    if world.is_first:
        _assert_equal(again["model"], state["model"])
        for index, kept in state["optimizer"]["state"].items():
            _assert_equal(again["optimizer"]["state"][index], kept)


def _assert_equal(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_runs_and_checkpoints_are_those_of_one_worker(alone, raw_dataset, tmp_path, world_size):
    for name in OPTIMIZERS:
        RunFolder.create(tmp_path / name, RunFolder.open(alone / name).config, raw_dataset)
    run_group(world_size, __file__, "train_all", raw_dataset.path, tmp_path, alone)
    for name in OPTIMIZERS:
        run, reference = RunFolder.open(tmp_path / name), RunFolder.open(alone / name)
        assert entries(run, "start")[0]["exchange"] == "hybrid"
        assert not entries(run, "warning") and not entries(run, "aligned")
        mine, theirs = (each.checkpoints.load_latest() for each in (run, reference))
        assert list(mine["model"]) == list(theirs["model"])
        for key, expected in theirs["model"].items():
            error = (mine["model"][key] - expected).abs().max()
            assert float(error) <= 1e-10 * float(expected.abs().max()), (name, key)
        assert entries(run, "evaluation")
        for mine, theirs in zip(entries(run, "evaluation"), entries(reference, "evaluation"), strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-10)
            assert mine["num_samples"] == theirs["num_samples"]


def test_micro_batches_that_do_not_fit_are_refused_with_the_size_that_does():
    for world_size, size in ((2, 1), (3, 1)):
        with pytest.raises(InputError, match=r"--micro-batch-size 1 does not fit .* use --micro-batch-size 2 or more"):
            Hybrid(RankShare(BATCH_SIZE, 0, world_size, micro_batch_size=size))
        Hybrid(RankShare(BATCH_SIZE, 0, world_size, micro_batch_size=2))
    Hybrid(RankShare(12, 0, 2, micro_batch_size=1))


def test_a_model_without_a_chain_is_refused():
    with pytest.raises(ValueError, match="do not form a chain"):
        Hybrid(RankShare(2, 0, 2)).wrap(nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16)))


def wrong_pieces() -> None:
    wrapped = Hybrid(RankShare(4, dist.get_rank(), 1)).wrap(_model(OnlyDense, torch.float64))
    with pytest.raises(RuntimeError, match="a piece of 3 samples; the share has one of 4"):
        wrapped(torch.zeros(3, 1, 6, 6, dtype=torch.float64))


def test_a_piece_of_another_size_than_the_shares_is_refused_before_anything_travels():
    run_group(1, __file__, "wrong_pieces")
