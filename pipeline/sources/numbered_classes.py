"""Classes with numbers as labels: named by the source itself, by classes.txt, or by their numbers."""

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.command import InputError
from pipeline.sources.base import ClassEntry
from pipeline.sources.text import read_lines

CLASS_NAMES = "classes.txt"  # one name per line, in the order of the numbers
_MAX_NUMBERS = 1_000_000  # most classes without names: more than any set of pictures has, few enough to be listed
_WNID = re.compile(r"n\d{8}")


def numbered_classes(root: Path, num_classes: int, names: Sequence[str] | None = None) -> list[ClassEntry]:
    """Return the classes of a source whose labels are numbers.

    The wnids are the zero-padded numbers, so the class_index is the number. If the names are already wnids, and
    sorted, they are kept.

    Args:
        root: Folder of the source, which may hold classes.txt.
        num_classes: Largest label plus one.
        names: Class names given by the source; None: read from classes.txt.

    Raises:
        InputError: There are fewer names than classes.
    """
    where, path = f"{root}", root / CLASS_NAMES
    if names is None and path.exists():
        where, names = f"{path}", read_names(path)
    if names is None:
        if num_classes > _MAX_NUMBERS:
            raise InputError(f"{root} has the label {num_classes - 1}; labels must number the classes from 0")
        names = [str(label) for label in range(num_classes)]
    if len(names) < num_classes:
        raise InputError(f"{where} names {len(names)} classes, but the labels need {num_classes}; name them all")
    if all(_WNID.fullmatch(name) for name in names) and list(names) == sorted(set(names)):
        return [ClassEntry(name, name) for name in names]
    width = len(str(len(names) - 1))
    return [ClassEntry(f"{label:0{width}d}", name) for label, name in enumerate(names)]


def read_names(path: Path) -> list[str]:
    """Read class names, one per line, in the order of their numbers; empty lines may follow.

    Raises:
        InputError: A line between names is empty, so the following numbers are uncertain; or the file is not text.
    """
    names = [line.strip() for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise InputError(f"{path}: line {names.index('') + 1} names no class; write one name per line, from class 0 on")
    return names


def class_tables(root: Path, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the file that `numbered_classes` reads with the same arguments, if any."""
    return (CLASS_NAMES,) if names is None and (root / CLASS_NAMES).exists() else ()
