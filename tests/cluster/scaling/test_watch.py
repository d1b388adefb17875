"""What is seen of a training step from outside."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cluster.scaling import watch as watch_module
from cluster.scaling.watch import Watch


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
    monkeypatch.setattr(watch_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
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
    assert (watch.data_wait_seconds, watch.forward_seconds, watch.backward_seconds) == (0, 0, 3 + 4)
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


def test_the_parts_of_a_step_are_told_apart_and_the_device_is_waited_for(clock):
    model, lag = _Model(), [0.0]

    def take(seconds: float) -> None:
        lag[0] += seconds  # given to the device, which works later

    def wait_for_device() -> None:
        clock.now, lag[0] = clock.now + lag[0], 0.0

    model.last.register_hook(lambda _: take(4))
    model.optimizer.register_step_pre_hook(lambda *_: take(8))
    with Watch(model, wait_for_device) as watch:
        with watch.waiting_for_data():
            take(1)
        take(2)
        (model.first * model.last).sum().backward()
        model.optimizer.step()
        take(16)
    assert (watch.data_wait_seconds, watch.forward_seconds) == (1, 2)
    assert (watch.backward_seconds, watch.update_seconds, watch.step_seconds) == (4, 8, 31)
