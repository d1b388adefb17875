"""Checkpoints: whole or not there; torn and tampered ones are skipped with a warning."""

import contextlib
import errno
import os
import pathlib

import pytest
import torch

from cluster.run.checkpoint import CheckpointStore


def _store(tmp_path, steps=(1, 2, 3), num_kept=2) -> CheckpointStore:
    store = CheckpointStore(tmp_path, num_kept)
    for step in steps:
        store.save({"step": step, "weights": torch.full((3,), float(step))}, step)
    return store


def test_the_latest_is_loaded_and_old_ones_are_removed(tmp_path):
    state = _store(tmp_path).load_latest()
    assert state["step"] == 3 and torch.equal(state["weights"], torch.full((3,), 3.0))
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["step-00000002.pt", "step-00000003.pt"]


def test_an_empty_folder_has_none(tmp_path):
    store = CheckpointStore(tmp_path / "none", 2)
    assert store.load_latest() is None and store.load_best() is None


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "hash", "no object"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    store = _store(tmp_path)
    path = tmp_path / "step-00000003.pt"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        path.unlink()
    else:
        path.with_suffix(".json").write_text("{" if damage == "hash" else "[]")
    with pytest.warns(UserWarning, match=r"step-00000003 .*skipped"):
        assert store.load_latest()["step"] == 2


def test_weights_without_a_hash_do_not_count(tmp_path):
    store = _store(tmp_path)
    (tmp_path / "step-00000003.json").unlink()
    assert store.load_latest()["step"] == 2


def test_the_best_stays_beside_the_latest(tmp_path):
    store = _store(tmp_path)
    store.save({"step": 1}, 1, is_best=True)
    for step in (4, 5, 6):
        store.save({"step": step}, step)
    assert store.load_best()["step"] == 1


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    store = _store(tmp_path)

    def refused(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")  # the one that Python 3.11 passes over, too

    with monkeypatch.context() as patch:
        for name in ("listdir", "scandir"):
            patch.setattr(os, name, refused)
        for call in (store.latest_step, store.load_latest, store.load_best, lambda: store.remove_leftovers(0)):
            with pytest.raises(PermissionError):
                call()
    assert store.latest_step() == 3


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    store = _store(tmp_path)
    for name in (f".step-00000004.pt.{'7' * 32}.tmp", "step-00000004.pt"):
        (tmp_path / name).write_bytes(b"half")
    store.remove_leftovers(3)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f"step-0000000{step}.{kind}" for step in (2, 3) for kind in ("json", "pt")]


def test_a_torn_best_leaves_the_one_before(tmp_path):
    store = CheckpointStore(tmp_path, 2)
    store.save({"step": 1}, 1, is_best=True)
    (tmp_path / "best-00000002.pt").write_bytes(b"half")  # killed before its hash was written
    assert store.load_best()["step"] == 1
    store.save({"step": 3}, 3, is_best=True)
    assert [path.name for path in tmp_path.glob("best-*.json")] == ["best-00000003.json"]


def test_pickles_that_run_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    store = CheckpointStore(tmp_path, 2)
    store.save({"step": 1}, 1)
    store.save({"step": Evil()}, 2)
    with pytest.warns(UserWarning, match="step-00000002 was not written by this program and is skipped"):
        assert store.load_latest()["step"] == 1
    assert not (tmp_path / "pwned").exists()


def test_what_is_newer_than_the_restored_checkpoint_goes(tmp_path):
    store = _store(tmp_path, num_kept=2)
    store.save({"step": 4}, 4, is_best=True)
    (tmp_path / "step-00000004.pt").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="torn"):
        assert store.load_latest()["step"] == 3
    store.remove_leftovers(3)
    assert store.load_best() is None
    for step in (5, 6):  # a torn one that stayed would count as one of the two that are kept
        store.save({"step": step}, step)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == ["step-00000005", "step-00000006"]


@pytest.mark.parametrize("num_operations", range(1, 9))
def test_a_kill_while_the_best_is_written_leaves_that_of_the_restored_step(tmp_path, monkeypatch, num_operations):
    store = CheckpointStore(tmp_path, 1)
    store.save({"step": 1}, 1, is_best=True)
    done = 0

    def counted(operation):
        def run(*arguments, **options):
            nonlocal done
            done += 1
            if done == num_operations:
                raise KeyboardInterrupt  # as a kill: nothing after it is done
            return operation(*arguments, **options)

        return run

    monkeypatch.setattr("os.replace", counted(os.replace))
    monkeypatch.setattr("pathlib.Path.unlink", counted(pathlib.Path.unlink))
    with contextlib.suppress(KeyboardInterrupt):
        store.save({"step": 2}, 2, is_best=True)
    monkeypatch.undo()
    assert done >= min(num_operations, 8)
    restored = store.load_latest()["step"]
    store.remove_leftovers(restored)
    assert store.load_best()["step"] == restored
