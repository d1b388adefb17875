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
from pipeline.command import InputError
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


# Other numbers of workers, and all exchanges: test_exactness.py.
@pytest.mark.slow
@pytest.mark.parametrize(("micro_batch_size", "optimizer"), [("", LARS), ("3", CONFIG.optimizer)])
def test_a_run_by_factors_is_the_run_by_allreduce(raw_dataset, tmp_path, micro_batch_size, optimizer):
    config = dataclasses.replace(UNEVEN, optimizer=optimizer)
    runs = {name: RunFolder.create(tmp_path / name, config, raw_dataset) for name in ("allreduce", "factors")}
    for name, run in runs.items():
        run_workers(2, "train", raw_dataset.path, run.path, micro_batch_size, name)
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


CASES = [
    (name, dtype, autocast, num_pieces)
    for name, dtype, autocast in (
        ("net", torch.float64, False),
        ("dense", torch.float64, False),
        ("net", torch.float32, True),
    )
    for num_pieces in (1, 3)
]


def gradients() -> None:
    for case in CASES:
        _compare_gradients(*case)


def _compare_gradients(name: str, dtype: torch.dtype, autocast: bool, num_pieces: int) -> None:
    """Compare two steps' gradients with those of an ordinary model on the whole batch."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    share = RankShare(13, rank, world_size)
    first, end = share.range_from(0)
    assert end - first == SIZES[world_size][rank]
    images, labels = _samples()
    expected, model = _model(name, dtype), _model(name, dtype)
    (_loss_sum(expected, images.to(dtype), labels, autocast) / 13).backward()
    exchange = Factors(share)
    wrapped = exchange.wrap(model)
    assert list(model.state_dict()) == list(expected.state_dict())
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        pieces = torch.arange(first, end).tensor_split(num_pieces)
        for index, piece in enumerate(pieces):
            with nullcontext() if index == num_pieces - 1 else exchange.accumulating():
                loss_sum = _loss_sum(wrapped, images[piece].to(dtype), labels[piece], autocast)
                (exchange.loss_scale * loss_sum).backward()
        exchange.finish()
        for (key, parameter), other in zip(model.named_parameters(), expected.parameters(), strict=True):
            assert parameter.grad.dtype == dtype
            error = (parameter.grad - other.grad).abs().max() / other.grad.abs().max()
            assert error < (0.02 if autocast else 1e-13), (name, num_pieces, key, error)


def _loss_sum(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, autocast: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        logits = model(images)
    return functional.cross_entropy(
        logits if images.dtype == torch.float64 else logits.float(), labels, reduction="sum"
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_gradients_are_those_of_the_whole_batch(world_size):
    run_group(world_size, __file__, "gradients")


def twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(4, 4)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.dense(self.dense(values))

    model = Twice()
    wrapped = Factors(RankShare(2, dist.get_rank(), 2)).wrap(model)
    with pytest.raises(InputError, match="used twice in a forward pass"):
        wrapped(torch.ones(1, 4))
    with torch.no_grad():  # evaluations need no exchange
        wrapped(torch.ones(1, 4))
    model.eval()
    wrapped(torch.ones(1, 4))


def test_a_layer_that_is_used_twice_is_refused_in_training_alone():
    run_group(2, __file__, "twice")


class Aside(nn.Module):
    """A network that does something with a dense layer behind its back."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 4)
        self.way = way

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        inputs = values * 2
        if self.way == "uses its weights alone":
            return functional.linear(inputs, self.dense.weight)
        outputs = self.dense(inputs)
        if self.way == "uses its weights, too":
            return outputs @ self.dense.weight
        inputs += 1
        return outputs


def aside() -> None:
    for way in ("uses its weights, too", "uses its weights alone", "changes its inputs"):
        exchange = Factors(RankShare(2, dist.get_rank(), 2))
        wrapped = exchange.wrap(Aside(way))
        outputs = wrapped(torch.ones(1, 4, requires_grad=True)).sum()
        if way != "changes its inputs":
            outputs.backward()
            with pytest.raises(InputError, match="also used outside of the layer"):
                exchange.finish()
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                outputs.backward()


def test_what_would_make_gradients_wrong_is_refused():
    run_group(2, __file__, "aside")


def frozen() -> None:
    for is_rest_frozen in (False, True):
        model = Net()
        model.rows.requires_grad_(False)
        model.conv.requires_grad_(not is_rest_frozen)
        exchange = Factors(RankShare(2, dist.get_rank(), 2))
        wrapped = exchange.wrap(model)
        wrapped(torch.ones(1, 1, 6, 6)).sum().backward()
        exchange.finish()
        trained = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == ({"dense"} if is_rest_frozen else {"conv", "dense"})
        assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


def test_layers_that_are_not_trained_stay_so():
    run_group(2, __file__, "frozen")
