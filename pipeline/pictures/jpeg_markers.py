"""What a JPEG's markers tell without decoding it (ITU T.81, annex B), and repairs of its markers and headers.

Markers are found as libjpeg finds them: fill bytes and bytes that belong to nothing are passed over.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

SOI, END_MARK = b"\xff\xd8", b"\xff\xd9"
_DHT, _SOS, _EOI, _APP0, _APP1, _APP2, _APP14 = 0xC4, 0xDA, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length: TEM, RST0 to RST7, SOI
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xCA}
_HUFFMAN = {0xC0, 0xC1}  # sequential, Huffman-coded
_END_OF_BLOCK = 0
_HOLE = bytes(32)  # with the usual tables, longer than any block whose coefficients are all -1
_LOSSLESS, _HIERARCHICAL = {0xC3, 0xCB}, {0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF}
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_MARKER_BEHIND_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_NUM_COEFFICIENTS = 64
_UNSEEN = 255


class Segment(NamedTuple):
    """A marker with its data: `content[start:end]`."""

    marker: int
    start: int
    end: int


def read_segments(content: bytes, place: int = len(SOI), expression: re.Pattern[bytes] = _MARKER) -> list[Segment]:
    """Return a JPEG's segments from `place` up to the header of the next scan, or up to the end mark.

    If the file was cut, the last segment may extend beyond its end.
    """
    found = []
    while match := expression.search(content, place):
        start, marker = match.start(), content[match.start() + 1]
        has_length = marker not in _ALONE and marker != _EOI
        place = start + 2 + (max(2, int.from_bytes(content[start + 2 : start + 4], "big")) if has_length else 0)
        found.append(Segment(marker, start, place))
        if marker in (_SOS, _EOI):
            break
        expression = _MARKER
    return found


def may_be_turned(content: bytes, segments: list[Segment]) -> bool:
    """Return whether the JPEG has an EXIF block, or an XMP packet with an orientation."""
    for marker, start, end in segments:
        if marker == _APP1 and (
            content.startswith(b"Exif\0", start + 4)
            or (
                content.startswith(b"http://ns.adobe.com/xap/1.0/\0", start + 4)
                and content.find(b"tiff:Orientation", start, end) >= 0
            )
        ):
            return True
    return False


def orientation_part(content: bytes, segments: list[Segment]) -> bytes:
    """Return the headers with no application data except EXIF and XMP, since other data may confuse parsers."""
    others = {*range(_APP0, _APP0 + 16)} - {_APP1}
    return SOI + b"".join(content[s.start : s.end] for s in segments if s.marker not in others)


def may_hold_several(content: bytes, segments: list[Segment]) -> bool:
    """Return whether the JPEG has an index of further pictures that follow it (CIPA DC-007, multi-picture format)."""
    return any(s.marker == _APP2 and content.startswith(b"MPF\0", s.start + 4) for s in segments)


def unsupported_process(content: bytes, segments: list[Segment]) -> str:
    """Return the name of a JPEG's coding process if common decoders do not support it, else an empty string."""
    frame = next((s for s in segments if s.marker in _FRAMES), None)
    if frame is None or frame.end > len(content):
        return ""
    if frame.marker in _LOSSLESS | _HIERARCHICAL:
        return "lossless JPEG" if frame.marker in _LOSSLESS else "hierarchical JPEG"
    if content[frame.start + 4] != 8:
        return f"a JPEG of {content[frame.start + 4]} bits per sample"
    no_height = content[frame.start + 5 : frame.start + 7] == b"\0\0"
    return "a JPEG whose height follows its first scan" if no_height else ""


def lacks_scans(content: bytes, segments: list[Segment]) -> bool:
    """Return whether the file ends before its scans have given every coefficient of every component to the last bit.

    No decoder warns of that: a progressive JPEG that was cut between two scans decodes to a blurred picture.
    """
    frame = next((s for s in segments if s.marker in _FRAMES), None)
    if frame is None or not segments or segments[-1].marker != _SOS:
        return False
    num_components = content[frame.start + 9]
    components = content[frame.start + 10 : frame.start + 10 + 3 * num_components : 3]
    progressive = frame.marker in _PROGRESSIVE
    if not progressive and content[segments[-1].start + 4] == num_components:
        return False  # the usual JPEG: one scan with everything
    missing_bits = {component: bytearray([_UNSEEN] * _NUM_COEFFICIENTS) for component in components}
    for scan in _scans(content, segments):
        num_in_scan = content[scan.start + 4]
        names = content[scan.start + 5 : scan.start + 5 + 2 * num_in_scan : 2]
        first, last, bits = 0, _NUM_COEFFICIENTS - 1, 0
        if progressive:
            first, last, bits = content[scan.end - 3 : scan.end]
        for name in names:
            if name in missing_bits and last < _NUM_COEFFICIENTS:
                missing_bits[name][first : last + 1] = bytes([bits & 15]) * (last + 1 - first)
    return any(map(any, missing_bits.values()))


