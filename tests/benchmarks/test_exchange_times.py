"""What `benchmarks.exchange_overlap` and `benchmarks.exchange_links` measure, on hosts of this machine."""

import pytest
from needs import makes_hosts

from benchmarks import exchange_links, exchange_overlap
from benchmarks.exchange_links import find_crossings
from benchmarks.exchange_process import Case
from cluster.exchange.cost import Computation, Link, predict_step
from cluster.lab.hosts import hosts
from cluster.worker.exchanges import EXACT

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


def test_crossings_are_where_the_predictions_meet():
    passes, latency = 1.0, 0.001
    crossings = find_crossings(CASE, 2, Link(latency, 1e9), passes)
    assert crossings
    computation = Computation(passes, CASE.num_operations / 2 / passes)
    for crossing in crossings:
        assert crossing.below != crossing.above
        for factor, expected in ((0.97, crossing.below), (1.03, crossing.above)):
            link = Link(latency, factor * crossing.gigabits_per_second * 1e9 / 8)
            seconds = {
                name: predict_step(name, CASE.workload, 2, link, computation) for name in CASE.workload.choices(2)
            }
            assert min(seconds, key=seconds.get) == expected
    assert str(crossings[-1]).startswith("2 workers: ") and str(crossings[-1]).endswith("allreduce above")
