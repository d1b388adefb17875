"""Positions of the members of an uncompressed tar, found by reading only its headers.

The scan goes from header to header and reads nothing between them, so small and large members cost the same. A tar
inside a tar is a range of the outer file. USTAR, GNU, PAX and old V7 headers are understood. Faults that tarfile passes
over in silence are refused: a missing or damaged header, a size that is not a number, a member with holes.

The end mark is two blocks of zeros, padded by writers to a whole record. More or fewer zeros are a sign of an
incomplete download, since many programs allocate the whole file first: they are refused, and the message names their
position. Another tar may follow an end mark (`cat a.tar b.tar`), unless no member precedes the mark, or the member
before it also ends in zeros. A link has its target's bytes.
"""

import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pipeline.command import InputError
from pipeline.sources.foreign_files import foreign_kind

_BLOCK = tarfile.BLOCKSIZE
_END_MARK = 2 * _BLOCK
_LONGEST_RECORD = 2**20
_RECORDS = (  # the usual length; those of `tar --blocking-factor`
    tarfile.RECORDSIZE,
    *(2**power for power in range(14, 21)),
)
_CHUNK = 64 * 1024
_LINE_BREAKING = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")
_CHECK_SUM, _USTAR = slice(148, 156), b"ustar\0"  # GNU's magic ends differently; its prefix field has another use
_MAX_EXTENSION_BYTES = 2**20  # for an extended header: names and attributes, which systems limit to 64 KiB each
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG_NAMES = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_EXTENSION_TYPES = (*_PAX_TYPES, *_LONG_NAMES)
_LINK_TYPES = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_OTHER_TYPES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)  # not files; no data follow
_GNU_OTHER_TYPES = (b"D", b"V")  # a folder's list of names, a volume's label: not files, but data may follow


class Member(NamedTuple):
    """A file in a tar; `offset` is the position of its first byte in the (outermost) file."""

    name: str
    offset: int
    num_bytes: int


class _Header(NamedTuple):
    """Values of a header's own fields."""

    name: str
    num_bytes: int
    kind: bytes
    link: str


class _Entry(NamedTuple):
    """A file, or a link if `target` is not None; `target` is the target's normalised name."""

    name: str
    offset: int
    num_bytes: int
    target: str | None


def scan_tar(file: BinaryIO, start: int, end: int) -> Iterator[Member]:
    """Yield the members of a tar with their base names, without folders; see `scan_paths`."""
    for path, offset, num_bytes in scan_paths(file, start, end):
        yield Member(path.rpartition("/")[2], offset, num_bytes)


def scan_paths(file: BinaryIO, start: int, end: int) -> Iterator[Member]:
    """Yield the files of the tar that spans the bytes from `start` to `end` of `file`, with their full names.

    Args:
        file: File opened without buffering. The caller may read it between two members.
        start: Position of the tar's first header.
        end: Position of the tar's end.

    Raises:
        InputError: A header is damaged, the tar is cut short or lacks a piece, a member is stored with holes, or a link
            has no target in the tar.
    """
    targets: dict[str, _Entry | None] | None = None
    for entry in _scan_entries(file, start, end):
        name, offset, num_bytes, target = entry
        if target is not None:
            if targets is None:  # only a tar with links is scanned twice
                targets = _entries_by_name(file, start, end)
            _, offset, num_bytes, _ = _follow(file, entry, targets)
        yield Member(name, offset, num_bytes)


