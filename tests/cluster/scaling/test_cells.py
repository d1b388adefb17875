"""Which cells an experiment has, and in which order a block measures them."""

import dataclasses
import itertools

import pytest

from cluster.lab.scaling_table import NO_EXCHANGE, Cell
from cluster.scaling.cells import (
    computation_cells,
    expected_bytes,
    in_random_order,
    launches_in_random_order,
    like_gigabits,
    make_plan,
    num_warm_up_steps,
    operations_of,
)
from cluster.scaling.estimate import estimate, guessed_step
from cluster.scaling.experiment import Experiment
from cluster.scaling.like import LikeCluster
from pipeline.command import InputError

EXPERIMENT = Experiment(
    workers=(1, 2, 4),
    global_batch_sizes=(32,),
    batch_sizes_per_worker=(8,),
    models=("alexnet_2012",),
    exchanges=("allreduce", "factors", "hybrid", "bf16"),
    links=(0.25, 1.0),
    cpus_per_worker=0.4,
)


def _plan(experiment: Experiment, encodings=()):
    return make_plan(experiment, computation_cells(experiment, encodings, 1000))


def test_strong_and_weak_cells_share_what_belongs_to_both():
    plan = _plan(EXPERIMENT)
    assert len(set(plan.cells)) == len(plan.cells)
    batches = {n: sorted({c.global_batch_size for c in plan.cells if c.num_workers == n}) for n in (1, 2, 4)}
    assert batches == {1: [8, 32], 2: [16, 32], 4: [32]}


def test_each_computation_has_one_cell_without_an_exchange_and_a_single_worker_no_other():
    plan = _plan(EXPERIMENT)
    alone = [cell for cell in plan.cells if cell.exchange == NO_EXCHANGE]
    assert {cell.without_exchange for cell in plan.cells} == set(alone)
    assert all(cell.gigabits_per_second == 0 for cell in alone)
    assert all(cell.exchange == NO_EXCHANGE for cell in plan.cells if cell.num_workers == 1)
    exchanging = {(c.exchange, c.gigabits_per_second) for c in plan.cells if c.num_workers == 4} - {(NO_EXCHANGE, 0)}
    assert exchanging == set(itertools.product(EXPERIMENT.exchanges, EXPERIMENT.links))
    assert any(line.startswith("1 worker: ") for line in plan.left_out)
    assert str(plan.cells[0]) == "alexnet_2012, float32, 1 worker, batch 8, none"


def test_an_exchange_that_is_all_reduce_for_a_model_is_left_out_and_named():
    experiment = Experiment(workers=(2,), global_batch_sizes=(2,), models=("alexnet_small:26",))
    assert {cell.exchange for cell in _plan(experiment).cells} == {"none", "allreduce", "factors", "hybrid"}
    many = Experiment(workers=(2048,), global_batch_sizes=(2048,), models=("alexnet_small:26",), num_classes=10)
    plan = make_plan(many, computation_cells(many, (), 10))
    assert {cell.exchange for cell in plan.cells} == {"none", "allreduce", "factors"}
    assert [line for line in plan.left_out if line.startswith("hybrid with alexnet_small on 2048 workers: ")]


def test_a_batch_that_so_many_workers_cannot_share_is_left_out_and_named():
    experiment = Experiment(workers=(1, 4), global_batch_sizes=(32,), models=("alexnet_bn",))
    plan = _plan(experiment)
    assert {cell.num_workers for cell in plan.cells} == {1}  # a group of 32 stays on one worker
    assert any("4 workers: a batch of 32 can't be shared by so many in groups of 32" in line for line in plan.left_out)


def test_real_cells_have_each_encoding_and_synthetic_ones_none():
    experiment = Experiment(workers=(1,), global_batch_sizes=(8,), loaders=("synthetic", "real"))
    cells = _plan(experiment, ("jpeg", "raw")).cells
    assert [(cell.loader, cell.encoding) for cell in cells] == [("real", "jpeg"), ("real", "raw"), ("synthetic", "")]


def test_a_real_loader_has_used_up_what_it_made_ahead_before_the_timed_steps():
    experiment = Experiment(workers=(1,), global_batch_sizes=(8,), loaders=("synthetic", "real"))
    real, noise = _plan(experiment, ("jpeg",)).cells
    assert [num_warm_up_steps(noise, declared) for declared in (2, 20)] == [2, 20]
    # 3 finished, 3 in work and 1 between them after the first step
    assert [num_warm_up_steps(real, declared) for declared in (2, 20)] == [1 + 7, 20]
    steps = dataclasses.replace(experiment, warm_up_steps=2, steps=6)
    of_each = [estimate(steps, [[cell]], [], {cell: 1000.0}).seconds for cell in (noise, real)]
    assert of_each[1] - of_each[0] == 6 * 1000.0


def test_a_guess_is_the_cost_models_with_a_perfect_overlap():
    cells = {cell.exchange: cell for cell in _plan(EXPERIMENT).cells if cell.num_workers == 4}
    guesses = {name: guessed_step(dataclasses.replace(cell, gigabits_per_second=1.0)) for name, cell in cells.items()}
    computing = operations_of(cells["none"]) / 4 / (0.4 * 100e9)
    assert guesses["none"] == pytest.approx(computing)
    assert guesses["factors"] < guesses["bf16"] < guesses["allreduce"]
    hidden = expected_bytes(cells["allreduce"]) / 1.25e8 - 2 / 3 * computing
    assert guesses["allreduce"] == pytest.approx(computing + hidden, rel=0.01)
    as_it_is = dataclasses.replace(cells["allreduce"], gigabits_per_second=0.0)
    assert guesses["none"] <= guessed_step(as_it_is) < guesses["allreduce"]


