"""Photographs that benchmarks work on, in class folders: `PHOTOS/train/CLASS/NAME.JPEG`, and the same for `val`."""

import errno
import itertools
import os
import random
from collections.abc import Sequence
from pathlib import Path

from pipeline.command import InputError


def list_photographs(folder: Path) -> list[Path]:
    """Return all pictures in a shuffled but always equal order.

    Raises:
        InputError: The folder holds no pictures.
    """
    paths = sorted(path for path in folder.glob("*/*/*") if path.suffix.lower() in {".jpeg", ".jpg"})
    if not paths:
        raise InputError(f"{folder} holds no train/CLASS/*.JPEG; name a folder of photographs in class folders")
    random.Random(0).shuffle(paths)
    return paths


def link_photographs(paths: Sequence[Path], folder: Path, number: int) -> Path:
    """Fill a folder with `number` hard links to pictures, repeated under new names if needed.

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
    """Return the number and size of the pictures, for a record."""
    num_bytes = sum(path.stat().st_size for path in paths)
    return f"{len(paths):,} JPEG photographs, {num_bytes / 1e6:,.0f} MB"