def _scan_entries(file: BinaryIO, start: int, end: int) -> Iterator[_Entry]:
    descriptor = file.fileno()
    position = first = start
    zeros = None  # start of the zeros before this header
    global_fields: dict[str, str] = {}
    fields: dict[str, str] = {}  # values that extended headers give for the next member
    is_extended = False  # whether the previous header was an extended one
    data_end = 0  # end of the last member that has data
    try:
        while True:
            header = os.pread(descriptor, min(_BLOCK, end - position), position)
            if len(header) == _BLOCK and not header[0] and not any(header):
                if is_extended:
                    raise tarfile.ReadError("an extended header without its member")
                zeros, position = position, _skip_zeros(file, position, first, end)
                if position == end:
                    return
                # No tar begins with its end mark; and if the member before ends in zeros, the zeros began too early.
                if zeros == start or (data_end and os.pread(descriptor, 1, data_end - 1) == b"\0"):
                    raise _lacks_a_piece(file, zeros, f"up to byte {position}")
                first = position
                continue
            if len(header) < _BLOCK:
                raise tarfile.ReadError("no end mark" if end > start else "it is empty")
            name, num_bytes, kind, link = _parse(header)
            data = position + _BLOCK
            if kind in _EXTENSION_TYPES:
                if not 0 <= num_bytes <= _MAX_EXTENSION_BYTES or data + _padded(num_bytes) > end:
                    raise tarfile.ReadError(f"an extended header of {num_bytes} bytes")
                content = os.pread(descriptor, num_bytes, data)
                position = data + _padded(num_bytes)
                is_extended = kind != tarfile.XGLTYPE
                if kind in _LONG_NAMES:
                    fields[_LONG_NAMES[kind]] = _text(content.partition(b"\0")[0])
                else:
                    (global_fields if kind == tarfile.XGLTYPE else fields).update(_pax_fields(content))
                continue
            if fields or global_fields:
                known = global_fields | fields
                name, link = known.get("path", name), known.get("linkpath", link)
                num_bytes = _number(known["size"]) if "size" in known else num_bytes
                if any(key.startswith("GNU.sparse.") for key in known):
                    kind = tarfile.GNUTYPE_SPARSE
                fields = {}
            is_extended = False
            if kind == tarfile.GNUTYPE_SPARSE:
                raise InputError(f"{file.name} stores {name} with holes; pack it again without --sparse")
            if kind in _LINK_TYPES or kind in _OTHER_TYPES:
                position = data  # whatever size the header gives
            elif kind in _FILE_TYPES or kind in _GNU_OTHER_TYPES:
                position = data + _padded(num_bytes)
            else:
                raise tarfile.ReadError(f"{name} has the unknown type {kind!r}")
            if num_bytes < 0 or position > end:
                raise tarfile.ReadError(f"{name} of {num_bytes} bytes would end outside the archive")
            if position > data:
                data_end = data + num_bytes
            if kind in _FILE_TYPES:
                yield _Entry(name, data, num_bytes, None)
            elif kind in _LINK_TYPES:
                yield _Entry(name, data, 0, _target(name, link, kind == tarfile.SYMTYPE))
            zeros = None
    except (tarfile.TarError, ValueError) as error:
        if zeros is not None:
            raise _lacks_a_piece(file, zeros, f"and no member at byte {position}") from error
        kind_of_file = foreign_kind(os.pread(descriptor, _BLOCK, start)) if position == start else None
        if kind_of_file is not None:
            where = f" at byte {start}" if start else ""
            raise InputError(f"{file.name} is not a tar{where}: it {kind_of_file}") from error
        raise InputError(
            f"{file.name} is damaged or cut short at byte {position} ({error}); get the archive again"
        ) from error


def _skip_zeros(file: BinaryIO, zeros: int, first: int, end: int) -> int:
    """Return where an end mark and its padding end: at the end of the file range, or at another tar's first header.

    Args:
        file: Archive that is scanned.
        zeros: Position where the zeros begin.
        first: Position of the first header of the tar that may end here.
        end: Position where the scanned range ends.

    Raises:
        InputError: The zeros are not an end mark.
    """
    position, limit = zeros, min(end, zeros + _LONGEST_RECORD + _END_MARK)
    while position < limit:
        chunk = os.pread(file.fileno(), min(_CHUNK, limit - position), position)
        num_zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        position += num_zeros
        if num_zeros < len(chunk) or not chunk:
            break
    num_zeros = position - zeros
    if position == end:
        if num_zeros < _END_MARK:
            raise tarfile.ReadError("half an end mark")
        records = [record for record in _RECORDS if record == tarfile.RECORDSIZE or (end - first) % record == 0]
        if num_zeros > max(records) + _BLOCK:
            raise _lacks_a_piece(file, zeros, "up to its end")
        return end
    position -= num_zeros % _BLOCK  # start of the block of the first non-zero byte
    num_zeros = position - zeros
    whole_records = (position - first) % tarfile.RECORDSIZE == 0 and num_zeros <= tarfile.RECORDSIZE + _BLOCK
    if num_zeros < _END_MARK or not (num_zeros == _END_MARK or whole_records):
        raise _lacks_a_piece(file, zeros, f"up to byte {position}")
    return position


