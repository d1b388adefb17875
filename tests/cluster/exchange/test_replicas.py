"""The comparison of the workers' weights: rounding is mended and told, more is an error that names rank and tensor."""

import socket
import sys

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


def compare(dtype: str, name: str, change: str) -> None:
    tensors, expected = _tensors(dtype), _tensors(dtype)
    if name and dist.get_rank() == 2:
        tensors[name].mul_(1 + float(change))
    try:
        drift = align_replicas(tensors)
    except ReplicasDiffer as error:
        sys.stdout.write(f"error: {error}")
        return
    for key, value in expected.items():
        assert torch.equal(tensors[key], value)
    sys.stdout.write("equal" if drift is None else f"{drift.num_tensors} {drift.largest:.0e}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_tensors_are_equal(dtype):
    assert run_group(3, __file__, "compare", dtype, "", "0") == ["equal"] * 3


@pytest.mark.parametrize(("dtype", "name", "change"), [("float32", "conv", 1e-6), ("float64", "dense", 1e-12)])
def test_rounding_is_mended_and_told(dtype, name, change):
    assert run_group(3, __file__, "compare", dtype, name, str(change)) == [f"1 {change:.0e}"] * 3


@pytest.mark.parametrize(
    ("dtype", "name", "change"), [("float32", "dense", 1e-3), ("float64", "conv", 1e-7), ("float32", "conv", "nan")]
)
def test_more_than_rounding_names_the_rank_and_the_tensor(dtype, name, change):
    for printed in run_group(3, __file__, "compare", dtype, name, str(change)):
        here = socket.gethostname()
        expected = f"error: worker 2 (on {here}) has other weights than worker 0 (on {here}): {name} differs by "
        assert printed.startswith(expected)


def first_differs() -> None:
    tensor = torch.ones(3) * (1 if dist.get_rank() else 2)
    with pytest.raises(ReplicasDiffer, match=r"^worker 0 \(on \S+\) has other weights than all others: weights"):
        align_replicas({"weights": tensor})
    assert align_replicas({}) is None


def test_the_first_worker_is_named_if_all_others_differ_from_it():
    run_group(3, __file__, "first_differs")


def learner(make: str) -> None:
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


@pytest.mark.parametrize("make", ["allreduce", "factors", "local"])
def test_a_learner_takes_the_first_workers_weights_and_optimiser(make):
    run_group(2, __file__, "learner", make)


def other_start(make: str) -> None:
    learner = Learner(CONFIG, 4, 10, World(dist.get_rank(), 2, torch.device("cpu")))
    with torch.no_grad():
        next(learner.model.parameters()).mul_(1 + 1e-12 * dist.get_rank())
    learner.connect({"allreduce": AllReduce, "factors": Factors}[make](RankShare(12, dist.get_rank(), 2)))
    assert learner.align() is not None


@pytest.mark.parametrize("make", ["allreduce", "factors"])
def test_weights_that_differ_at_the_start_are_noticed(make):
    run_group(2, __file__, "other_start", make)


def copy_all() -> None:
    tensors = {"b": torch.full((3, 2), float(dist.get_rank())), "a": torch.full((2,), 10.0 + dist.get_rank())}
    copy_from_first(tensors)
    assert tensors["a"].tolist() == [10, 10] and not tensors["b"].any()


def test_the_first_workers_tensors_are_copied_to_all():
    run_group(2, __file__, "copy_all")


def one_ulp_each_way() -> None:
    tensor = torch.ones(4, dtype=torch.float32) + torch.arange(4) / 8
    if dist.get_rank() == 1:
        bits = tensor.view(torch.int32)
        bits[0] += 1
        bits[3] -= 1
    drift = align_replicas({"weights": tensor})
    assert drift is not None and drift.num_tensors == 1


def test_roundings_in_opposite_directions_do_not_cancel():
    run_group(2, __file__, "one_ulp_each_way")
