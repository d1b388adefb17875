"""Samples of one WebDataset tar: members with the same name up to the first dot, grouped by the webdataset library.

Every member is accounted for: it is a sample's picture, or gives its label, or is left out and counted by reason. A
picture is never left out in silence, and no label is chosen if several differ.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pipeline.command import InputError
from pipeline.sources.base import ListingOptions, Members
from pipeline.sources.signatures import HEAD_BYTES, picture_format
from pipeline.sources.tar_headers import Member, scan_paths
from pipeline.sources.tree import HIDDEN, SYSTEM, LeftOut, ignore_option, ignored_reason, is_system_name, leave_out

PIXELS = "npy"
PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "tif", "tiff", PIXELS)
_LABELS = ("cls", "cls.txt", "label", "index")
_JSON, _JSON_LABELS = "json", ("label", "cls")
_MAX_LABEL_BYTES = 2**24  # for a member that holds a label, and perhaps much more
_NO_EXTENSION, _EXTRA = "members without an extension", "members that are neither a picture nor a label"


@dataclass(frozen=True)
class Sample:
    """One sample: the position of its picture, and its class."""

    key: str
    extension: str
    picture: Member
    class_index: int


@dataclass
class FoundMembers:
    """Counts of the members of tars, updated while the tars are read."""

    num_found: int = 0
    num_labels: int = 0
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    def count(self) -> Members:
        """Return the counts."""
        return Members(self.num_found, self.num_labels, self.left_out)


class SampleReader:
    """Reads the samples of one tar."""

    def __init__(self, file: BinaryIO, name: str, options: ListingOptions, found: FoundMembers) -> None:
        """Take the open tar, its name for messages, the options, and the counts to update."""
        self._file, self._name, self._options, self._found = file, name, options, found

    def read_samples(self) -> Iterator[Sample]:
        """Yield the samples in the tar's order.

        Raises:
            InputError: The tar is damaged, or a sample has no picture or no label, or several; the message names it.
        """
        from webdataset.tariterators import group_by_keys  # takes seconds to import, since it loads torch

        members = ({"__url__": self._file.name, "fname": m.name, "data": m} for m in self._scan())
        try:
            for sample in group_by_keys(members):
                yield self._read_sample(sample.pop("__key__"), sample)
        except ValueError as error:
            raise InputError(
                f"{self._file.name}: {error.args[0]}; pack it again with one name for each member"
            ) from error

    def _scan(self) -> Iterator[Member]:
        """Yield the members that belong to a sample."""
        from webdataset.tariterators import base_plus_ext

        for member in scan_paths(self._file, 0, os.fstat(self._file.fileno()).st_size):
            self._found.num_found += 1
            reason = self._reason_to_leave_out(member.name)
            if reason == HIDDEN:
                self._leave_out(HIDDEN, member, "but hidden")
            elif reason is not None:
                leave_out(self._found.left_out, reason, f"{self._name}/{member.name}")
            elif base_plus_ext(member.name)[0] is None:
                self._leave_out(_NO_EXTENSION, member, "but has no extension, so that it belongs to no sample")
            else:
                yield member

    def _reason_to_leave_out(self, name: str) -> str | None:
        if reason := ignored_reason(name.removeprefix("./"), self._options.ignore):
            return reason
        parts = [part for part in name.split("/") if part not in ("", ".", "..")]
        if any(map(is_system_name, parts)):
            return SYSTEM
        return HIDDEN if any(part.startswith(".") for part in parts) else None

    def _leave_out(self, reason: str, member: Member, why: str) -> None:
        """Count a member as left out.

        Raises:
            InputError: The member is a picture.
        """
        picture = picture_format(os.pread(self._file.fileno(), min(HEAD_BYTES, member.num_bytes), member.offset))
        if picture is not None:
            _, dot, extension = member.name.rpartition("/")[2].partition(".")
            is_kind = reason == _EXTRA and dot
            option = f"--ignore '*.{extension}'" if is_kind else ignore_option(member.name.removeprefix("./"))
            raise InputError(
                f"{self._file.name}: {member.name} is a picture ({picture}), {why}; "
                f"leave such members out with {option}, or pack the tar again"
            )
        leave_out(self._found.left_out, reason, f"{self._name}/{member.name}")

    def _read_sample(self, key: str, sample: dict[str, Any]) -> Sample:
        members: dict[str, Member] = {name: member for name, member in sample.items() if name != "__url__"}
        extension = _first_member(PICTURES, members, f"{self._file.name}: the sample {key} has no picture")
        labels = self._read_labels(key, members)
        if len(set(labels.values())) > 1:
            both = " and ".join(f"{label} ({name})" for name, label in labels.items())
            other = next(name for name, label in labels.items() if label != next(iter(labels.values())))
            raise InputError(
                f"{self._file.name}: the sample {key} has the labels {both}; leave out those that are wrong, "
                f"with --ignore '*.{other}' for example"
            )
        for name, member in members.items():
            if name != extension and name not in labels:
                self._leave_out(_EXTRA, member, f"but the sample {key} already has one, its {extension}")
        self._found.num_labels += len(labels)
        return Sample(key, extension, members[extension], next(iter(labels.values())))

    def _read_labels(self, key: str, members: dict[str, Member]) -> dict[str, int]:
        """Return extension -> label of a sample; there is at least one."""
        name = f"{self._file.name}: the sample {key}"
        needed = _first_member((*_LABELS, _JSON), members, f"{name} has no label")
        labels = {}
        for extension in (*_LABELS, _JSON):
            if extension not in members:
                continue
            member = members[extension]
            if member.num_bytes > _MAX_LABEL_BYTES:
                raise InputError(f"{name} has the {extension} of {member.num_bytes} bytes, too long for a label")
            content = os.pread(self._file.fileno(), member.num_bytes, member.offset)
            label = _label_of_json(content) if extension == _JSON else _label_of_text(content)
            if label is not None:
                labels[extension] = label
            elif extension == needed or extension != _JSON:  # a json beside a label may hold something else
                raise InputError(
                    f"{name} has the {extension} {content[:40]!r}, which gives no label; labels are integers from 0"
                )
        return labels


def _first_member(extensions: tuple[str, ...], members: dict[str, Member], lack: str) -> str:
    """Return the first extension that a sample has.

    Raises:
        InputError: The sample has none of them; the message begins with `lack`.
    """
    for extension in extensions:
        if extension in members:
            return extension
    found = ", ".join(members)
    raise InputError(
        f"{lack} ({', '.join(extensions)}) but {found}; a sample's members must lie next to each other, "
        "under one name up to the first dot"
    )


def _label_of_text(content: bytes) -> int | None:
    match = re.fullmatch(rb"\s*([0-9]{1,10})\s*", content)
    return _in_range(int(match[1])) if match else None


def _label_of_json(content: bytes) -> int | None:
    """Return the label of a json member, or None if it holds none, or two that differ."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return _in_range(document)
    labels = [document[key] for key in _JSON_LABELS if key in document]
    return _in_range(labels[0]) if labels and all(label == labels[0] for label in labels) else None


def _in_range(label: Any) -> int | None:
    return label if type(label) is int and 0 <= label < 2**31 else None