def _lacks_a_piece(file: BinaryIO, zeros: int, where: str) -> InputError:
    return InputError(
        f"{file.name} holds zeros from byte {zeros} on, {where}, which are not the end of a tar: the download lacks a "
        "piece; get the archive again (if it is complete nevertheless, unpack it and pack it again)"
    )


def _parse(block: bytes) -> _Header:
    """Parse a header, except owners, modes and times; tarfile, which parses all, takes twice as long.

    Raises:
        ReadError: The block is damaged or not a header.
    """
    others = block[: _CHECK_SUM.start] + b" " * 8 + block[_CHECK_SUM.stop :]
    check_sum = _field_number(block[_CHECK_SUM])
    # Old programs sum signed bytes.
    if check_sum != sum(others) and check_sum != sum(others) - 256 * sum(byte > 127 for byte in others):
        raise tarfile.ReadError("bad checksum")
    name, kind = _field_text(block[:100]), block[156:157]
    if kind == tarfile.AREGTYPE and name.endswith("/"):
        kind = tarfile.DIRTYPE  # V7's form of a folder
    if block[257:263] == _USTAR and block[345]:
        name = f"{_field_text(block[345:500])}/{name}"
    return _Header(name, _field_number(block[124:136]), kind, _field_text(block[157:257]))


def _field_number(field: bytes) -> int:
    """Return a number stored in octal digits, or in binary if the first byte says so."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] == 0xFF:
        return int.from_bytes(field, "big", signed=True)
    digits = field.partition(b"\0")[0].strip(b" ")
    if digits and not digits.isdigit():
        raise tarfile.ReadError(f"the number {digits!r}")
    return int(digits or b"0", 8)


def _field_text(field: bytes) -> str:
    return _text(field.partition(b"\0")[0])


def _pax_fields(content: bytes) -> dict[str, str]:
    """Return the records `LENGTH KEY=VALUE` of an extended header; LENGTH counts the whole record."""
    fields = {}
    while content:
        length, space, rest = content.partition(b" ")
        record = rest[: int(length) - len(length) - 1] if length.isdigit() else b""
        key, equals, value = record[:-1].partition(b"=")
        if not (space and equals and record.endswith(b"\n")):
            raise tarfile.ReadError("a record of an extended header is incomplete")
        fields[_text(key)] = _text(value)
        content = content[int(length) :]
    return fields


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise tarfile.ReadError(f"the size {text!r}")
    return int(text)


def _text(content: bytes) -> str:
    """Return a name, with a backslash escape for whatever is not UTF-8 or would break a line."""
    return _LINE_BREAKING.sub(lambda match: ascii(match[0])[1:-1], content.decode("utf-8", "backslashreplace"))


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // _BLOCK) * _BLOCK


def _target(name: str, link: str, symbolic: bool) -> str:
    """Return the normalised name of a link's target; a symbolic link is relative to its own folder."""
    if symbolic:
        return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
    return posixpath.normpath(link)


def _entries_by_name(file: BinaryIO, start: int, end: int) -> dict[str, _Entry | None]:
    """Return normalised name -> entry of a tar; None for a name that two entries share."""
    found: dict[str, _Entry | None] = {}
    for entry in _scan_entries(file, start, end):
        name = posixpath.normpath(entry.name)
        found[name] = None if name in found else entry
    return found


def _follow(file: BinaryIO, link: _Entry, entries: dict[str, _Entry | None]) -> _Entry:
    """Return the file that a link, or a chain of links, leads to.

    Raises:
        InputError: The link leads to no file, or to several.
    """
    seen = set()
    found: _Entry | None = link
    while found is not None and found.target is not None and found.target not in seen:
        seen.add(found.target)
        found = entries.get(found.target)
    if found is None or found.target is not None:
        raise InputError(
            f"{file.name}: {link.name} is a link to {link.target}, which is not a single file of this "
            "archive; pack it again with the files themselves (tar --dereference --hard-dereference)"
        )
    return found
