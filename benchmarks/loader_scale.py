"""Measure what the loader costs in addition to its batches: memory, start-up, the order, and growth over many batches.

The large dataset has 1.28 million rows that share one shard of a few pictures. Its loader is measured in fresh
processes.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import tyro

from benchmarks.record import ROOT, Comparison, publish, record_document, run_rounds
from pipeline.command import run_command
from pipeline.dataset import Dataset
from pipeline.format.manifest import COLOR_JSON, DATASET_JSON, manifest_path
from pipeline.shard import main as shard
from pipeline.synthesize import synthesize
from pipeline.system.files import sha256_file, write_json, write_table

_QUANTITIES = {
    "seconds_to_first_batch": "from opening the dataset to a batch of 64; without the imports",
    "added_megabytes": "resident memory after 20 batches, less that after importing torch and DALI, and less the queue",
    "permutation_seconds": "the order of one epoch",
    "streams_seconds": "the order of one epoch in 16 streams",
    "megabytes_grown": "resident memory from batch 2,000 to the last",
    "descriptors_grown": "open files likewise",
    "images_per_second": "of the tiny pictures",
}
_FIRST_BATCH = """
import json, os, sys, time
import psutil, torch, nvidia.dali.fn
process = psutil.Process()
before = process.memory_info().rss
from pipeline.dataset import Dataset
from pipeline.loader import LoaderConfig, TrainLoader
began = time.perf_counter()
loader = TrainLoader(Dataset.open(sys.argv[1]), global_batch_size=64)
batch = next(loader)
seconds = time.perf_counter() - began
for _ in range(20):
    batch = next(loader)
# Finished ones and those in the graph, one on its way and one in use.
queue = (2 * LoaderConfig.prefetch_batches + 2) * batch.images.nbytes
added = process.memory_info().rss - before - queue
loader.close()
print(json.dumps({"seconds_to_first_batch": seconds, "added_megabytes": added / 1e6}))
"""
_ORDER = """
import json, sys, time
import numpy as np
from pipeline.online.order import permutation
from pipeline.online.stream_order import StreamOrder
num_samples = int(sys.argv[1])
began = time.perf_counter()
permutation(0, 1, num_samples)
between = time.perf_counter()
streams = StreamOrder([1000] * (num_samples // 1000), 0, 16, 4096)
made = time.perf_counter()
streams._epoch_order(1)
print(json.dumps({"permutation_seconds": between - began, "streams_seconds": time.perf_counter() - made}))
"""
_ENDURANCE = """
import json, sys, time
import psutil
from pipeline.dataset import Dataset
from pipeline.loader import LoaderConfig, TrainLoader
loader, process = TrainLoader(Dataset.open(sys.argv[1]), global_batch_size=8), psutil.Process()
for number in range(int(sys.argv[2])):
    if number == 2000:
        memory, descriptors, began = process.memory_info().rss, process.num_fds(), time.perf_counter()
    next(loader)
seconds = time.perf_counter() - began
grown = {"megabytes_grown": (process.memory_info().rss - memory) / 1e6}
grown |= {"descriptors_grown": process.num_fds() - descriptors}
loader.close()
print(json.dumps(grown | {"images_per_second": (number - 1999) * 8 / seconds}))
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.loader_scale`."""

    rounds: int = 3
    """Runs of each measurement."""
    rows: int = 1_281_000
    """Rows of the large dataset, a multiple of 1000."""
    batches: int = 50_000
    """Batches of the endurance run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    large, order, endurance = f"{arguments.rows:,} rows", "the order", f"{arguments.batches:,} batches"
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        scratch = Path(name)
        synthesize(scratch / "archives", classes=10, train_per_class=50, val_per_class=2)
        shard([str(scratch / "archives"), str(scratch / "large")])
        _multiply(scratch / "large", arguments.rows)
        shard([str(scratch / "archives"), str(scratch / "tiny"), "--size", "16"])
        values = run_rounds(
            {
                large: partial(_measure, _FIRST_BATCH, scratch / "large"),
                order: partial(_measure, _ORDER, arguments.rows),
                endurance: partial(_measure, _ENDURANCE, scratch / "tiny", arguments.batches),
            },
            arguments.rounds,
        )
    publish(
        record_document(
            name="loader_scale",
            command=f"python -m benchmarks.loader_scale --rounds {arguments.rounds} --rows {arguments.rows} "
            f"--batches {arguments.batches}",
            corpus="500 synthetic pictures; the large dataset repeats their rows, the tiny one has them at 16x16",
            quantities=_QUANTITIES,
            values=values,
            comparisons=[
                Comparison(of=large, quantity="seconds_to_first_batch", at_most=3),
                Comparison(of=large, quantity="added_megabytes", at_most=300),
                Comparison(of=order, quantity="permutation_seconds", at_most=0.5),
                Comparison(of=order, quantity="streams_seconds", at_most=0.5),
                Comparison(of=endurance, quantity="megabytes_grown", at_most=10),
                Comparison(of=endurance, quantity="descriptors_grown", at_most=0),
            ],
            packages=["numpy", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "pyarrow", "torch"],
        )
    )
    return 0


def _multiply(folder: Path, num_rows: int) -> None:
    """Repeat the training manifest's rows up to `num_rows`, and update statistics and description accordingly."""
    dataset, name = Dataset.open(folder), manifest_path("train")
    table = dataset.manifest("train")
    numbers = np.arange(num_rows)
    repeated = table.take(pa.array(np.sort(numbers % table.num_rows)))
    repeated = repeated.set_column(0, "key", pa.array([f"{number:08d}" for number in numbers]))
    write_table(folder / name, repeated)
    document = dataset.document
    document["splits"]["train"]["num_samples"] = num_rows
    document["files"][name] = {"num_bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    colors = json.loads((folder / COLOR_JSON).read_text()) | {"manifest_sha256": document["files"][name]["sha256"]}
    write_json(folder / COLOR_JSON, colors)
    document["files"][COLOR_JSON]["sha256"] = sha256_file(folder / COLOR_JSON)
    write_json(folder / DATASET_JSON, document)


def _measure(script: str, *arguments: object) -> Mapping[str, float]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(answer.stdout))


if __name__ == "__main__":
    run_command(main)
