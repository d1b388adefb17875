"""The pictures that benchmarks work on: class folders `PHOTOS/train/CLASS/NAME.JPEG`, and `val` likewise."""

import errno
import itertools
import os
import random
from collections.abc import Sequence
from pathlib import Path

from pipeline.command import InputError


def list_photographs(folder: Path) -> list[Path]:
    """Return all pictures in an order that is shuffled, but always the same.

    Raises:
        InputError: There are none.
    """
    paths = sorted(path for path in folder.glob("*/*/*") if path.suffix.lower() in {".jpeg", ".jpg"})
    if not paths:
        raise InputError(f"{folder} holds no train/CLASS/*.JPEG; name a folder of photographs in class folders")
    random.Random(0).shuffle(paths)
    return paths


def link_photographs(paths: Sequence[Path], folder: Path, number: int) -> Path:
    """Fill a folder with `number` hard links to pictures, repeated under new names as often as it takes.

    Raises:
        InputError: The folder is on another file system than the pictures.
    """
    for index, path in enumerate(itertools.islice(itertools.cycle(paths), number)):
        split, wnid, name = path.parts[-3:]
        link = folder / split / wnid / f"{index}_{name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, link)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise InputError(
                f"{folder.parent} is on another file system than {path}; set TMPDIR to a folder beside the pictures"
            ) from error
    return folder


def describe(paths: Sequence[Path]) -> str:
    """Return number and size of the pictures, for a record."""
    num_bytes = sum(path.stat().st_size for path in paths)
    return f"{len(paths):,} JPEG photographs, {num_bytes / 1e6:,.0f} MB"
