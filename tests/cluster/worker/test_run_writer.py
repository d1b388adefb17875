"""Ledger and checkpoints are written while training goes on, in order, and nothing after a failure."""

import errno
import os
import threading

import numpy as np
import pytest
import torch

from cluster.run.checkpoint import CheckpointStore
from cluster.run.ledger_files import Ledger
from cluster.worker.device_clock import CpuClock
from cluster.worker.run_writer import RunWriter
from pipeline.command import InputError

IDS_SG = np.arange(6).reshape(2, 3)


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", 2)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def writer(store, ledger):
    writer = RunWriter(store, ledger, CpuClock())
    yield writer
    writer.close()


def _num_recorded(ledger: Ledger) -> int:
    return sum(len(steps.sample_ids_SG) for steps in ledger.read())


def _fails(code: int):
    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    return fail


def test_training_goes_on_while_a_checkpoint_is_written(store, writer, monkeypatch):
    save, may_write = store.save, threading.Event()
    monkeypatch.setattr(store, "save", lambda *arguments: may_write.wait(10) and save(*arguments))
    weights = torch.zeros(3)
    state = {"step": 1, "model": {"weights": weights}, "optimizer": {"state": [weights], "groups": (0.1, None)}}
    writer.save(state, 1, is_best=True)
    assert store.load_latest() is None
    weights += 1  # the next step
    may_write.set()
    writer.wait()
    for loaded in (store.load_latest(), store.load_best()):
        assert torch.equal(loaded["model"]["weights"], torch.zeros(3))
        assert torch.equal(loaded["optimizer"]["state"][0], torch.zeros(3))


def test_what_is_a_copy_already_is_not_copied_again_but_for_counts(store, writer, monkeypatch):
    save, may_write, taken = store.save, threading.Event(), []
    monkeypatch.setattr(
        store, "save", lambda *arguments: may_write.wait(10) and (taken.append(arguments[0]), save(*arguments))
    )
    weights, count = torch.zeros(3), torch.tensor(7.0)
    writer.save({"step": 1, "model": {"weights": weights}, "count": count}, 1, is_copy=True)
    count += 1
    may_write.set()
    writer.wait()
    assert taken[0]["model"]["weights"] is weights and float(store.load_latest()["count"]) == 7


def test_training_goes_on_while_the_ledger_is_written(ledger, writer, monkeypatch):
    append, may_write = ledger.append, threading.Event()
    monkeypatch.setattr(ledger, "append", lambda *arguments: may_write.wait(10) and append(*arguments))
    writer.append(1, IDS_SG, 1)
    writer.append(3, IDS_SG, 2)
    assert _num_recorded(ledger) == 0
    may_write.set()
    writer.wait()
    assert [steps.world_sizes_S.tolist() for steps in ledger.read()] == [[1, 1], [2, 2]]


def test_the_ledger_of_a_checkpoints_steps_is_on_disk_before_it(store, ledger, writer, monkeypatch):
    append, save, recorded = ledger.append, store.save, []
    slow = threading.Event()
    monkeypatch.setattr(ledger, "append", lambda *arguments: slow.wait(0.2) or append(*arguments))
    monkeypatch.setattr(store, "save", lambda *arguments: recorded.append(_num_recorded(ledger)) or save(*arguments))
    for first_step in (1, 3, 5):
        writer.append(first_step, IDS_SG, 1)
        writer.save({"step": first_step + 1}, first_step + 1)
    writer.wait()
    assert recorded == [2, 4, 6]
    assert len(list(ledger.read())) == 1  # merged after the last checkpoint


def test_a_checkpoint_waits_for_the_device_but_the_process_does_not(store, ledger):
    reached, waited = threading.Event(), []

    class Lagging(CpuClock):
        lags = True

        def wait(self, moment) -> None:
            assert reached.wait(10)
            waited.append(moment)

    writer = RunWriter(store, ledger, Lagging())
    writer.save({"step": 1}, 1)
    assert store.load_latest() is None and not waited
    reached.set()
    writer.wait()
    writer.close()
    assert store.load_latest() == {"step": 1} and len(waited) == 1


@pytest.mark.parametrize("what", ["a checkpoint", "the sample ledger"])
def test_what_cannot_be_written_is_told_and_what_was_before_stays(what, store, ledger, writer, monkeypatch):
    writer.append(1, IDS_SG, 1)
    writer.save({"step": 2}, 2)
    writer.wait()
    target, name = {"a checkpoint": (store, "save"), "the sample ledger": (ledger, "append")}[what]
    monkeypatch.setattr(target, name, _fails(errno.ENOSPC))
    writer.append(3, IDS_SG, 1)
    writer.save({"step": 4}, 4)
    message = rf"^{what} can't be written: No space left on device; .*: free some space there, and the same command"
    with pytest.raises(InputError, match=message):
        writer.wait()
    monkeypatch.undo()
    for begin in (lambda: writer.append(5, IDS_SG, 1), lambda: writer.save({"step": 6}, 6)):  # told again
        with pytest.raises(InputError, match=message):
            begin()
    writer.close()
    assert store.latest_step() == 2  # the checkpoint of steps without a ledger was not written
    assert _num_recorded(ledger) == (2 if what == "the sample ledger" else 4)


def test_an_error_that_may_pass_stays_an_error_of_the_system(store, writer, monkeypatch):
    monkeypatch.setattr(store, "save", _fails(errno.ENOENT))  # as on a shared file system
    writer.save({"step": 4}, 4)
    with pytest.raises(FileNotFoundError):
        writer.wait()


def test_a_failure_is_told_at_the_next_line(ledger, writer, monkeypatch):
    failed = threading.Event()

    def fail(*arguments):
        failed.set()
        raise ValueError("the ledger has steps up to 9")

    monkeypatch.setattr(ledger, "append", fail)
    writer.append(1, IDS_SG, 1)
    assert failed.wait(10)
    writer._latest.result()
    with pytest.raises(ValueError, match="steps up to 9"):
        writer.append(3, IDS_SG, 1)
