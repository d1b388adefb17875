"""Measure how fast shards reach the disk: `DirectFile`, past the page cache, against buffered writes that drop it.

Two processes write shards of stored pixels side by side, as the offline stage does, hash them, and wait until they are
on disk. The peer writes through the page cache, flushes, and tells the kernel to drop the pages (`posix_fadvise`).
"""

import hashlib
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from benchmarks.record import Comparison, publish, record_document, run_rounds
from pipeline.command import run_command
from pipeline.offline.direct_file import DirectFile

_PICTURE_BYTES = 3 * 256 * 256
_NUM_PROCESSES = 2
Way = Literal["direct", "buffered"]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.shard_files`."""

    folder: Path = Path(tempfile.gettempdir())
    """Folder on the disk to measure."""
    rounds: int = 5
    """Runs of each alternative."""
    shards: int = 4
    """Shards that each process writes in a run."""
    pictures: int = 1300
    """Pictures of a shard: 256 MB of pixels by default."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    values = run_rounds(
        {way: partial(_measure, way, arguments) for way in ("direct", "buffered")},
        arguments.rounds,
    )
    publish(
        record_document(
            name="shard_files",
            command=f"python -m benchmarks.shard_files --rounds {arguments.rounds} --shards {arguments.shards} "
            f"--pictures {arguments.pictures}",
            corpus=f"pixels of 256x256, {arguments.pictures:,} to a shard, {arguments.shards} shards a process",
            quantities={"megabytes_per_second": "of both processes, until all shards are on disk"},
            values=values,
            comparisons=[Comparison(of="direct", quantity="megabytes_per_second", to="buffered", at_least=1.05)],
            packages=["numpy"],
        )
    )
    return 0


def _measure(way: Way, arguments: Arguments) -> Mapping[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="shard-files-", dir=arguments.folder))
    try:
        os.sync()  # else the disk would still be busy with what the alternative before wrote and removed
        processes = [
            multiprocessing.Process(
                target=_write_shards, args=(way, folder / str(i), arguments.shards, arguments.pictures)
            )
            for i in range(_NUM_PROCESSES)
        ]
        began = time.perf_counter()
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        seconds = time.perf_counter() - began
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"a writing process ended with {[process.exitcode for process in processes]}")
    finally:
        shutil.rmtree(folder)
    num_bytes = _NUM_PROCESSES * arguments.shards * arguments.pictures * _PICTURE_BYTES
    return {"megabytes_per_second": num_bytes / 1e6 / seconds}


def _write_shards(way: Way, folder: Path, num_shards: int, num_pictures: int) -> None:
    folder.mkdir()
    picture = np.random.default_rng(0).bytes(_PICTURE_BYTES)
    write = _write_direct if way == "direct" else _write_buffered
    for number in range(num_shards):
        write(folder / f"{number}.tar", picture, num_pictures)


def _write_direct(path: Path, picture: bytes, num_pictures: int) -> None:
    with DirectFile(path) as file:
        for _ in range(num_pictures):
            file.write(picture)
        file.finish()


def _write_buffered(path: Path, picture: bytes, num_pictures: int) -> None:
    digest = hashlib.sha256()
    with open(path, "wb", buffering=4 << 20) as file:
        for _ in range(num_pictures):
            digest.update(picture)
            file.write(picture)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    run_command(main)
