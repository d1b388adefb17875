"""What `benchmarks.exchange_overlap` and `benchmarks.exchange_links` measure, on hosts of this machine."""

import contextlib
import dataclasses

import pytest
from needs import makes_hosts

from benchmarks import exchange_links, exchange_overlap
from benchmarks.exchange_links import model_of
from benchmarks.exchange_process import Case
from cluster.exchange.cost import Computation, Link, predict_step
from cluster.lab.cost_model.kind import Kind
from cluster.lab.hosts import hosts
from cluster.lab.link_sweep import LinkFit
from cluster.worker.exchanges import EXACT


class _Lab(list):
    def shape(self, link):
        pass


CASE = Case(exchange="allreduce", measured="times", global_batch_size=32)
SMALL = {"model": "alexnet_small", "image_size": 26, "steps": 1, "batch_size": 4}


@makes_hosts
@pytest.mark.slow
@pytest.mark.parametrize("exchange", [*EXACT, "bf16"])
def test_a_step_with_an_exchange_is_held_up_and_one_without_is_not(exchange):
    measured = exchange_overlap.measure(exchange_overlap.Arguments(**SMALL), exchange, 2)
    assert 0 < measured["blocked_seconds"] < measured["step_seconds"]
    assert (measured["extra_seconds"] != 0) == (exchange == "factors")
    floor = measured["alone_seconds"] + measured["extra_seconds"]
    assert measured["ratio_to_alone_and_extra"] == measured["step_seconds"] / floor


@makes_hosts
@pytest.mark.slow
def test_a_cell_has_a_step_and_its_prediction():
    arguments = exchange_links.Arguments(**SMALL)
    with hosts(2) as lab:
        measured = exchange_links.measure(arguments, "allreduce", lab, Link(0.5, 1e9))
    assert measured["predicted_seconds"] > 0.5 + measured["update_seconds"]  # one waits for the link's latency
    assert 0 < measured["update_seconds"] < measured["alone_seconds"]


def test_a_prediction_is_the_cost_models_with_a_perfect_overlap():
    link = Link(0.001, 1e9 / 8)
    for exchange in ("allreduce", "factors", "hybrid"):
        cell = dataclasses.replace(CASE.cell(2), exchange=exchange, gigabits_per_second=1.0)
        kind = Kind.of(cell)
        computation = Computation(1.0, 16 * kind.operations_per_sample)
        expected = predict_step(exchange, kind.workload(32), 2, link, computation)
        assert model_of(cell, link, 1.0).predict(cell).step_seconds == pytest.approx(expected)


def test_crossings_are_where_the_predictions_meet(monkeypatch, capsys):
    """The whole command, with hosts, links and steps that are made up."""
    documents = []
    times = {"step_seconds": 2.0, "alone_step_seconds": 1.1, "alone_update_seconds": 0.1, "blocked_seconds": 1.0}
    monkeypatch.setattr(exchange_links, "hosts", lambda number: contextlib.nullcontext(_Lab(range(number))))
    monkeypatch.setattr(exchange_links, "accepted_link", lambda lab: LinkFit(Link(0.001, 1e9 / 8), 0.01))
    monkeypatch.setattr(exchange_links, "run_case", lambda case, lab: times)
    monkeypatch.setattr(exchange_links, "publish", documents.append)
    assert exchange_links.main(["--workers", "2", "--links", "1"]) == 0
    kind = Kind.of(CASE.cell(2))
    halved = dataclasses.replace(kind.workload(32), gradient_bytes=2)
    computation = Computation(1.0, 16 * kind.operations_per_sample)
    bf16 = 0.1 + predict_step("allreduce", halved, 2, Link(0.0, 1e9 / 8), computation)
    found = documents[0]["results"]["bf16, 2 workers, 1 Gbit/s"]["predicted_seconds"]["median"]
    assert found == pytest.approx(bf16, abs=0.02)  # beside the latency
    crossings = documents[0]["crossings"]
    assert crossings and {tuple(crossing) for crossing in crossings} == {
        ("num_workers", "gigabits_per_second", "below", "above")
    }
    cell = CASE.cell(2)
    model = model_of(cell, Link(0.001, 1e9 / 8), 1.0)
    for crossing in crossings:
        assert crossing["below"] != crossing["above"]
        for factor, expected in ((0.99, crossing["below"]), (1.01, crossing["above"])):
            gigabits = factor * crossing["gigabits_per_second"]
            cells = [
                dataclasses.replace(cell, exchange=name, gigabits_per_second=gigabits)
                for name in ("allreduce", "factors", "hybrid")
            ]
            assert min(cells, key=lambda one: model.predict(one).step_seconds).exchange == expected
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("2 workers: ") and last.endswith("allreduce above")
