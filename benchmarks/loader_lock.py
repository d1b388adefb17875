"""Measure for how long the loader's thread may hold Python's lock per picture, which the training step needs too.

Counted is the CPU time of one thread that reads batches, draws their parameters and feeds the pictures, as on a GPU, to
a DALI graph which decodes nothing, less the time in compiled code that leaves the lock to others. DALI's own code
counts as if it held the lock throughout, so the figures are upper bounds. The peer reads, hashes and feeds one picture
at a time, and the parameters with them.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from benchmarks.record import ROOT, Comparison, publish, record_document, run_rounds
from pipeline.command import run_command
from pipeline.shard import main as shard
from pipeline.synthesize import synthesize

_QUANTITIES = {
    "microseconds_per_picture": "CPU time of the thread per picture, without compiled code that leaves the lock",
}
_SETUP = """
import json, sys, time
from pathlib import Path
import numpy as np
from nvidia.dali import fn, pipeline_def, types
import xxhash
from pipeline.dataset import Dataset
from pipeline.online import memory_ranges
from pipeline.online.augmentation import AugmentationConfig, draw_parameters
from pipeline.online.dali_quirks import tensor_list
from pipeline.online.shard_reader import ShardReader

dataset, batch_size, num_batches = Dataset.open(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
reader, config = ShardReader(dataset, "train"), AugmentationConfig()
generator = np.random.default_rng(0)
without_lock = 0.0

def timed(function):
    def call(*arguments):
        global without_lock
        began = time.thread_time()
        function(*arguments)
        without_lock += time.thread_time() - began
    return call

hash_ranges, read_ahead = memory_ranges._compiled_hash(), memory_ranges._compiled_advice()
memory_ranges._compiled_hash = lambda: timed(hash_ranges)
memory_ranges._compiled_advice = lambda: timed(read_ahead)

def feed():
    ids = generator.integers(reader.num_samples, size=batch_size)
    pictures = read(ids)
    parameters = draw_parameters(config, dataset.color_basis, 256, 0, ids, ids).values()
    return (pictures, *parameters)[: len(fed)]

@pipeline_def(batch_size=batch_size, num_threads=1, device_id=None, prefetch_queue_depth=3, exec_dynamic=True)
def graph():
    outputs = fn.external_source(source=feed, num_outputs=len(fed), batch=True, no_copy=True, dtype=fed, ndim=1)
    return outputs[0].shape(), *outputs[1:]

alive = []
"""
_TOGETHER = """
fed = [types.UINT8]

def read(ids):
    reader.prefetch(ids)
    pictures = reader.read_batch(ids)
    alive.append((pictures, batch := tensor_list(pictures, "")))
    return batch
"""
_ONE_BY_ONE = """
fed = [types.UINT8, types.INT32, types.FLOAT]

def read(ids):
    pictures = []
    for sample_id in ids.tolist():
        shard = int(reader._shard_indices[sample_id])
        mapped, content, _ = reader._maps.get(shard) or reader._map(shard)
        first, length = int(reader._offsets[sample_id]), int(reader._lengths[sample_id])
        mapped.madvise(3, first // 4096 * 4096, length + first % 4096)
        picture = content[first : first + length]
        assert xxhash.xxh3_64_intdigest(picture.data) == int(reader._hashes[sample_id])
        pictures.append(picture)
    alive.append(pictures)
    return pictures
"""
_MEASUREMENT = """
pipeline = graph()
pipeline.build()
for _ in range(8):
    pipeline.run()
without_lock, began = 0.0, time.thread_time()
for _ in range(num_batches):
    pipeline.run()
    del alive[:-5]
seconds = time.thread_time() - began - without_lock
print(json.dumps({"microseconds_per_picture": 1e6 * seconds / num_batches / batch_size}))
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.loader_lock`."""

    rounds: int = 5
    """Rounds; each measures all alternatives once."""
    pictures: int = 60_000
    """Pictures per measurement."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    ways = {"as a batch": _TOGETHER, "one by one": _ONE_BY_ONE}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        scratch = Path(name)
        synthesize(scratch / "archives", classes=10, train_per_class=60, val_per_class=2)
        shard([str(scratch / "archives"), str(scratch / "dataset")])
        alternatives = {
            f"{way}, batches of {size}": partial(
                _measure, script, scratch / "dataset", size, arguments.pictures // size
            )
            for size in (256, 1024)
            for way, script in ways.items()
        }
        values = run_rounds(alternatives, arguments.rounds)
    publish(
        record_document(
            name="loader_lock",
            command=f"python -m benchmarks.loader_lock --rounds {arguments.rounds} --pictures {arguments.pictures}",
            corpus="600 synthetic pictures, 256x256 JPEG",
            quantities=_QUANTITIES,
            values=values,
            comparisons=[
                Comparison(of=f"{way}, batches of {size}", quantity="microseconds_per_picture", at_most=most)
                for size in (256, 1024)
                for way, most in (("as a batch", 2), ("one by one", None))
            ],
            packages=["numba", "numpy", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "xxhash"],
        )
    )
    return 0


def _measure(script: str, *arguments: object) -> Mapping[str, float]:
    command = [sys.executable, "-c", _SETUP + script + _MEASUREMENT, *map(str, arguments)]
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(answer.stdout))


if __name__ == "__main__":
    run_command(main)
