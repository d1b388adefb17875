"""What the names of a set's files tell: the split, and whether all numbered parts are present.

A part's name ends in its number (train-000003), or in its number and the number of parts (train-00003-of-00005),
perhaps followed by a hash. Numbers begin at 0 or 1. A gap means an unfinished download. A number that occurs twice, or
parts that disagree on the number of parts, mean that two uploads share one folder.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline.command import InputError
from pipeline.sources.split_names import split_of

WAY_OUT = "keep those of one set, or leave files out with --ignore PATTERN"
_PART = re.compile(
    r"(?P<series>.*?)(?P<digits>\d+)(-of-(?P<total>\d+)(-[0-9A-Za-z]+)?)?(?P<ending>\.[a-z]+)", re.DOTALL | re.ASCII
)


class _Part(NamedTuple):
    number: int
    digits: str
    total: str | None
    name: str


def split_words(name: str) -> tuple[str, ...]:
    """Return the words in a name, separated by anything but letters, that name a split."""
    return tuple(word for word in re.split(r"[^a-z]+", name.lower()) if split_of(word))


def series_of(name: str) -> str:
    """Return a file's name without its part number, the number of parts and the hash."""
    match = _PART.fullmatch(name)
    return f"{match['series']}{match['ending']}" if match else name


def check_words(where: str, words: Mapping[str, str]) -> None:
    """Check that each split is named by a single word: `val` and `dev` side by side may be two sets.

    Args:
        where: Folder of the files, for messages.
        words: File or folder -> word in its name that names a split.

    Raises:
        InputError: A split is named by two words.
    """
    first: dict[str, tuple[str, str]] = {}
    for name, word in words.items():
        split = str(split_of(word))
        other, other_word = first.setdefault(split, (name, word))
        if word != other_word:
            raise InputError(f"{where} uses two words for {split}, in {other} and {name}; {WAY_OUT}")


def check_parts(where: str, names: Iterable[str], partial: bool) -> None:
    """Check that the numbered files among `names` form complete sets.

    Args:
        where: Folder of the files, for messages.
        names: File names, relative to the folder.
        partial: True to accept sets with missing parts.

    Raises:
        InputError: Parts are missing, or belong to different sets.
    """
    sets: dict[tuple[str, str], list[_Part]] = {}
    for name in names:
        match = _PART.fullmatch(name)
        if match is not None:
            part = _Part(int(match["digits"]), match["digits"], match["total"], name)
            sets.setdefault((match["series"], match["ending"]), []).append(part)
    for (series, ending), parts in sets.items():
        parts.sort(key=lambda part: (part.number, part.name))
        _check_one_set(where, parts)
        first, num_missing = _find_gap(parts)
        if num_missing and not partial:
            total = f"-of-{parts[0].total}" if parts[0].total else ""
            more = f" and {num_missing - 1} more of its set" if num_missing > 1 else ""
            width = min(len(part.digits) for part in parts)
            raise InputError(
                f"{where} lacks {series}{first:0{width}d}{total}{ending}{more}; get what is missing, or read what is "
                "there with --partial"
            )


def _check_one_set(where: str, parts: Sequence[_Part]) -> None:
    """Check that sorted parts are numbered alike, and that each occurs once.

    Raises:
        InputError: Parts are numbered differently, or one occurs twice.
    """
    narrowest = min(parts, key=lambda part: len(part.digits))
    other = next((part for part in parts if part.total != parts[0].total), None)
    if other is not None:
        raise InputError(f"{where} holds parts of two sets, {parts[0].name} and {other.name}; {WAY_OUT}")
    for part, after in zip(parts, [*parts[1:], None], strict=True):
        if after is not None and part.number == after.number:
            raise InputError(f"{where} holds one part twice, {part.name} and {after.name}; {WAY_OUT}")
        if part.digits != f"{part.number:0{len(narrowest.digits)}d}":
            raise InputError(f"{where} numbers parts in two ways, {narrowest.name} and {part.name}; {WAY_OUT}")
    lowest, highest, total = parts[0].number, parts[-1].number, parts[0].total
    if total is not None and (highest > int(total) or highest - lowest >= int(total)):
        raise InputError(f"{where} holds {parts[-1].name}, which is not one of {int(total)} parts; {WAY_OUT}")


def _find_gap(parts: Sequence[_Part]) -> tuple[int, int]:
    """Return the first missing number and the count of missing numbers in the sorted parts of one set."""
    lowest, highest, total = parts[0].number, parts[-1].number, parts[0].total
    if total is not None:
        begin = 1 if highest == int(total) else 0
        end = begin + int(total)
    else:
        is_padded = any(part.digits.startswith("0") for part in parts)  # if not, it may be a year or a version
        begin, end = (min(lowest, 1) if is_padded else lowest), highest + 1
    numbers = {part.number for part in parts}
    first = next((number for number in range(begin, end) if number not in numbers), end)
    return first, end - begin - len(parts)
