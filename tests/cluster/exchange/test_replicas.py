"""The comparison of the workers' weights: rounding is mended and told, more is an error that names rank and tensor."""

import math
import socket

import pytest
import torch
import torch.distributed as dist
from runs import CONFIG
from worker_group import run_group

from cluster.exchange.allreduce import AllReduce
from cluster.exchange.factors import Factors
from cluster.exchange.local_sgd import LocalSgd
from cluster.exchange.replicas import ReplicasDiffer, align_replicas, copy_from_first
from cluster.worker.learner import Learner
from cluster.worker.world import World
from pipeline.online.order import RankShare


def _tensors(dtype: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(8, 3, 5, 5, generator=generator, dtype=torch.float64)
    tensors = {
        "conv": weights.to(memory_format=torch.channels_last),
        "dense": torch.randn(40, 30, generator=generator, dtype=torch.float64),
        "empty": torch.zeros(0, 3, dtype=torch.float64),
    }
    return {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()} | {"count": torch.tensor(3)}


# dtype, tensor that differs on the third worker, factor of it - 1, what all workers say.
CASES = [
    ("float32", "", 0, "equal"),
    ("float64", "", 0, "equal"),
    ("float32", "conv", 1e-6, "1 1e-06"),
    ("float64", "dense", 1e-12, "1 1e-12"),
    ("float32", "dense", 1e-3, "error"),
    ("float64", "conv", 1e-7, "error"),
    ("float32", "conv", math.nan, "error"),
]


def compare_all() -> None:
    """Compare three workers' tensors in each case."""
    for dtype, name, change, expected in CASES:
        assert _compared(dtype, name, change) == expected, (dtype, name, change)
    _first_differs()
    _one_ulp_each_way()


def _compared(dtype: str, name: str, change: float) -> str:
    tensors, expected = _tensors(dtype), _tensors(dtype)
    if name and dist.get_rank() == 2:
        tensors[name].mul_(1 + change)
    try:
        drift = align_replicas(tensors)
    except ReplicasDiffer as error:
        here = socket.gethostname()
        told = f"worker 2 (on {here}) has other weights than worker 0 (on {here}): {name} differs by "
        return "error" if str(error).startswith(told) else str(error)
    for key, value in expected.items():
        assert torch.equal(tensors[key], value)
    return "equal" if drift is None else f"{drift.num_tensors} {drift.largest:.0e}"


def _first_differs() -> None:
    tensor = torch.ones(3) * (1 if dist.get_rank() else 2)
    with pytest.raises(ReplicasDiffer, match=r"^worker 0 \(on \S+\) has other weights than all others: weights"):
        align_replicas({"weights": tensor})
    assert align_replicas({}) is None


def _one_ulp_each_way() -> None:
    """Compare roundings in opposite directions, whose sum is zero."""
    tensor = torch.ones(4, dtype=torch.float32) + torch.arange(4) / 8
    if dist.get_rank() == 1:
        bits = tensor.view(torch.int32)
        bits[0] += 1
        bits[3] -= 1
    drift = align_replicas({"weights": tensor})
    assert drift is not None and drift.num_tensors == 1


def test_rounding_is_mended_and_told_and_more_names_the_worker_and_the_tensor():
    run_group(3, __file__, "compare_all")


def learners() -> None:
    for make in ("allreduce", "factors", "local"):
        _learner(make)
    for make in ("allreduce", "factors"):
        _other_start(make)
    _copy_all()


def _learner(make: str) -> None:
    """Let the second worker's weights and momentum differ a little, and align them."""
    rank = dist.get_rank()
    learner = Learner(CONFIG, 4, 10, World(rank, 2, torch.device("cpu")))
    share = RankShare(12, rank, 2)
    exchange = {"allreduce": AllReduce, "factors": Factors, "local": lambda share: LocalSgd(share, 2, 0, 10)}[make](
        share
    )
    exchange.begin(0)
    learner.connect(exchange)
    weight = next(learner.model.parameters())
    for parameter in learner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optimizer.step()
    assert learner.align() is None
    momentum = learner.optimizer.state[weight]["momentum_buffer"]
    expected = weight.detach().clone(), momentum.clone()
    if rank:
        with torch.no_grad():
            weight.mul_(1 + 1e-12)
            momentum.mul_(2)
    drift = learner.align()
    assert drift.num_tensors == 1 and 0 < drift.largest < 2e-12
    assert torch.equal(weight, expected[0])
    assert torch.equal(momentum, expected[1] * (2 if rank and make == "local" else 1))


def _other_start(make: str) -> None:
    learner = Learner(CONFIG, 4, 10, World(dist.get_rank(), 2, torch.device("cpu")))
    with torch.no_grad():
        next(learner.model.parameters()).mul_(1 + 1e-12 * dist.get_rank())
    learner.connect({"allreduce": AllReduce, "factors": Factors}[make](RankShare(12, dist.get_rank(), 2)))
    assert learner.align() is not None


def _copy_all() -> None:
    tensors = {"b": torch.full((3, 2), float(dist.get_rank())), "a": torch.full((2,), 10.0 + dist.get_rank())}
    copy_from_first(tensors)
    assert tensors["a"].tolist() == [10, 10] and not tensors["b"].any()


def test_a_learner_takes_the_first_workers_weights_and_optimiser_also_at_the_start():
    run_group(2, __file__, "learners")
