"""The cost of the exact exchanges: bytes against figures worked out by hand, and what a link makes of them."""

import dataclasses

import pytest
from torch import nn

from cluster.exchange.cost import Computation, Link, Workload, predict_step
from cluster.exchange.dense_layers import dense_chain, dense_layers
from model.counted_network import CountedNetwork
from model.registry import ModelConfig, outline_network
from model.variants import VARIANTS


def _workload(global_batch_size: int, name: str = "alexnet_2012", activation_bytes: int = 4) -> Workload:
    model = outline_network(ModelConfig(name=name), num_classes=1000)
    return Workload.of(model, global_batch_size, activation_bytes)


@pytest.mark.parametrize(
    ("num_workers", "allreduce", "hybrid", "factors"),  # MB at a batch of 128, and at 1024
    [
        (2, 243.9, (16.4, 65.9), (16.1, 63.8)),
        (4, 365.8, (22.8, 84.6), (24.2, 95.7)),
        (8, 426.8, (25.6, 90.5), (28.3, 111.7)),
    ],
)
def test_bytes_of_alexnet_are_those_worked_out_by_hand(num_workers, allreduce, hybrid, factors):
    for place, batch in enumerate((128, 1024)):
        workload = _workload(batch)
        assert workload.num_bytes("allreduce", num_workers) / 1e6 == pytest.approx(allreduce, abs=0.06)
        assert workload.num_bytes("hybrid", num_workers) / 1e6 == pytest.approx(hybrid[place], abs=0.06)
        assert workload.num_bytes("factors", num_workers) / 1e6 == pytest.approx(factors[place], abs=0.06)


def test_bfloat16_halves_the_activations_alone():
    full, half = _workload(128), _workload(128, activation_bytes=2)
    assert half.num_bytes("allreduce", 2) == full.num_bytes("allreduce", 2)
    for strategy in ("factors", "hybrid"):
        saved = full.num_bytes(strategy, 2) - half.num_bytes(strategy, 2)
        assert saved == full.num_activation_bytes(strategy, 2) / 2


def test_at_a_batch_of_32768_allreduce_sends_least():
    workload = _workload(32768)
    assert workload.num_bytes("allreduce", 4) < min(workload.num_bytes(name, 4) for name in ("factors", "hybrid"))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_can_be_cut_and_one_worker_exchanges_nothing(name):
    workload = _workload(128, name)
    assert workload.choices(1) == ("allreduce",)
    assert workload.choices(4) == ("allreduce", "factors", "hybrid")
    assert workload.choices(600) == ("allreduce", "factors")  # fewer than eight units for a worker


def test_other_networks():
    bare = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    apart = nn.ModuleDict({"a": nn.Sequential(nn.Linear(8, 8)), "b": nn.Sequential(nn.Linear(8, 8))})
    odd = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64))
    open_end = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    alone = nn.ModuleDict({"fc": nn.Linear(64, 64)})
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    chain = CountedNetwork(layers, seed=0, batch_norm_group=1)
    assert Workload.of(bare, 8).choices(2) == ("allreduce",)
    for model in (apart, odd, open_end, alone):
        assert dense_chain(model) is None
        assert Workload.of(model, 8).choices(2) == ("allreduce", "factors")
    found = dense_chain(chain)
    assert (found.name, found.first, len(found.layers)) == ("network", 1, 3)


def test_layers_whose_weights_others_use_are_not_treated_as_dense():
    attention = nn.MultiheadAttention(16, 2)  # uses its layer's weights by itself
    tied = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    tied[2].weight = tied[0].weight
    twice = nn.Sequential(layer := nn.Linear(16, 16), nn.ReLU(), layer)
    assert dense_layers(attention) == dense_layers(twice) == {}
    assert list(dense_layers(tied)) == ["4"]
    assert dense_chain(tied).first == 4 and dense_chain(twice) is None


def test_gradients_hide_behind_the_last_micro_batch_alone():
    workload = _workload(128)
    pieces = dataclasses.replace(workload, num_pieces=4)
    link = Link(0.0, workload.num_bytes("allreduce", 2) / 0.9)  # backward takes a second
    assert predict_step("allreduce", workload, 2, link, COMPUTATION) == COMPUTATION.step_seconds
    assert predict_step("allreduce", pieces, 2, link, COMPUTATION) == pytest.approx(COMPUTATION.step_seconds + 0.65)
    slow = Link(0.1, 1e12)
    waits = [
        predict_step("hybrid", load, 2, slow, COMPUTATION) - COMPUTATION.step_seconds for load in (workload, pieces)
    ]
    assert waits[1] > 3.9 * waits[0] > 0


COMPUTATION = Computation(step_seconds=1.5, operations_per_second=1e11)


def test_a_fast_link_is_for_allreduce_and_a_slow_one_is_not():
    workload = _workload(128)

    def fastest(gigabits: float) -> str:
        link = Link(1e-4, gigabits * 1e9 / 8)
        return min(
            ("allreduce", "factors", "hybrid"), key=lambda name: predict_step(name, workload, 2, link, COMPUTATION)
        )

    assert fastest(100) == "allreduce"
    assert {fastest(gigabits) for gigabits in (1, 0.1, 0.01)} <= {"factors", "hybrid"}


def test_what_hides_behind_the_backward_pass_costs_nothing_and_the_rest_its_time():
    workload = _workload(128)
    sent = workload.num_bytes("allreduce", 2)

    def predicted(strategy, bytes_per_second):
        return predict_step(strategy, workload, 2, Link(0.0, bytes_per_second), COMPUTATION)

    assert predicted("allreduce", sent / 0.9) == COMPUTATION.step_seconds  # backward takes a second
    assert predicted("allreduce", sent / 3) == pytest.approx(COMPUTATION.step_seconds + 2)
    extra = 2 * workload.num_dense * 64 / COMPUTATION.operations_per_second
    assert predicted("factors", 1e12) == pytest.approx(COMPUTATION.step_seconds + extra)
    waits = workload.num_activation_bytes("hybrid", 2) / 1e9
    assert predicted("hybrid", 1e9) == pytest.approx(COMPUTATION.step_seconds + waits)