def _scans(content: bytes, segments: list[Segment]) -> Iterator[Segment]:
    """Yield the headers of the scans whose data have begun."""
    while segments and segments[-1].marker == _SOS and segments[-1].end < len(content):
        yield segments[-1]
        segments = read_segments(content, segments[-1].end, _MARKER_BEHIND_SCAN)


def has_end_mark(content: bytes, segments: list[Segment]) -> bool:
    """Return whether the scans are followed by an end mark."""
    return _end_of_scans(content, segments)[1]


def lacks_data(content: bytes, segments: list[Segment]) -> bool:
    """Return whether a scan has zeros in place of data, as in an unfinished download.

    The decoder takes zeros for data. They can be data if the all-zeros code ends a block, as in plain areas; otherwise
    they mean blocks in which all frequencies are equally strong, which no picture has.
    """
    if not any(s.marker in _HUFFMAN for s in segments) or content.find(_HOLE, segments[-1].end) < 0:
        return False
    zero_codes: dict[int, int] = {}
    while segments and segments[-1].marker == _SOS:  # each scan has its own components, and perhaps its own tables
        zero_codes |= _zero_codes(content, segments)
        scan = segments[-1]
        segments = read_segments(content, scan.end, _MARKER_BEHIND_SCAN)
        end = segments[0].start if segments else len(content)
        selectors = content[scan.start + 6 : scan.start + 5 + 2 * content[scan.start + 4] : 2]
        if content.find(_HOLE, scan.end, end) >= 0 and any(
            zero_codes.get(0x10 | selector & 15, _END_OF_BLOCK) != _END_OF_BLOCK for selector in selectors
        ):
            return True
    return False


def _zero_codes(content: bytes, segments: list[Segment]) -> Iterator[tuple[int, int]]:
    """Yield the class and number of each Huffman table, and the symbol with the all-zeros code: its first one."""
    for segment in segments:
        if segment.marker == _DHT:
            place = segment.start + 4
            while place + 17 < segment.end:
                yield content[place], content[place + 17]
                place += 17 + sum(content[place + 1 : place + 17])


def mended(content: bytes, segments: list[Segment]) -> Iterator[tuple[bytes, tuple[str, ...]]]:
    """Yield candidate repairs of a JPEG, without anything that its encoder should not have written, and their notes.

    Nothing is invented: all pixels are present if the decoder accepts one of the candidates without a warning.
    """
    if not segments or segments[-1].marker != _SOS:
        return
    notes = []
    head, place = [SOI], len(SOI)
    frame = next((s for s in segments if s.marker in _FRAMES), None)
    num_components = int.from_bytes(content[frame.start + 9 : frame.start + 10], "big") if frame else 0
    progressive = frame is not None and frame.marker in _PROGRESSIVE
    for segment in segments:
        if content[place : segment.start].strip(b"\xff"):
            notes.append("extraneous_bytes")
        place = segment.end
        head.append(_plain_header(segment.marker, content[segment.start : segment.end], progressive, num_components))
    if b"".join(head[1:]) != b"".join(content[s.start : s.end] for s in segments):
        notes.append("odd_header")
    end, has_end_mark = _end_of_scans(content, segments)
    if not has_end_mark:
        notes.append("no_end_mark")
    data = content[place:end].rstrip(b"\xff")
    padding = data[-1:]
    stripped = data.rstrip(padding)
    fixed = b"".join(head)
    yield fixed + data + END_MARK, tuple(dict.fromkeys(notes))
    if len(data) - len(stripped) > 1:  # padding; the data may end in the same byte
        for num_kept in range(3):
            yield (
                fixed + stripped + padding * num_kept + END_MARK,
                tuple(dict.fromkeys(["extraneous_bytes", *notes])),
            )


def _end_of_scans(content: bytes, segments: list[Segment]) -> tuple[int, bool]:
    """Return the position after the last data, and whether an end mark follows."""
    while segments and segments[-1].marker == _SOS and segments[-1].end <= len(content):
        segments = read_segments(content, segments[-1].end, _MARKER_BEHIND_SCAN)
    if segments and segments[-1].marker == _EOI:
        return segments[-1].start, True
    is_cut = segments and segments[-1].end > len(content)
    return segments[-1].start if is_cut else len(content), False


def _plain_header(marker: int, segment: bytes, progressive: bool, num_components: int) -> bytes:
    """Return a segment in which values that libjpeg warns of are replaced by those it assumes."""
    if marker == _APP0 and segment[4:9] == b"JFIF\0" and segment[9:10] != b"\x01":
        return segment[:9] + b"\x01\x01" + segment[11:]
    transform = {3: 1, 4: 2}.get(num_components, 0)  # to YCbCr, to YCCK
    if marker == _APP14 and segment[4:9] == b"Adobe" and len(segment) >= 16 and segment[15] not in (0, transform):
        return segment[:15] + bytes([transform]) + segment[16:]
    if marker == _SOS and not progressive:
        return segment[:-3] + bytes([0, _NUM_COEFFICIENTS - 1, 0])
    return segment
