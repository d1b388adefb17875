"""The cost model: a known law is recovered from its rows, and holds for cells that were not among them."""

import dataclasses
import math

import numpy as np
import pytest
from scaling_rows import EXCHANGES, KIND, LAW, cells_of, make_rows

from cluster.exchange.cost import Computation, Link, predict_step
from cluster.lab.cost_model.fit import fit_cost_model, fit_network, fit_pace
from cluster.lab.cost_model.kind import Kind, by_kind, samples_per_worker
from cluster.lab.cost_model.model import CostModel, Network, Overlap, Pace
from cluster.lab.efficiency import by_cell, step_seconds
from cluster.lab.scaling_table import NO_EXCHANGE
from pipeline.command import InputError

CELLS = cells_of(batches=(32, 64))


def test_a_law_is_recovered_from_its_rows():
    found = fit_cost_model(make_rows(CELLS))
    assert found.kind == KIND
    assert dataclasses.asdict(found.pace) == pytest.approx(dataclasses.asdict(LAW.pace), rel=1e-3)
    assert dataclasses.asdict(found.overlap) == pytest.approx(dataclasses.asdict(LAW.overlap), rel=1e-3)
    assert found.network.message_seconds == pytest.approx(LAW.network.message_seconds)
    for gigabits, share in found.network.shares:
        assert share == pytest.approx(LAW.network.link(gigabits, 2).bytes_per_second / gigabits * 8e-9)


def test_noise_of_some_percent_moves_the_fit_as_little():
    found = fit_cost_model(make_rows(CELLS, noise=0.02))
    assert found.overlap.kappa == pytest.approx(LAW.overlap.kappa, abs=0.06)
    assert found.overlap.hidden_share == pytest.approx(LAW.overlap.hidden_share, abs=0.15)
    for cell in cells_of(workers=(8,), batches=(128,), links=(0.5,)):
        assert found.predict(cell).step_seconds == pytest.approx(LAW.predict(cell).step_seconds, rel=0.04), str(cell)


def test_the_passes_are_a_mean_workers():
    rows = [
        dataclasses.replace(row, step_seconds=row.step_seconds * (1.2 if row.num_workers > 1 else 1))
        for row in make_rows(CELLS)
        if row.exchange == NO_EXCHANGE
    ]
    assert dataclasses.asdict(fit_pace(rows)) == pytest.approx(dataclasses.asdict(LAW.pace), rel=1e-3)


def test_workers_that_scatter_are_waited_for_once():
    cells = [cell for number in (1, 2, 4, 8) for cell in cells_of((number,), (16 * number, 64 * number), (0.1, 1.0))]
    law = dataclasses.replace(LAW, overlap=dataclasses.replace(LAW.overlap, tail=0.0))
    random = np.random.Generator(np.random.Philox(0))
    rows = []
    for row in make_rows(cells, law):
        passes = law.pace.passes_seconds(samples_per_worker(row))
        late_SW = 0.06 * passes * random.standard_normal((200, row.num_workers))  # each worker's own, step by step
        slowest, mean = (float(np.median(of_step(late_SW, axis=1))) for of_step in (np.max, np.mean))
        rows.append(
            dataclasses.replace(
                row, step_seconds=row.step_seconds + slowest, mean_step_seconds=row.mean_step_seconds + mean
            )
        )
    found = fit_cost_model([row for row in rows if row.num_workers < 8])
    assert found.pace.passes_seconds(32) == pytest.approx(law.pace.passes_seconds(32), rel=0.01)
    for cell, members in by_cell(rows).items():
        assert found.predict(cell).step_seconds == pytest.approx(step_seconds(members), rel=0.04), str(cell)


def test_of_one_batch_per_worker_all_time_is_its_samples():
    rows = make_rows([cell for number in (1, 2, 4) for cell in cells_of((number,), (number,), (1.0,))])
    found = fit_pace(rows)
    assert (found.fixed_seconds, found.seconds_per_sample) == (0, pytest.approx(LAW.pace.passes_seconds(1)))


@pytest.mark.parametrize("exchange", ["allreduce", "factors", "hybrid"])
def test_with_a_perfect_overlap_it_is_the_prediction_that_chooses_an_exchange(exchange):
    model = dataclasses.replace(LAW, overlap=Overlap(), pace=Pace(fixed_seconds=0.01, seconds_per_sample=0.002))
    for cell in cells_of(workers=(2, 4), links=(0.1, 1.0), exchanges=(exchange,)):
        if cell.exchange == exchange:
            passes = 0.01 + 0.002 * samples_per_worker(cell)
            operations = KIND.operations_per_sample * samples_per_worker(cell)
            expected = predict_step(
                exchange,
                KIND.workload(cell.global_batch_size),
                cell.num_workers,
                LAW.network.link(cell.gigabits_per_second, cell.num_workers),
                Computation(passes, operations / passes),
            )
            assert model.predict(cell).step_seconds == pytest.approx(expected)


