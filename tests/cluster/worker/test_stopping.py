"""Workers are asked to stop by a file, and agree on the step after which they do."""

import dataclasses
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


def _worker(rank: int, world_size: int, port: int, results) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    backend = process_group_backend("cpu")
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    asked = 0

    def wants_to_stop() -> bool:
        nonlocal asked
        asked += 1
        return rank == 2 and asked == 4  # one of three, before its fourth step

    world = World(rank, world_size, torch.device("cpu"), wants_to_stop)
    agreement = StopAgreement(world)
    reached = 0
    for step in range(1, 7):
        agreement.ask()
        world.sum(torch.ones(1000))  # the step's own exchange, between question and answer
        if agreement.is_reached():
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
    results.put((rank, reached, lost))


def test_all_workers_stop_after_the_step_before_which_one_wanted_to_and_know_a_lost_peer():
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
    assert sorted([results.get(), results.get()]) == [(0, 4, True), (2, 4, True)]
