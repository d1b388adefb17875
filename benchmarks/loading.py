"""Measure how fast loaders produce normalised float32 batches, compared with libjpeg-turbo and a memory copy.

All alternatives run on two cores, on the same photographs, each in a separate process: this project's loader, DALI's
own WebDataset reader with the same operators, and torchvision's ImageFolder and webdataset with a DataLoader. The
training pictures are stored in three ways: as 256x256 JPEGs, as 256x256 raw pixels, and as the original files.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.photographs import describe, list_photographs
from benchmarks.record import ROOT, Comparison, publish, record_document, run_rounds
from pipeline.command import InputError, run_command
from pipeline.dataset import Dataset
from pipeline.online.shard_reader import ShardReader

_NUM_CORES = 2
_ENCODINGS = ("jpeg", "raw", "original")
_FILES = "files"  # the jpeg dataset's pictures as files in class folders
_PHOTOS = "photographs"
# Name in the record -> alternative of `benchmarks.loading_peers`, and its source.
_ALTERNATIVES = {
    **{f"{encoding}: ours": ("ours", encoding) for encoding in _ENCODINGS},
    **{f"{encoding}: DALI's reader": ("DALI's reader", encoding) for encoding in _ENCODINGS},
    **{
        f"{encoding}: DALI's reader, colour noise": ("DALI's reader, colour noise", encoding) for encoding in _ENCODINGS
    },
    "jpeg: torchvision": ("torchvision", _FILES),
    "jpeg: webdataset": ("webdataset", "jpeg"),
    "original: torchvision": ("torchvision, resizing", _PHOTOS),
    "original: webdataset": ("webdataset, resizing", "original"),
    "jpeg: libjpeg-turbo": ("libjpeg-turbo", "jpeg"),
    "raw: memory copy": ("memory copy", "raw"),
}
_COMPARISONS = [
    *(
        Comparison(of=f"{encoding}: ours", quantity="images_per_second", to=f"{encoding}: {peer}", at_least=1)
        for encoding in _ENCODINGS
        for peer in ("DALI's reader", "DALI's reader, colour noise")
    ),
    Comparison(of="jpeg: ours", quantity="images_per_second", to="jpeg: torchvision", at_least=4),
    Comparison(of="jpeg: ours", quantity="images_per_second", to="jpeg: webdataset", at_least=5),
    Comparison(of="original: ours", quantity="images_per_second", to="original: torchvision"),
    Comparison(of="original: ours", quantity="images_per_second", to="original: webdataset"),
    Comparison(of="jpeg: ours", quantity="images_per_second", to="jpeg: libjpeg-turbo", at_least=0.45),
    Comparison(of="raw: ours", quantity="images_per_second", to="raw: memory copy"),
    *(Comparison(of=f"{encoding}: ours", quantity="start_seconds", at_most=3) for encoding in _ENCODINGS),
]
_QUANTITIES = {
    "images_per_second": "pictures in finished batches, by the wall clock, after a warm-up of two prefetch queues",
    "start_seconds": "from opening the dataset to its first batch, imports before it",
}
_PACKAGES = [
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "numpy",
    "pillow",
    "simplejpeg",
    "torch",
    "torchvision",
    "webdataset",
]
_SWEEP = {"batch size": (64, 128, 256), "threads": (2, 3, 4), "prefetch": (1, 3)}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.loading`."""

    photos: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS")]
    """Photographs in class folders, train/CLASS/*.JPEG and val/CLASS/*.JPEG."""
    rounds: int = 3
    """Runs of each alternative."""
    batch_size: int = 256
    """Pictures per batch."""
    seconds: float = 6
    """Duration of one measurement, in seconds."""
    sweep: bool = False
    """Measure only this project's loader instead, on JPEG, over batch sizes, threads and prefetched batches."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    photographs = list_photographs(arguments.photos.absolute())
    cores = sorted(os.sched_getaffinity(0))[:_NUM_CORES]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        places = _prepare(arguments.photos.absolute(), Path(name), _ENCODINGS[:1] if arguments.sweep else _ENCODINGS)
        os.sched_setaffinity(0, cores)  # the measured processes inherit it
        values = run_rounds(
            _sweep(places, arguments) if arguments.sweep else _alternatives(places, arguments), arguments.rounds
        )
    publish(
        record_document(
            name="loading_sweep" if arguments.sweep else "loading",
            command=f"python -m benchmarks.loading PHOTOS --rounds {arguments.rounds} --seconds {arguments.seconds:g} "
            + ("--sweep" if arguments.sweep else f"--batch-size {arguments.batch_size}"),
            corpus=f"PHOTOS: {describe(photographs)}, those of `train` measured; on {len(cores)} cores",
            quantities=_QUANTITIES,
            values=values,
            comparisons=[] if arguments.sweep else _COMPARISONS,
            packages=_PACKAGES,
        )
    )
    return 0


def _prepare(photos: Path, scratch: Path, encodings: Sequence[str]) -> Mapping[str, Path]:
    """Write the datasets and the class folders, and return the path of each source."""
    for encoding in encodings:
        sys.stderr.write(f"preparing: {encoding}\n")
        _run("pipeline.shard", photos, scratch / encoding, "--encoding", encoding, "--size", 256)
    dataset = Dataset.open(scratch / "jpeg")
    reader = ShardReader(dataset, "train")
    for sample_id, row in enumerate(dataset.manifest("train", ["key", "wnid"]).to_pylist()):
        path = scratch / _FILES / row["wnid"] / f"{row['key']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(reader.read(sample_id))
    return {**{name: scratch / name for name in (*encodings, _FILES)}, _PHOTOS: photos / "train"}


def _alternatives(places: Mapping[str, Path], arguments: Arguments) -> dict[str, Callable[[], Mapping[str, float]]]:
    return {
        shown: partial(_measure, alternative, places[source], arguments.batch_size, arguments.seconds)
        for shown, (alternative, source) in _ALTERNATIVES.items()
    }


def _sweep(places: Mapping[str, Path], arguments: Arguments) -> dict[str, Callable[[], Mapping[str, float]]]:
    return {
        ", ".join(f"{name} {value}" for name, value in zip(_SWEEP, chosen, strict=True)): partial(
            _measure, "ours", places["jpeg"], chosen[0], arguments.seconds, *chosen[1:]
        )
        for chosen in itertools.product(*_SWEEP.values())
    }


def _measure(alternative: str, source: Path, batch_size: int, seconds: float, *options: int) -> Mapping[str, float]:
    answer = _run("benchmarks.loading_peers", alternative, source, batch_size, seconds, *options)
    figures: dict[str, float] = json.loads(answer.splitlines()[-1])
    return figures


def _run(module: str, *arguments: object) -> str:
    """Run a module as a command and return its output.

    Raises:
        InputError: The command failed; its own message is shown.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if answer.returncode != 0:
        sys.stderr.write(answer.stderr)
        raise InputError(f"{module} failed with status {answer.returncode}; see above")
    return answer.stdout


if __name__ == "__main__":
    run_command(main)