def test_what_is_fitted_costs_what_it_says():
    cell = next(cell for cell in cells_of(links=(0.1,)) if cell.exchange == "allreduce")
    terms = LAW.terms(cell)
    hidden, behind = terms.hidden_seconds, 2 / 3 * terms.passes_seconds
    assert hidden > behind > 0
    assert terms.parts(Overlap()).exchange_seconds == pytest.approx(hidden - behind)
    assert terms.parts(Overlap(kappa=0.5)).exchange_seconds == pytest.approx(1.5 * hidden - behind)
    assert terms.parts(Overlap(hidden_share=0.5)).exchange_seconds == pytest.approx(hidden - behind / 2)
    late = 0.1 * math.sqrt(2 * math.log(cell.num_workers)) * terms.passes_seconds
    found = terms.parts(Overlap(tail=0.1))
    assert (found.exchange_seconds, found.slowest_seconds) == (pytest.approx(hidden - behind), pytest.approx(late))
    assert LAW.terms(cell.without_exchange).parts(Overlap(tail=0.1)).slowest_seconds == pytest.approx(late)
    awaited = LAW.terms(dataclasses.replace(cell, exchange="hybrid"))
    assert awaited.parts(Overlap()).exchange_seconds >= awaited.awaited_seconds > 0


def test_bf16_sends_half_of_all_reduce_in_as_many_operations():
    full, half = (KIND.traffic(name, 4, 64) for name in ("allreduce", "bf16"))
    assert (half.num_hidden, half.hidden_bytes) == (full.num_hidden, full.hidden_bytes / 2)
    with pytest.raises(ValueError, match="powersgd"):
        KIND.traffic("powersgd", 4, 64)


def test_by_hybrid_a_worker_updates_its_part_of_the_dense_weights():
    workload = KIND.workload(64)
    whole, part = (LAW.terms(cell).update_seconds for cell in cells_of(workers=(4,), links=(1.0,))[1::3])
    assert whole == LAW.pace.update_seconds
    held = (workload.num_other + workload.num_dense / 4) / (workload.num_other + workload.num_dense)
    assert part == pytest.approx(LAW.pace.update_seconds * held)


def test_a_loader_that_is_waited_for_is_found_and_binds():
    slow = dataclasses.replace(LAW, pace=dataclasses.replace(LAW.pace, loader_images_per_second=200.0))
    rows = make_rows(cells_of(links=(1.0,)), slow)
    found = fit_pace(rows)
    assert found.loader_images_per_second == pytest.approx(200.0)
    assert found.seconds_per_sample * 32 + found.fixed_seconds == pytest.approx(LAW.pace.passes_seconds(32), rel=1e-6)
    alone = next(cell for cell in cells_of() if cell.num_workers == 2)
    assert dataclasses.replace(LAW, pace=found).images_per_second(alone) == pytest.approx(400.0)
    assert math.isinf(fit_pace(make_rows(CELLS)).loader_images_per_second)


def test_bandwidths_are_interpolated_and_messages_follow_one_another():
    network = Network(message_seconds=1e-3, shares=((0.1, 0.8), (10.0, 0.6)))
    assert network.link(1.0, 2) == Link(2e-3, pytest.approx(0.7e9 / 8))
    assert network.link(100.0, 5) == Link(8e-3, pytest.approx(0.6e11 / 8))
    assert network.link(0.01, 5).bytes_per_second == pytest.approx(0.8e7 / 8)
    with pytest.raises(ValueError, match=r"gigabits_per_second=0\.0: must be more than 0"):
        network.link(0.0, 2)


def test_what_is_missing_is_named():
    rows = make_rows(CELLS)
    with pytest.raises(InputError, match="no cell without an exchange"):
        fit_cost_model([row for row in rows if row.exchange != NO_EXCHANGE])
    with pytest.raises(InputError, match="no cell with several workers, an exchange and a measured link"):
        fit_network([row for row in rows if row.exchange == NO_EXCHANGE])


def test_rows_are_told_apart_by_their_kind():
    other = dataclasses.replace(KIND, precision="bfloat16")
    law = CostModel(kind=other, pace=LAW.pace, network=LAW.network)
    rows = make_rows(cells_of(links=(1.0,))) + make_rows(cells_of(links=(1.0,), kind=other), law)
    groups = by_kind(rows)
    assert set(groups) == {KIND, other} and len(groups[KIND]) == len(groups[other])
    assert str(Kind.of(rows[0])) == "alexnet_small, 28 px, float32, 0.5 CPUs per worker"
    assert other.workload(64).activation_bytes == 2
    assert set(EXCHANGES) < {row.exchange for row in rows}
