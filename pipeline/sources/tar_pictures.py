"""Pictures of tars that hold only pictures, like ImageNet's; members that are not pictures are left out and counted."""

import itertools
from collections.abc import Sequence
from typing import BinaryIO

from pipeline.command import InputError
from pipeline.sources.base import Members
from pipeline.sources.folders import is_picture_name
from pipeline.sources.signatures import HEAD_BYTES, picture_format
from pipeline.sources.tar_headers import Member, scan_tar
from pipeline.sources.tree import (
    HIDDEN,
    SYSTEM,
    LeftOut,
    ending_reason,
    ignore_option,
    ignored_reason,
    is_system_name,
    leave_out,
)


class TarPictures:
    """Lists tars and accounts for their members."""

    def __init__(self, ignore: Sequence[str]) -> None:
        """Take the patterns of members to leave out."""
        self._ignore = ignore
        self._num_found = 0
        self._left_out: dict[str, LeftOut] = {}

    @property
    def members(self) -> Members:
        """Members found so far."""
        return Members(self._num_found, left_out=self._left_out)

    def list(self, file: BinaryIO, start: int, end: int, name: str) -> list[Member]:
        """Return the pictures of the tar that spans the bytes from `start` to `end` of a file, sorted by name.

        Args:
            file: File opened without buffering.
            start: Position of the tar's start.
            end: Position of the tar's end.
            name: Name of the tar, for messages.

        Raises:
            InputError: The tar is damaged, holds two pictures of one name, or a picture that is not named like one.
        """
        pictures = []
        for member in scan_tar(file, start, end):
            self._num_found += 1
            reason = self._reason_to_leave_out(file, member, name)
            if reason is None:
                pictures.append(member)
            else:
                leave_out(self._left_out, reason, f"{name}/{member.name}")
        pictures.sort()
        for before, after in itertools.pairwise(pictures):
            if before.name == after.name:
                raise InputError(f"{file.name}: {name} holds {after.name} twice; pack it again")
        return pictures

    def _reason_to_leave_out(self, file: BinaryIO, member: Member, name: str) -> str | None:
        if reason := ignored_reason(f"{name}/{member.name}", self._ignore):
            return reason
        if is_system_name(member.name):
            return SYSTEM
        is_hidden = member.name.startswith(".")
        if is_picture_name(member.name) and not is_hidden:
            return None
        file.seek(member.offset)
        kind = picture_format(file.read(min(HEAD_BYTES, member.num_bytes)))
        if kind is not None:
            raise InputError(
                f"{file.name}: {member.name} of {name} is a picture ({kind}), but not named like one; rename it, or "
                f"leave it out: {ignore_option(f'{name}/{member.name}')}"
            )
        return HIDDEN if is_hidden else ending_reason(member.name)