def test_a_block_has_an_order_of_its_own_that_the_seed_decides():
    cells = [cell for cell in _plan(EXPERIMENT).cells if cell.num_workers == 4]
    orders = [in_random_order(cells, seed, block) for seed, block in itertools.product((0, 1), (0, 1, 2))]
    assert len({tuple(order) for order in orders}) == 6
    assert all(sorted(order) == sorted(cells) for order in orders)
    assert in_random_order(reversed(cells), 0, 1) == orders[1]
    launches = {tuple(launches_in_random_order((4, 2, 1, 2), 0, block)) for block in range(9)}
    assert len(launches) > 1 and all(sorted(launch) == [1, 2, 4] for launch in launches)


def test_bytes_and_operations_are_those_of_the_formulas():
    cell = Cell(
        model="alexnet_2012",
        image_size=224,
        num_classes=1000,
        precision="float32",
        num_workers=2,
        global_batch_size=128,
        exchange="allreduce",
    )
    parameters = 60_965_224
    values = {name: expected_bytes(Cell(**vars(cell) | {"exchange": name})) for name in ("allreduce", "bf16", "none")}
    assert values == {"allreduce": 4 * parameters, "bf16": 2 * parameters, "none": 0}
    assert expected_bytes(Cell(**vars(cell) | {"num_workers": 1})) == 0
    in_bfloat16 = Cell(**vars(cell) | {"exchange": "factors", "precision": "bfloat16"})
    assert expected_bytes(in_bfloat16) < expected_bytes(Cell(**vars(in_bfloat16) | {"precision": "float32"}))
    assert operations_of(cell) == 128 * operations_of(Cell(**vars(cell) | {"global_batch_size": 1}))


def test_a_cluster_is_read():
    cluster = LikeCluster.parse("8 x 20000 img/s @ 100gbit")
    assert cluster == LikeCluster(8, 20000, 100)
    assert LikeCluster.parse("2x15.5 images/s @ 500 Mbit/s") == LikeCluster(2, 15.5, 0.5)
    assert cluster.passes_seconds(64) == 64 / 160_000


def _like(experiment: Experiment, passes_seconds: float) -> float:
    cell = next(cell for cell in computation_cells(experiment, (), 1000) if cell.num_workers == 2)
    return like_gigabits(experiment, cell, passes_seconds)


def test_links_like_a_clusters_give_its_r_on_a_link_as_swept():
    experiment = Experiment(workers=(2,), batch_sizes_per_worker=(8,), like="8 x 20000 img/s @ 100gbit")
    # r there: 2 * 7 / 8 * 4 bytes per parameter at 95 % of 12.5 GB/s, to 64 samples at 160,000 per second.
    ratio = 2 * 7 / 8 * 4 * 60_965_224 / (0.95 * 12.5e9) / (64 / 160_000)
    payload = 0.95 * _like(experiment, 3.0) * 1e9 / 8
    assert 2 / 2 * 4 * 60_965_224 / payload / 3.0 == pytest.approx(ratio, rel=0.01)
    # With 32 samples on all 8 there, they compute for half as long.
    less = dataclasses.replace(experiment, like_batch=32)
    assert _like(less, 3.0) == pytest.approx(_like(experiment, 3.0) / 2, rel=0.01)


def test_a_cluster_that_needs_a_link_faster_than_any_is_refused_with_what_to_change():
    experiment = Experiment(workers=(2,), batch_sizes_per_worker=(8,), like="8 x 20 img/s @ 400gbit")
    with pytest.raises(
        InputError, match=r"r is 0\.0\d+ there, .* links of 1\d\d Gbit/s between 2 workers .* at most 100 "
    ):
        _like(experiment, 0.8)
    assert _like(experiment, 3.0) < 100


@pytest.mark.parametrize(
    "text", ["8 x 20000", "1 x 20000 img/s @ 100gbit", "8 x 0 img/s @ 1gbit", "8 x 2.. img/s @ 1gbit"]
)
def test_a_cluster_that_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match=r'must be like "8 x 20000 img/s @ 100gbit"'):
        LikeCluster.parse(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": ()}, "workers=()"),
        ({"workers": (0,)}, "must be at least 1"),
        ({"models": ("alexnet",)}, "there is no model 'alexnet'"),
        ({"models": ("alexnet_small:big",)}, "NAME or NAME:PIXELS"),
        ({"models": ("alexnet_2012:26",)}, "26"),
        ({"exchanges": ("powersgd",)}, "'powersgd'"),
        ({"links": (0.0,)}, "above 0"),
        ({"links": (1, 0.5, 1.0)}, "links: 1 0.5 1.0 has a value twice"),
        ({"workers": (2, 2)}, "workers: 2 2 has a value twice"),
        ({"global_batch_sizes": (8, 8)}, "has a value twice"),
        ({"batch_sizes_per_worker": (8, 8)}, "has a value twice"),
        ({"models": ("alexnet_2012", "alexnet_2012:224")}, "alexnet_2012 alexnet_2012:224 has a value twice"),
        ({"precisions": ("float32", "float32")}, "has a value twice"),
        ({"exchanges": ("bf16", "bf16")}, "has a value twice"),
        ({"loaders": ("real", "real")}, "has a value twice"),
        ({"links": (1.0,), "like": "8 x 20000 img/s @ 100gbit"}, "leave out one"),
        ({"like_batch": 8}, "goes with like"),
        ({"like": "fast"}, "must be like"),
        ({"warm_up_steps": 1}, "at least 2"),
        ({"cpus_per_worker": 0.05}, "at least 0.1"),
        ({"blocks": 0}, "at least 1"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=r"=|:") as refused:
        Experiment(**fields)
    assert message in str(refused.value)
