"""How loaders end: nobody holds them, their process ends, or it is killed; and nothing of them is left."""

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import torch

from pipeline import loader
from pipeline.command import InputError
from pipeline.loader import EvalLoader, LoaderConfig, TrainLoader
from pipeline.online import fed_graph


def test_a_loader_that_nobody_holds_ends_its_thread(raw_dataset):
    before = set(threading.enumerate())
    loader = TrainLoader(raw_dataset, global_batch_size=8)
    next(loader)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "loader" and thread not in before]
    del loader
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


UNCLOSED = """
import sys
from pipeline.dataset import Dataset
from pipeline.loader import TrainLoader
loader = TrainLoader(Dataset.open(sys.argv[1]), global_batch_size=8)
next(loader)
if sys.argv[2] == "raise":
    raise KeyboardInterrupt
"""


@pytest.mark.parametrize(("how", "status"), [pytest.param("end", 0, marks=pytest.mark.slow), ("raise", -signal.SIGINT)])
def test_a_process_ends_though_its_loader_was_not_closed(raw_dataset, how, status):
    command = [sys.executable, "-c", UNCLOSED, str(raw_dataset.path), how]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answer.returncode == status, answer.stderr


TWO_LOADERS = """
import sys
from pipeline.dataset import Dataset
from pipeline.loader import EvalLoader, TrainLoader
dataset = Dataset.open(sys.argv[1])
loaders = TrainLoader(dataset, global_batch_size=8), EvalLoader(dataset, "val", batch_size=4)
for loader in loaders:
    next(loader)
print("running", flush=True)
while True:
    next(loaders[0])
"""


def test_nothing_is_left_of_loaders_whose_process_is_killed(raw_dataset, tmp_path):
    def shared_memory():
        return {path.name for path in Path("/dev/shm").iterdir()}

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = shared_memory()
    process = subprocess.Popen(
        [sys.executable, "-c", TWO_LOADERS, str(raw_dataset.path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(temporary)},
        start_new_session=True,
    )
    with process:
        assert process.stdout.readline() == b"running\n"
        while_it_ran = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert psutil.wait_procs(while_it_ran, timeout=10)[1] == []
    in_session = [each for each in psutil.process_iter() if _session(each.pid) == process.pid]
    assert in_session == []
    assert shared_memory() - before == set()
    assert list(temporary.iterdir()) == []


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.parametrize(("device", "chosen"), [("gpu", [("loader", torch.device("cuda", 3))]), ("cpu", [])])
def test_the_thread_works_on_the_loaders_gpu(raw_dataset, monkeypatch, device, chosen):
    calls = []

    def start(*_):
        assert calls == chosen  # before anything is built
        raise InputError("enough")

    monkeypatch.setattr(torch.cuda, "set_device", lambda index: calls.append((threading.current_thread().name, index)))
    monkeypatch.setattr(loader, "start_images", start)
    batches = TrainLoader(raw_dataset, global_batch_size=8, config=LoaderConfig(device=device, device_id=3))
    with pytest.raises(InputError, match="enough"):
        next(batches)
    assert calls == chosen


@pytest.mark.parametrize("is_gpus_way", [False, True])
def test_a_pass_that_begins_again_uses_the_same_graph(raw_dataset, monkeypatch, is_gpus_way):
    built, build_graph = [], fed_graph.build_graph
    monkeypatch.setattr(fed_graph, "build_graph", lambda *arguments: built.append(0) or build_graph(*arguments))
    batches = EvalLoader(raw_dataset, "val", batch_size=4, config=LoaderConfig(cache="host" if is_gpus_way else "none"))
    first = [batch.images.clone() for batch in batches]
    num_built = len(built)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(batches)
        batches.rewind()
        assert all(torch.equal(a, b.images) for a, b in zip(first, batches, strict=True))
    assert len(built) == num_built
    batches.rewind()
    next(batches)
    batches.rewind()  # in the middle: everything is built anew
    assert all(torch.equal(a, b.images) for a, b in zip(first, batches, strict=True))
    assert len(built) == 2 * num_built
    batches.close()
    batches.rewind()
    assert len(list(batches)) == 3
    batches.close()
