"""Inventory of a source: what it holds, what is read and what is left out and why, before any picture is decoded.

Every file is a sample, an archive of samples, a table of labels or names, or left out for a stated reason; so is every
member of an archive. The counts add up. Leaving out a picture without the user's consent is an error. The content
decides what is a picture, not the name.
"""

import glob
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.command import InputError
from pipeline.sources.base import Listing, Members, Source
from pipeline.sources.folders import is_picture_name
from pipeline.sources.signatures import HEAD_BYTES, picture_format
from pipeline.sources.text import shown
from pipeline.sources.tree import (
    ANNOTATIONS,
    HIDDEN,
    LINK,
    UNLABELLED,
    LeftOut,
    SourceTree,
    ending_reason,
    ignore_option,
    leave_out,
    reason_of_pattern,
    walk_source,
)

_MAY_HOLD_PICTURES = frozenset((UNLABELLED, ANNOTATIONS, LINK))
_NAMED = 3  # missing classes, or options to leave files out, that a message names


@dataclass(frozen=True)
class ClassCount:
    """Number of samples of a class in a split."""

    wnid: str
    num_samples: int


@dataclass(frozen=True)
class SplitContent:
    """Contents of a split of the source.

    Attributes:
        num_samples: Number of samples.
        num_classes: Number of classes that have samples.
        first_class: First wnid.
        last_class: Last wnid.
        smallest: Class with the fewest samples, the first if there are several.
        largest: Class with the most samples, the first if there are several.
        missing: wnids of classes that only other splits have.
    """

    num_samples: int
    num_classes: int
    first_class: str
    last_class: str
    smallest: ClassCount
    largest: ClassCount
    missing: tuple[str, ...]

    def __str__(self) -> str:
        """Describe the split in words."""
        if self.num_classes == 1:
            return f"{_count(self.num_samples, 'sample')} of the class {shown(self.first_class)}"
        classes = f"{self.num_classes:,} classes, {shown(self.first_class)} to {shown(self.last_class)}"
        if self.smallest.num_samples == self.largest.num_samples:
            return f"{_count(self.num_samples, 'sample')} of {classes}, {self.smallest.num_samples:,} each"
        return (
            f"{_count(self.num_samples, 'sample')} of {classes}; the smallest is {shown(self.smallest.wnid)} with "
            f"{self.smallest.num_samples:,}, the largest {shown(self.largest.wnid)} with {self.largest.num_samples:,}"
        )


@dataclass(frozen=True)
class Inventory:
    """Contents of a source.

    Attributes:
        layout: Layout of the source.
        splits: Name -> content, as in the source, before a part of `train` becomes `val`.
        num_files: Number of files in the source's folder and below it.
        num_samples: Number of files that are one sample each.
        num_archives: Number of files that hold many samples.
        tables: Paths of files that give labels or names.
        left_out: Reason -> files left out for it.
        members: Members of the archives.
        without_effect: Patterns of `--ignore` that match nothing.
    """

    layout: str
    splits: dict[str, SplitContent]
    num_files: int
    num_samples: int
    num_archives: int
    tables: tuple[str, ...]
    left_out: Mapping[str, LeftOut]
    members: Members | None
    without_effect: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the content of `inventory.json`: no time, no host, no path outside the source."""
        return asdict(self)

    def __str__(self) -> str:
        """Describe the inventory in words, one fact per line."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for split, content in self.splits.items():
            yield f"{split}: {content}"
            if content.missing:
                names = ", ".join(map(shown, content.missing[:_NAMED]))
                more = f" and {len(content.missing) - _NAMED:,} more" if len(content.missing) > _NAMED else ""
                yield f"{split} has no sample of {names}{more}"
        counts = {"sample": self.num_samples, "archive": self.num_archives, "table": len(self.tables)}
        parts = [_count(number, what) for what, number in counts.items() if number]
        num_left_out = sum(found.num_files for found in self.left_out.values())
        parts += [f"{num_left_out:,} left out"] if num_left_out else []
        yield f"{_count(self.num_files, 'file')}: {', '.join(parts)}"
        yield from (_left_out_line(reason, found) for reason, found in sorted(self.left_out.items()))
        if self.members is not None and self.members.left_out:
            yield f"the archives hold {_count(self.members.num_found, 'member')}"
            yield from (_left_out_line(reason, found) for reason, found in sorted(self.members.left_out.items()))
        yield from (f"--ignore {pattern} has no effect" for pattern in self.without_effect)


