"""A file that is out of reach for a moment is not taken for one that is broken, wherever a run opens files."""

import errno
import fcntl
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from cluster.run.checkpoint import CheckpointStore
from cluster.run.json_log import JsonLog
from cluster.run.ledger_files import Ledger
from cluster.worker.device_clock import CpuClock
from cluster.worker.run_writer import RunWriter
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.online.shard_reader import ShardReader
from pipeline.system.os_errors import as_user_error, described


def _read_a_document(dataset: Dataset, folder: Path) -> None:
    Dataset.open(dataset.path).manifest("train", ["key"])


def _map_a_shard(dataset: Dataset, folder: Path) -> None:
    ShardReader(dataset, "train").prefetch(np.array([0]))


def _write_a_checkpoint(dataset: Dataset, folder: Path) -> None:
    writer = RunWriter(CheckpointStore(folder, 1), Ledger(folder / "ledger"), CpuClock())
    writer.save({"step": 1}, 1)
    try:
        writer.wait()
    finally:
        writer.close()


def _open_a_log(dataset: Dataset, folder: Path) -> None:
    JsonLog(folder / "log.jsonl")


BROKEN = {
    _read_a_document: (Path, "read_bytes"),
    _map_a_shard: (mmap, "mmap"),
    _write_a_checkpoint: (CheckpointStore, "save"),
    _open_a_log: (fcntl, "flock"),
}


@pytest.mark.parametrize("use", BROKEN, ids=lambda use: use.__name__)
@pytest.mark.parametrize(
    ("code", "expected"), [(errno.ESTALE, OSError), (errno.EIO, OSError), (errno.EACCES, InputError)]
)
def test_what_may_pass_stays_an_error_of_the_system(raw_dataset, tmp_path, monkeypatch, use, code, expected):
    def fails(*arguments, **options):
        raise OSError(code, os.strerror(code))

    dataset = Dataset.open(raw_dataset.path)
    if use is _read_a_document:
        real = Path.read_bytes
        monkeypatch.setattr(Path, "read_bytes", lambda path: fails() if path.suffix == ".parquet" else real(path))
    else:
        monkeypatch.setattr(*BROKEN[use], fails)
    with pytest.raises(expected):
        use(dataset, tmp_path)


def test_a_checkpoint_that_is_out_of_reach_is_not_passed_over(tmp_path, monkeypatch):
    store, real = CheckpointStore(tmp_path, 3), Path.read_bytes
    for step in (1, 2):
        store.save({"step": step}, step)

    def stale(path):
        if "00000002" in path.name:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", stale)
        for call in (store.latest_step, store.load_latest):
            with pytest.raises(OSError, match="Stale file handle"):
                call()
    assert store.latest_step() == 2


def test_an_error_is_told_with_its_file_and_what_helps():
    full = OSError(errno.ENOSPC, "No space left on device", "RUN")
    assert described(full) == "No space left on device: RUN"
    assert described(TimeoutError()) == "TimeoutError" and described(TimeoutError("timed out")) == "timed out"
    assert str(as_user_error(full, "a worker met: ")) == (
        "a worker met: No space left on device: RUN; free some space there, and the same command goes on from the "
        "latest checkpoint"
    )
