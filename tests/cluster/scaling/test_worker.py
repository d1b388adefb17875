"""One worker of a launch, in this process."""

import dataclasses
import io
import json
import os

import pytest
import torch

from cluster.lab.scaling_table import NO_EXCHANGE, Cell, Row
from cluster.scaling import worker as worker_module
from cluster.scaling.folder import Identity
from cluster.scaling.steps import Training
from cluster.scaling.worker import CellWorker, Settings, machine_kind
from cluster.worker.world import World
from pipeline.command import InputError

CELL = Cell(
    model="alexnet_small",
    image_size=26,
    num_classes=10,
    precision="float32",
    num_workers=1,
    global_batch_size=4,
    exchange=NO_EXCHANGE,
)
WORLD = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def threads():
    """Restore what a worker sets for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bfloat16"},
        {"loader": "real", "encoding": "raw"},
        pytest.param({"model": "alexnet_bn", "image_size": 224, "global_batch_size": 32}, marks=pytest.mark.slow),
    ],
    ids=["noise", "bfloat16", "pictures", "groups"],
)
def test_a_measured_cell_fills_its_row(changes, raw_dataset):
    worker = CellWorker(WORLD, Settings(num_steps=2, num_warm_up_steps=2, data={"raw": str(raw_dataset.path)}))
    worker.prepare(dataclasses.replace(CELL, **changes))
    worker.warm_up()
    fields = worker.measure()
    worker.close()
    by_others = {"throttled_seconds", "exposed_seconds", "images_per_second", "expected_bytes", "operations", "block"}
    by_others |= {"place", "num_steps", "code", "versions", "machine", "time"}
    of_link = {"link_latency_seconds", "link_bytes_per_second", "link_deviation"}
    of_row = {field.name for field in dataclasses.fields(Row)} - {field.name for field in dataclasses.fields(Cell)}
    assert fields.keys() == of_row - by_others - of_link
    parts = sum(fields[f"{part}_seconds"] for part in ("data_wait", "forward", "backward", "update"))
    assert 0 < parts <= 1.5 * fields["step_seconds"]  # medians of each
    assert fields["step_seconds"] <= fields["step_seconds_p90"]
    assert fields["cpu_seconds"] > 0


def test_a_real_loaders_steps_are_timed_when_its_queue_was_made_under_the_limit(raw_dataset):
    worker = CellWorker(WORLD, Settings(num_steps=1, num_warm_up_steps=2, data={"raw": str(raw_dataset.path)}))
    worker.prepare(dataclasses.replace(CELL, loader="real", encoding="raw"))
    loader = worker._training._loader
    num_ahead = loader._thread._queue.maxsize + loader._graph_config.prefetch_batches + 1
    assert loader.samples_seen == CELL.global_batch_size
    worker.warm_up()
    assert loader.samples_seen >= (1 + num_ahead) * CELL.global_batch_size
    worker.close()


def _summary(steps_of_workers, **options):
    worker = CellWorker(WORLD, Settings(num_steps=3, num_warm_up_steps=2))
    worker._counts_bytes = True
    of_workers = [
        {"steps": steps, "sent_bytes": 10 * n, "cpu_seconds": n, "peak_memory_bytes": n}
        for n, steps in enumerate(steps_of_workers, 1)
    ]
    return worker._summary(of_workers, **options)


def _step(step, data_wait=0.0, forward=0.0, backward=0.0, blocked=0.0, update=0.0):
    return {
        "step": step, "data_wait": data_wait, "forward": forward, "backward": backward, "blocked": blocked,
        "update": update,
    }  # fmt: skip


def test_all_parts_of_a_step_are_of_the_worker_that_the_others_wait_for():
    # The first waits for data, the second computes long, and both end together, since each step ends with an exchange.
    first = _step(10.0, data_wait=7.0, forward=1.0, backward=2.0, blocked=1.0)
    second = _step(9.8, data_wait=0.1, forward=3.0, backward=6.0, blocked=4.0, update=0.7)
    fields = _summary([[first] * 3, [second] * 3], sees_waits=True)
    assert {part: fields[f"{part}_seconds"] for part in first} == first
    assert fields["mean_step_seconds"] == pytest.approx((9.0 + 5.8) / 2)
    unseen = _summary([[first | {"blocked": 0.0}] * 3, [second | {"blocked": 0.0}] * 3], sees_waits=False)
    assert (unseen["step_seconds"], unseen["blocked_seconds"], unseen["mean_step_seconds"]) == (10.0, None, None)


def test_the_slowest_worker_of_each_step_counts_and_the_mean_beside_it():
    fields = _summary([list(map(_step, own)) for own in ([1.0, 9.0, 2.0], [5.0, 1.0, 3.0])], sees_waits=True)
    assert (fields["step_seconds"], fields["step_seconds_p90"]) == (5.0, pytest.approx(5 + 0.8 * 4))
    assert fields["mean_step_seconds"] == 3.0  # the median of 3, 5 and 2.5
    assert (fields["cpu_seconds"], fields["peak_memory_bytes"], fields["sent_bytes"]) == (3, 2, 15)


def test_a_step_without_an_exchange_is_held_up_by_none():
    worker = CellWorker(WORLD, Settings(num_steps=2, num_warm_up_steps=2))
    worker.prepare(CELL)
    fields = worker.measure()
    assert fields["blocked_seconds"] == 0
    assert fields["mean_step_seconds"] == fields["step_seconds"]
    worker.close()


def test_without_an_exchange_batch_normalisation_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)  # before the step, where all begin
    cell = dataclasses.replace(CELL, model="alexnet_bn", image_size=224, global_batch_size=64, num_workers=2)
    training = Training(cell, World(0, 2, WORLD.device), num_steps=1)
    training.step()  # a collective operation would fail: there is no other worker
    training.close()


def test_on_gpus_no_bytes_are_counted_and_memory_is_that_of_tensors(monkeypatch):
    worker = CellWorker(WORLD, Settings(num_steps=1, num_warm_up_steps=2))
    networks = {str: ["one", "another"], int: [1, 1]}
    monkeypatch.setattr(worker_module, "_gathered", lambda world, value: networks[type(value)])
    for device, counts in (("cpu", True), ("cuda:0", False)):
        worker._world = World(0, 2, torch.device(device))
        assert worker._can_count() is counts
    calls = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(device))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    worker_module._free_memory(worker._world.device)
    assert calls == ["empty", worker._world.device]
    assert worker_module._peak_memory_bytes(worker._world.device) == 7


def test_workers_of_unlike_machines_or_code_are_refused(monkeypatch):
    worker = CellWorker(WORLD, Settings(num_steps=1, num_warm_up_steps=2))
    own = worker.identity()
    assert own.machine == machine_kind(WORLD.device) and len(own.code) == 64
    for other, words in ((Identity("x", own.machine), "by other code"), (Identity(own.code, "A card"), "on .* not ")):
        monkeypatch.setattr(worker_module, "_gathered", lambda world, value, other=other: [value, other])
        with pytest.raises(InputError, match=f"workers of one launch were measured {words}"):
            worker.identity()


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs /proc/self/clear_refs")
def test_the_peak_of_a_cell_is_its_own():
    large = torch.ones(100_000_000)
    peak = worker_module._peak_memory_bytes(WORLD.device)
    del large
    worker_module._free_memory(WORLD.device)
    assert peak - worker_module._peak_memory_bytes(WORLD.device) > 300_000_000


def test_orders_are_followed_until_they_end(monkeypatch):
    monkeypatch.setattr(worker_module.dist, "barrier", lambda: None)
    monkeypatch.setattr(worker_module.dist, "broadcast_object_list", lambda values, src: None)
    orders = [{"order": "prepare", "cell": dataclasses.asdict(CELL)}, {"order": "warm_up"}, {"order": "measure"}]
    answers = io.StringIO()
    worker = CellWorker(WORLD, Settings(num_steps=1, num_warm_up_steps=2))
    worker_module.serve(worker, WORLD, io.StringIO("".join(json.dumps(o) + "\n" for o in orders)), answers)
    lines = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert Identity(**lines[0]) == worker.identity()
    assert lines[1:3] == [{}, {}] and lines[3]["step_seconds"] > 0
