"""The exchange of factors: the same gradients as all-reduce, whatever the layers, the precision and the workers."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from runs import CONFIG
from torch import nn
from torch.nn import functional
from worker_group import run_group
from worker_process import run_workers

from cluster.exchange.factors import Factors
from cluster.run.run_folder import RunFolder
from model.optim_config import OptimizerConfig
from pipeline.online.order import RankShare

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


class Net(nn.Module):
    """Dense layers of three kinds: without biases, over rows of a sample, and an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.rows = nn.Linear(6, 5, bias=False)
        self.dense = nn.Linear(4 * 6 * 5, 7)

    def forward(self, images: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        return self.dense(self.rows(self.conv(images).relu()).flatten(1))


class OnlyDense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 7))

    def forward(self, images: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        return self.layers(images)


SIZES = {1: [13], 2: [6, 7], 3: [4, 4, 5]}  # of the parts of a batch of 13


def _samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(13, 1, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.randint(7, (13,), generator=generator)


def _model(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    return {"net": Net, "dense": OnlyDense}[name]().to(dtype)


def gradients(name: str, dtype_name: str, num_pieces: str, autocast: str, path: str) -> None:
    """Compare two steps' gradients with those of one process on the whole batch, which the test has written."""
    dtype, rank, world_size = getattr(torch, dtype_name), dist.get_rank(), dist.get_world_size()
    share = RankShare(13, rank, world_size)
    assert share.range_from(0)[1] - share.range_from(0)[0] == SIZES[world_size][rank]
    model = _model(name, dtype)
    exchange = Factors(share)
    wrapped = exchange.wrap(model)
    assert list(model.state_dict()) == list(_model(name, dtype).state_dict())
    images, labels = (values[slice(*share.range_from(0))] for values in _samples())
    expected = torch.load(path)
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        pieces = [
            (images[indices].to(dtype), labels[indices])
            for indices in torch.arange(len(images)).tensor_split(int(num_pieces))
        ]
        for index, piece in enumerate(pieces):
            with nullcontext() if index == len(pieces) - 1 else exchange.accumulating():
                (exchange.loss_scale * _loss_sum(wrapped, *piece, autocast)).backward()
        exchange.finish()
        for key, parameter in model.named_parameters():
            assert parameter.grad.dtype == dtype
            error = (parameter.grad - expected[key]).abs().max() / expected[key].abs().max()
            assert error < (0.02 if autocast else 1e-13), (key, error)


def _loss_sum(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, autocast: str) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        logits = model(images)
    return functional.cross_entropy(
        logits if images.dtype == torch.float64 else logits.float(), labels, reduction="sum"
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_pieces", [1, 3])
@pytest.mark.parametrize(
    ("name", "dtype", "autocast"), [("net", "float64", ""), ("dense", "float64", ""), ("net", "float32", "yes")]
)
def test_gradients_are_those_of_the_whole_batch(tmp_path, world_size, num_pieces, name, dtype, autocast):
    model = _model(name, getattr(torch, dtype))
    images, labels = _samples()
    (_loss_sum(model, images.to(getattr(torch, dtype)), labels, autocast) / 13).backward()
    torch.save({key: p.grad for key, p in model.named_parameters()}, tmp_path / "expected.pt")
    run_group(world_size, __file__, "gradients", name, dtype, str(num_pieces), autocast, tmp_path / "expected.pt")


def twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(4, 4)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.dense(self.dense(values))

    model = Twice()
    wrapped = Factors(RankShare(2, dist.get_rank(), 2)).wrap(model)
    with pytest.raises(RuntimeError, match="used twice in a forward pass"):
        wrapped(torch.ones(1, 4))
    with torch.no_grad():  # evaluations need no exchange
        wrapped(torch.ones(1, 4))
    model.eval()
    wrapped(torch.ones(1, 4))


def test_a_layer_that_is_used_twice_is_refused_in_training_alone():
    run_group(2, __file__, "twice")
