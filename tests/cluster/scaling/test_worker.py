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
        {"model": "alexnet_bn", "image_size": 224, "global_batch_size": 32},
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


def test_the_slowest_worker_of_each_step_counts():
    worker = CellWorker(WORLD, Settings(num_steps=3, num_warm_up_steps=2))
    parts = dict.fromkeys(("data_wait", "forward", "backward", "blocked", "update"), 0.1)
    steps = [[1.0, 9.0, 2.0], [5.0, 1.0, 3.0]]
    of_workers = [
        {"steps": [parts | {"step": s} for s in own], "sent_bytes": 10 * n, "cpu_seconds": n, "peak_memory_bytes": n}
        for n, own in enumerate(steps, 1)
    ]
    fields = worker._summary(of_workers, blocks_thread=True)
    assert (fields["step_seconds"], fields["step_seconds_p90"]) == (5.0, pytest.approx(5 + 0.8 * 4))
    assert (fields["cpu_seconds"], fields["peak_memory_bytes"]) == (3, 2)
    worker._counts_bytes = True
    assert worker._summary(of_workers, blocks_thread=False)["sent_bytes"] == 15
    assert worker._summary(of_workers, blocks_thread=False)["blocked_seconds"] is None


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
    peak = worker_module._peak_memory_bytes()
    del large
    worker_module._free_memory()
    assert peak - worker_module._peak_memory_bytes() > 300_000_000


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