def take_inventory(source: Source, listing: Listing) -> Inventory:
    """Account for every file of a source.

    Args:
        source: Source that was listed.
        listing: Listing of the source.

    Raises:
        InputError: A picture would be left out that the user did not leave out.
    """
    tree = listing.tree or walk_source(source.root, source.options.ignore)
    left_out = {reason: LeftOut(found.num_files, found.first) for reason, found in tree.left_out.items()}
    pictures: list[tuple[str, str]] = []
    read = {file for table in listing.splits.values() for file in table["file"].to_pylist()}
    tables = set(listing.tables)
    num_read, found_tables = 0, []
    for path in tree.files():
        if path in read:
            num_read += 1
        elif path in tables:
            found_tables.append(path)
        else:
            reason = _reason(path, listing.left_out)
            leave_out(left_out, reason, path)
            if reason not in _MAY_HOLD_PICTURES:
                pictures += _look_at(tree, path)
    for path in tree.hidden:
        leave_out(left_out, HIDDEN, path)
        pictures += _look_at(tree, path)
    if pictures:
        raise InputError(_unread_pictures(source, pictures, read | tables))
    num_archives = len(_archives(tree, listing)) if listing.members is not None else 0
    return Inventory(
        layout=source.layout,
        splits={split: _content(listing, table) for split, table in listing.splits.items()},
        num_files=tree.num_files,
        num_samples=num_read - num_archives,
        num_archives=num_archives,
        tables=tuple(sorted(found_tables)),
        left_out=dict(sorted(left_out.items())),
        members=listing.members,
        without_effect=_without_effect(source, left_out, listing.members),
    )


def _without_effect(source: Source, left_out: Mapping[str, LeftOut], members: Members | None) -> tuple[str, ...]:
    reasons = {*left_out, *(members.left_out if members else ())}
    return tuple(pattern for pattern in source.options.ignore if reason_of_pattern(pattern) not in reasons)


def _reason(path: str, left_out: Mapping[str, str]) -> str:
    """Return the reason why a file that the listing did not read is left out."""
    if left_out:
        parts = path.split("/")
        for end in range(len(parts), 0, -1):
            if (reason := left_out.get("/".join(parts[:end]))) is not None:
                return reason
    return ending_reason(path)


def _look_at(tree: SourceTree, path: str) -> list[tuple[str, str]]:
    """Return the path and format of a file if it is a picture by its content; else an empty list."""
    with open(tree.root / path, "rb", buffering=0) as file:
        kind = picture_format(file.read(HEAD_BYTES))
    return [(path, kind)] if kind else []


def _unread_pictures(source: Source, pictures: list[tuple[str, str]], needed: set[str]) -> str:
    path, kind = min(pictures)
    options = _ignore_options([name for name, _ in pictures], needed)
    more = f", and {len(options) - _NAMED:,} more" if len(options) > _NAMED else ""
    are = f"{len(pictures):,} files are pictures" if len(pictures) > 1 else "a file is a picture"
    return (
        f"{source.root}: {are} that the layout {source.layout} does not read (the first is {shown(path)}, {kind}); "
        f"give pictures the place and the ending that the layout asks for, name another --layout, or leave them out: "
        f"{' '.join(options[:_NAMED])}{more}"
    )


def _ignore_options(unread: list[str], needed: set[str]) -> list[str]:
    """Return as few options as possible that leave out the unread files but none of the needed ones."""
    endings = {os.path.splitext(name)[1] for name in needed}
    folders = {parent.as_posix() for name in needed for parent in PurePosixPath(name).parents}
    options: dict[str, None] = {}
    for name in sorted(unread):
        ending = os.path.splitext(name)[1]
        if ending and ending not in endings and not is_picture_name(name):
            option = f"--ignore {shlex.quote(f'*{glob.escape(ending)}')}"
        else:  # the highest folder that holds nothing else, or the file itself
            above = (parent.as_posix() for parent in reversed(PurePosixPath(name).parents))
            option = ignore_option(next((parent for parent in above if parent not in folders), name))
        options[option] = None
    return list(options)


def _archives(tree: SourceTree, listing: Listing) -> set[str]:
    """Return the files of a listing that hold more than one sample's bytes."""
    sizes = {
        folder.of(name): num_bytes
        for folder in tree.top.walk()
        for name, num_bytes in zip(folder.names, folder.sizes, strict=True)
    }
    archives = set()
    for table in listing.splits.values():
        grouped = table.group_by("file").aggregate([("offset", "max"), ("num_bytes", "sum")]).to_pylist()
        archives |= {
            row["file"]
            for row in grouped
            if row["file"] in sizes and (row["offset_max"] or row["num_bytes_sum"] != sizes[row["file"]])
        }
    return archives


def _content(listing: Listing, table: pa.Table) -> SplitContent:
    counts = np.bincount(table["class_index"].to_numpy(), minlength=len(listing.classes))
    present = np.flatnonzero(counts)
    wnids = [entry.wnid for entry in listing.classes]
    smallest, largest = present[np.argmin(counts[present])], present[np.argmax(counts[present])]
    return SplitContent(
        num_samples=table.num_rows,
        num_classes=len(present),
        first_class=wnids[present[0]],
        last_class=wnids[present[-1]],
        smallest=ClassCount(wnids[smallest], int(counts[smallest])),
        largest=ClassCount(wnids[largest], int(counts[largest])),
        missing=tuple(wnids[index] for index in np.flatnonzero(counts == 0).tolist()),
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _left_out_line(reason: str, found: LeftOut) -> str:
    return f"  left out: {found.num_files:,} {reason} (the first is {shown(found.first)})"
