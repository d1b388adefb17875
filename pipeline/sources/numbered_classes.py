"""Classes that a source knows by number: named by the source itself, by classes.txt, or by their numbers."""

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.command import InputError
from pipeline.sources.base import ClassEntry

CLASS_NAMES = "classes.txt"  # one name a line, in the order of the numbers
_MAX_NUMBERS = 1_000_000  # classes without names: far beyond any set of pictures, small enough to be listed
_WNID = re.compile(r"n\d{8}")


def numbered_classes(root: Path, num_classes: int, names: Sequence[str] | None = None) -> list[ClassEntry]:
    """Return the classes of a source whose labels are numbers.

    Their wnids are the zero-padded numbers, so that the class_index is the number; where the names are wnids already,
    and sorted, these are kept.

    Args:
        root: The source's folder, which may hold classes.txt.
        num_classes: The largest label and one.
        names: What the source itself calls them; None asks classes.txt.

    Raises:
        InputError: There are fewer names than classes.
    """
    where, path = f"{root}", root / CLASS_NAMES
    if names is None and path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        where, names = f"{path}", [line.strip() for line in lines if line.strip()]
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
