"""Make the datasets for the checks on a GPU: synthetic pictures of ImageNet's sizes, as jpeg, raw and original.

DATA gets a folder for each encoding and one for the archives. Existing datasets are kept. A second command on the same
folder waits for the first one.
"""

import fcntl
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline import shard, synthesize
from pipeline.command import InputError, run_command
from pipeline.format.manifest import DATASET_JSON
from pipeline.paths import shared_path
from pipeline.sources.devkit import DEVKIT_ARCHIVE

ENCODINGS = ("jpeg", "raw", "original")
_LOCK, _SOURCE = "lock", "archives"
_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.gpu.datasets`."""

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Folder for the datasets."""
    train_per_class: int = 300
    """Training pictures of each of the 10 classes."""
    val_per_class: int = 50
    """Validation pictures of each class."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    for name in ("train_per_class", "val_per_class", "workers"):
        if getattr(arguments, name) < 1:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is {getattr(arguments, name)}; it must be at least 1")
    data = shared_path(arguments.data, "DATA")
    data.mkdir(parents=True, exist_ok=True)
    with open(data / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source, missing = data / _SOURCE, missing_datasets(data)
        if missing and not (source / DEVKIT_ARCHIVE).exists():  # written last
            synthesize.synthesize(
                source,
                classes=_CLASSES,
                train_per_class=arguments.train_per_class,
                val_per_class=arguments.val_per_class,
                workers=arguments.workers,
            )
        for encoding in missing:
            options = ["--encoding", encoding, "--workers", str(arguments.workers)]
            shard.main([str(source), str(data / encoding), *options])
    sys.stdout.write(f"datasets: {data}\n")
    return 0


def missing_datasets(data: Path) -> list[str]:
    """Return the encodings whose dataset does not exist or is not complete."""
    return [encoding for encoding in ENCODINGS if not (data / encoding / DATASET_JSON).exists()]


if __name__ == "__main__":
    run_command(main)
