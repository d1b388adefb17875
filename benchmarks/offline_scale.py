"""Measure how the offline stage scales with the source: memory of its processes, opening a manifest, listing.

Hard links under new names turn a few thousand photographs into many; the manifest and the archives are synthetic.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import pyarrow as pa
import tyro

from benchmarks.photographs import describe, link_photographs, list_photographs
from benchmarks.record import ROOT, Comparison, publish, record_document, run_rounds
from pipeline.command import InputError, run_command
from pipeline.format.manifest import DATASET_JSON, FORMAT_NAME, FORMAT_VERSION, MANIFEST_SCHEMA, manifest_path
from pipeline.synthesize import synthesize
from pipeline.system.files import sha256_file, write_json, write_table

_QUANTITIES = {
    "peak_parent_megabytes": "largest resident memory of the command's process, sampled every 50 ms",
    "peak_worker_megabytes": "largest resident memory of any process under it, sampled every 50 ms",
    "seconds": "wall clock of the call in a fresh process, its imports done, the files in the page cache",
    "process_seconds": "wall clock of that process, with the interpreter's start and its imports",
}
_SECONDS_BETWEEN_SAMPLES = 0.05
_PACKAGES = ["numpy", "pyarrow", "psutil", "simplejpeg", "torch"]
_NUM_CLASSES = 1000
_OPEN_MANIFEST = """
from pipeline.dataset import Dataset
def call(path): return Dataset.open(path).manifest("train").num_rows
"""
_LIST_ARCHIVES = """
from pathlib import Path
from pipeline.sources.detect import open_source
def call(path): return open_source(Path(path)).list_samples().splits["train"].num_rows
"""
_TIME_THE_CALL = """
import json, sys, time
start = time.perf_counter()
num_rows = call(sys.argv[1])
json.dump({"seconds": time.perf_counter() - start, "num_rows": num_rows}, sys.stdout)
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.offline_scale`."""

    photos: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS")]
    """Photographs in class folders, train/CLASS/*.JPEG and val/CLASS/*.JPEG."""
    rounds: int = 3
    """Runs of each measurement."""
    few: int = 2_000
    """Pictures in the smaller source."""
    many: int = 20_000
    """Pictures in the larger source."""
    rows: int = 1_300_000
    """Rows of the manifest."""
    archived: int = 100_000
    """Pictures in the archives, a multiple of 1000, the number of classes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    if arguments.archived < _NUM_CLASSES or arguments.archived % _NUM_CLASSES:
        raise InputError(f"--archived is {arguments.archived}; it must be a multiple of {_NUM_CLASSES}, the classes")
    photographs = list_photographs(arguments.photos.absolute())
    few, many = f"shard {arguments.few:,} pictures", f"shard {arguments.many:,} pictures"
    manifest, archives = f"open {arguments.rows:,} rows", f"list {arguments.archived:,} archived pictures"
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        scratch = Path(name)
        alternatives: dict[str, Callable[[], Mapping[str, float]]] = {}
        for alternative, number in ((few, arguments.few), (many, arguments.many)):
            source = link_photographs(photographs, scratch / str(number), number)
            alternatives[alternative] = partial(_peak_memory, source, scratch / "out")
        write_dataset(scratch / "dataset", arguments.rows)
        alternatives[manifest] = partial(_time_call, _OPEN_MANIFEST, scratch / "dataset", arguments.rows)
        _write_archives(scratch / "archives", arguments.archived)
        alternatives[archives] = partial(_time_call, _LIST_ARCHIVES, scratch / "archives", arguments.archived)
        values = run_rounds(alternatives, arguments.rounds)
    publish(
        record_document(
            name="offline_scale",
            command=f"python -m benchmarks.offline_scale PHOTOS --rounds {arguments.rounds} --few {arguments.few} "
            f"--many {arguments.many} --rows {arguments.rows} --archived {arguments.archived}",
            corpus=f"PHOTOS: {describe(photographs)}, repeated by hard links",
            quantities=_QUANTITIES,
            values=values,
            comparisons=[
                Comparison(of=many, quantity="peak_worker_megabytes", at_most=1000),
                Comparison(of=many, quantity="peak_worker_megabytes", to=few, at_most=1.2),
                Comparison(of=many, quantity="peak_parent_megabytes", to=few, at_most=1.2),
                Comparison(of=manifest, quantity="seconds", at_most=1),
                Comparison(of=archives, quantity="seconds", at_most=10),
            ],
            packages=_PACKAGES,
        )
    )
    return 0


def _peak_memory(source: Path, out: Path) -> dict[str, float]:
    """Shard a source and watch the resident memory of the processes."""
    command = [sys.executable, "-m", "pipeline.shard", str(source), str(out), "--workers", "2"]
    peaks: dict[int, int] = defaultdict(int)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        parent = psutil.Process(running.pid)
        try:
            while running.poll() is None:
                with suppress(psutil.NoSuchProcess):  # a process has just ended
                    for process in (parent, *parent.children(recursive=True)):
                        peaks[process.pid] = max(peaks[process.pid], process.memory_info().rss)
                time.sleep(_SECONDS_BETWEEN_SAMPLES)
        finally:
            running.terminate()  # in case this process is interrupted
    shutil.rmtree(out, ignore_errors=True)
    if running.returncode != 0:
        raise InputError(f"pipeline.shard failed with status {running.returncode}; run it by hand on the pictures")
    of_parent = peaks.pop(running.pid)
    return {"peak_parent_megabytes": of_parent / 1e6, "peak_worker_megabytes": max(peaks.values()) / 1e6}


def _time_call(definition: str, path: Path, num_rows: int) -> dict[str, float]:
    """Time a call in a fresh process, and check that it returned as many rows as were written."""
    start = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, "-c", definition + _TIME_THE_CALL, str(path)], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    process_seconds = time.perf_counter() - start
    measured = json.loads(answer.stdout)
    if measured["num_rows"] != num_rows:
        raise RuntimeError(f"{measured['num_rows']} rows were read, {num_rows} written")
    return {"seconds": measured["seconds"], "process_seconds": process_seconds}


def write_dataset(folder: Path, num_rows: int) -> None:
    """Write a dataset's description and manifest, like those of ImageNet at 256x256, without shards."""
    random = np.random.default_rng(0)
    numbers = np.arange(num_rows)
    classes = random.integers(0, _NUM_CLASSES, num_rows)
    num_bytes = random.integers(20_000, 60_000, num_rows)
    wnids = [f"n{1_440_000 + 13 * index:08d}" for index in range(_NUM_CLASSES)]
    columns = {
        "key": [f"{number:08d}" for number in numbers],
        "shard": [f"train-{number // 1000:06d}.tar" for number in numbers],
        "offset": np.cumsum(num_bytes) % 40_000_000,
        "num_bytes": num_bytes,
        "class_index": classes,
        "wnid": [wnids[index] for index in classes],
        "source": [f"{wnids[c]}/{wnids[c]}_{n}.JPEG" for c, n in zip(classes, numbers, strict=True)],
        "width": np.full(num_rows, 256),
        "height": np.full(num_rows, 256),
        "hash": random.integers(0, 2**64, num_rows, dtype=np.uint64),
        "notes": [""] * num_rows,
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in MANIFEST_SCHEMA]
    path = folder / manifest_path("train")
    write_table(path, pa.Table.from_arrays(arrays, schema=MANIFEST_SCHEMA))
    document = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "encoding": {"name": "jpeg", "member": "jpg", "size": 256},
        "num_classes": _NUM_CLASSES,
        "splits": {"train": {"num_samples": num_rows, "num_shards": -(-num_rows // 1000)}},
        "files": {manifest_path("train"): {"num_bytes": path.stat().st_size, "sha256": sha256_file(path)}},
    }
    write_json(folder / DATASET_JSON, document)


def _write_archives(folder: Path, num_pictures: int) -> None:
    """Write archives in the official layout, with the smallest pictures that can be synthesised."""
    per_class = num_pictures // _NUM_CLASSES
    synthesize(folder, classes=_NUM_CLASSES, train_per_class=per_class, val_per_class=1, max_side=16, workers=2)


if __name__ == "__main__":
    run_command(main)
