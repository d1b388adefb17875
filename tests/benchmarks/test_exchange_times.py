"""What `benchmarks.exchange_overlap` and `benchmarks.exchange_links` measure, on hosts of this machine."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from needs import makes_hosts
from torch import Tensor

from benchmarks import exchange_links, exchange_overlap, exchange_watch
from benchmarks.exchange_links import find_crossings
from benchmarks.exchange_process import Case
from benchmarks.exchange_watch import Watch
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


class _Model(torch.nn.Module):
    """Two parameters and their optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.model = self
        self.first, self.last = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        self.optimizer = torch.optim.SGD([self.first, self.last], lr=0.1)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The watch's clock, which stands still unless its `now` is moved."""
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr(exchange_watch, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_only_waiting_counts_as_held_up(clock):
    model = _Model()
    engine = torch.autograd.Variable._execution_engine  # with which DistributedDataParallel queues its wait

    def take(seconds: float) -> None:
        clock.now += seconds

    model.last.register_hook(lambda _: take(1))  # computation of a gradient
    model.optimizer.register_step_pre_hook(lambda *_: take(8))
    step, backward, wait = type(model.optimizer).step, Tensor.backward, dist.Work.wait
    with Watch(model) as watch:
        model.first.register_post_accumulate_grad_hook(lambda _: engine.queue_callback(lambda: take(2)))
        (model.first * model.last).sum().backward()
        take(4)
        model.optimizer.step()
    assert (watch.step_seconds, watch.blocked_seconds, watch.update_seconds) == (15, 2, 8)
    assert (type(model.optimizer).step, Tensor.backward, dist.Work.wait) == (step, backward, wait)
    assert model.optimizer.step.__func__ is step


def test_a_wait_for_a_collective_operation_counts_as_held_up(clock, monkeypatch):
    def wait(work: object) -> None:
        clock.now += 2

    monkeypatch.setattr(dist.Work, "wait", wait)
    with Watch(_Model()) as watch:
        clock.now += 1
        dist.Work.wait(None)
    assert (watch.step_seconds, watch.blocked_seconds) == (3, 2)


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
