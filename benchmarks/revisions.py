"""Compare this checkout's speed with another revision's: training, loading, sharding, listing, in turn.

The other revision is checked out into a temporary folder, and run with the same interpreter and libraries on the same
dataset (written by this checkout) and photographs. Each run is a command that both revisions have.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.photographs import describe, link_photographs, list_photographs
from benchmarks.record import ROOT, Comparison, publish, record_document, run_rounds
from benchmarks.training_runs import images_per_second
from cluster.run.run_folder import RunFolder
from pipeline.command import InputError, run_command
from pipeline.dataset import Dataset

_QUANTITY = "images_per_second"
_QUANTITIES = {
    _QUANTITY: "training: from the log's line of step 20 to its last; loading: pipeline.bench's full loader; sharding: "
    "the whole command; listing: the whole of `pipeline.shard --dry-run` on files without a byte"
}
_HERE, _BEFORE = "this checkout", "before"
_GLOBAL_BATCH_SIZE, _FIRST_STEP = 96, 20
_AT_LEAST = 0.97
_LISTING_AT_LEAST = 1 / 1.1
_NUM_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.revisions`."""

    photos: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS")]
    """Photographs in class folders, train/CLASS/*.JPEG and val/CLASS/*.JPEG."""
    base: str
    """Git revision to compare with."""
    precision: str = "bfloat16"
    """Precision of the training runs; use `float32` on a processor that emulates bfloat16."""
    rounds: int = 5
    """Runs of each alternative."""
    steps: int = 140
    """Steps per training run, at least 40."""
    pictures: int = 10_000
    """Number of pictures to shard: some of the photographs, or all of them repeated by hard links."""
    files: int = 1_300_000
    """Number of files to list, in 1000 class folders."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    photographs = list_photographs(arguments.photos)
    folder = Path(tempfile.mkdtemp(prefix="revisions-", dir=arguments.photos.parent))
    try:
        _git("worktree", "add", "--detach", str(folder / "base"), arguments.base)
        roots = {_HERE: ROOT, _BEFORE: folder / "base"}
        source = link_photographs(photographs, folder / "photographs", arguments.pictures)
        _run(ROOT, "pipeline.shard", str(arguments.photos), str(folder / "dataset"))
        _write_empty_files(folder / "files", arguments.files)
        measure = _Measure(arguments, folder, source)
        kinds: dict[str, Callable[[Path], Mapping[str, float]]] = {
            "training alone": partial(measure.training, ["--launcher", "alone"]),
            "training on Ray, 2 workers": partial(measure.training, ["--workers", "2"]),
            "loading": measure.loading,
            "sharding": measure.sharding,
            "listing": measure.listing,
        }
        values = run_rounds(
            {f"{kind}, {name}": partial(run, root) for kind, run in kinds.items() for name, root in roots.items()},
            arguments.rounds,
        )
        commit = _git("rev-parse", arguments.base)
    finally:
        shutil.rmtree(folder)
        _git("worktree", "prune")
    publish(
        record_document(
            name="revisions",
            command=f"python -m benchmarks.revisions PHOTOS --base {commit} --precision {arguments.precision} --rounds "
            f"{arguments.rounds} --steps {arguments.steps} --pictures {arguments.pictures} --files {arguments.files}",
            corpus=describe(photographs),
            quantities=_QUANTITIES,
            values=values,
            comparisons=[
                Comparison(
                    of=f"{kind}, {_HERE}",
                    quantity=_QUANTITY,
                    to=f"{kind}, {_BEFORE}",
                    at_least=_LISTING_AT_LEAST if kind == "listing" else _AT_LEAST,
                )
                for kind in kinds
            ],
            packages=["torch", "ray", "nvidia-dali-cuda130", "numba"],
        )
    )
    return 0


class _Measure:
    """Runs commands of a checkout and returns their speed.

    Args:
        arguments: Command line of the benchmark.
        folder: Working folder, which holds the dataset.
        source: Folder of the photographs to shard.
    """

    def __init__(self, arguments: Arguments, folder: Path, source: Path) -> None:
        self._arguments, self._folder, self._source = arguments, folder, source
        self._numbers: Iterator[int] = itertools.count()

    def training(self, launcher: Sequence[str], root: Path) -> Mapping[str, float]:
        """Train a small net on crops of the photographs."""
        run, dataset = self._new(), self._folder / "dataset"
        num_epochs = self._arguments.steps * _GLOBAL_BATCH_SIZE / Dataset.open(dataset).num_samples("train")
        options = ["--recipe", "small_demo", "--precision", self._arguments.precision, "--num-epochs", str(num_epochs)]
        options += ["--augmentation.crop-size", "32", "--global-batch-size", str(_GLOBAL_BATCH_SIZE)]
        options += ["--evaluations-per-epoch", "0.01", "--stuck-after-epochs", "100"]
        _run(root, "jobs.train", "--data", str(dataset), "--run", str(run), *options, *launcher)
        return {_QUANTITY: images_per_second(RunFolder.open(run), _FIRST_STEP)}

    def loading(self, root: Path) -> Mapping[str, float]:
        """Read the photographs in training batches."""
        report = self._new()
        _run(root, "pipeline.bench", str(self._folder / "dataset"), "--seconds", "3", "--json", str(report))
        return {_QUANTITY: json.loads(report.read_text())["stages"]["full"]["images_per_second"]}

    def sharding(self, root: Path) -> Mapping[str, float]:
        """Shard the photographs; start-up of all processes is included."""
        out = self._new()
        os.sync()  # so that data written by earlier runs do not slow down this one
        began = time.perf_counter()
        _run(root, "pipeline.shard", str(self._source), str(out), "--workers", "2")
        seconds = time.perf_counter() - began
        shutil.rmtree(out)
        return {_QUANTITY: self._arguments.pictures / seconds}

    def listing(self, root: Path) -> Mapping[str, float]:
        """List files and plan their shards; start-up of the process is included."""
        began = time.perf_counter()
        _run(root, "pipeline.shard", str(self._folder / "files"), str(self._new()), "--dry-run")
        return {_QUANTITY: self._arguments.files / (time.perf_counter() - began)}

    def _new(self) -> Path:
        return self._folder / str(next(self._numbers))


def _write_empty_files(folder: Path, number: int) -> None:
    """Fill class folders with files named like pictures."""
    for index in range(_NUM_CLASSES):
        (folder / f"train/n{index:08d}").mkdir(parents=True)
    for index in range(number):
        (folder / f"train/n{index % _NUM_CLASSES:08d}/{index}.JPEG").touch()


def _run(root: Path, module: str, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(root), "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


def _git(*arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if answer.returncode:
        raise InputError(f"git {arguments[0]}: {answer.stderr.strip()}; name a revision of this checkout with --base")
    return answer.stdout.strip()


if __name__ == "__main__":
    run_command(main)
