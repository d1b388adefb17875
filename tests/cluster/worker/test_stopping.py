"""Workers are asked to stop by a file, and agree on the step after which they do."""

import dataclasses
import itertools
import multiprocessing
import os
import socket

import torch
import torch.distributed as dist
from runs import ALONE

from cluster.run.stop_request import StopRequest
from cluster.worker.stopping import StopAgreement
from cluster.worker.torch_quirks import is_lost_peer
from cluster.worker.world import World, process_group_backend


def test_a_request_is_what_was_written_last(tmp_path):
    request = StopRequest(tmp_path / "stop-request")
    assert not request.is_made()  # nobody has written yet
    for _ in range(2):
        request.make()
        assert StopRequest(tmp_path / "stop-request").is_made()
        request.clear()
        assert not request.is_made()


def test_a_worker_alone_agrees_with_itself():
    wishes = iter([False, True, False])
    agreement = StopAgreement(dataclasses.replace(ALONE, wants_to_stop=lambda: next(wishes)))
    reached = []
    for _ in range(3):
        agreement.ask()
        reached.append(agreement.is_reached())
    assert reached == [False, True, False]


class Clock:
    """A clock that only shows what it is set to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _steps_that_ask(step_seconds: list[float], renewed_before: int | None = None) -> list[int]:
    """Return the steps, counted from 1, before which a worker is asked, if they take these times."""
    asked, clock = [], Clock()
    agreement = StopAgreement(dataclasses.replace(ALONE, wants_to_stop=lambda: bool(asked.append(step))), clock)
    for step, seconds in enumerate(step_seconds, 1):
        if step == renewed_before:
            agreement.renew()
        agreement.ask()
        clock.now += seconds
        agreement.is_reached()
    return asked


def test_slow_steps_each_ask() -> None:
    assert _steps_that_ask([1.0] * 5) == [1, 2, 3, 4, 5]
    assert _steps_that_ask([30.0] * 5) == [1, 2, 3, 4, 5]


def test_fast_steps_ask_once_a_second_after_a_start() -> None:
    asked = _steps_that_ask([0.01] * 1000)
    assert asked[:8] == [1, 2, 4, 8, 16, 32, 64, 128]  # it at most doubles
    assert {after - before for before, after in itertools.pairwise(asked[8:])} == {100}


def test_steps_that_become_slower_ask_at_once_more_often() -> None:
    asked = _steps_that_ask([0.01] * 1000 + [0.5] * 1000)
    assert asked[-1] - asked[-2] == 2


def test_other_steps_are_asked_from_the_first_on() -> None:
    assert _steps_that_ask([0.01] * 20, renewed_before=11) == [1, 2, 4, 8, 11, 12, 14, 18]


def test_a_checkpoint_is_told_with_an_exchange_alone() -> None:
    clock = Clock()
    agreement = StopAgreement(ALONE, clock)
    told = []
    for is_time in (False, True, True, True):
        agreement.ask(is_time)
        agreement.is_reached()
        told.append(agreement.is_checkpoint_time)
    assert told == [False, True, False, True]  # the third step asks nothing


def _worker(rank: int, world_size: int, port: int, results) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    backend = process_group_backend("cpu")
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    asked = 0

    def wants_to_stop() -> bool:
        nonlocal asked
        asked += 1
        return rank == 2 and asked == 4  # one of three, at the fourth question

    world = World(rank, world_size, torch.device("cpu"), wants_to_stop)
    clock = Clock()
    agreement = StopAgreement(world, clock)
    reached, told = 0, []
    for step in range(1, 20):
        agreement.ask(is_checkpoint_time=step > 2)
        world.sum(torch.ones(1000))  # the step's own exchange, between question and answer
        clock.now += 0.1 + 0.3 * (rank == 1)  # whose steps take so long that two of them are a second
        is_reached = agreement.is_reached()
        told.append(agreement.is_checkpoint_time)
        if is_reached:
            reached = step
            break
    lost = None
    if rank == 1:
        os._exit(0)  # the others meet a lost peer
    try:
        for _ in range(100):
            world.sum(torch.ones(1))
    except RuntimeError as error:
        lost = is_lost_peer(error)
    results.put((rank, reached, told, lost))
    os._exit(0)  # an orderly exit, with a peer lost, sometimes ends in an abort of gloo's threads


def test_workers_of_different_speed_ask_before_the_same_steps_stop_together_and_know_a_lost_peer():
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [context.Process(target=_worker, args=(rank, 3, port, results)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    told = [False, False, False, True, False, True]  # asked before the steps 1, 2, 4 and 6
    assert sorted([results.get(), results.get()]) == [(0, 6, told, True), (2, 6, told, True)]
