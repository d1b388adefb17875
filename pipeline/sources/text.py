"""Text tables of a source: class names and labels in UTF-8."""

import codecs
from pathlib import Path

from pipeline.command import InputError

_MARKS = {  # first bytes of files in other encodings; the longer ones first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_lines(path: Path) -> list[str]:
    """Return a text file's lines, without line ends (LF, CRLF or CR).

    Raises:
        InputError: The file is missing, or is not UTF-8 (with or without a byte order mark).
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; it comes with the pictures") from error
    return decode_lines(content, str(path))


def decode_lines(content: bytes, name: str) -> list[str]:
    """Return the lines of a text file's content; see `read_lines`.

    Args:
        content: Content of the file.
        name: Name of the file, for messages.

    Raises:
        InputError: The content is not UTF-8.
    """
    found = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), None)
    if found is None and b"\0" in content:
        found = "UTF-16 or UTF-32 without a byte order mark, or not text at all"
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = found or f"Latin-1, Windows-1252 or another (byte {error.object[error.start]:#04x} at {error.start})"
    if found is not None:
        encoding = found if found in _MARKS.values() else "ENCODING"
        raise InputError(
            f"{name} is not UTF-8 but {found}; convert it, for example with `iconv -f {encoding} -t UTF-8`"
        )
    return [line.rstrip("\r\n") for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")][
        : None if text and not text.endswith(("\n", "\r")) else -1
    ]


def shown(name: str) -> str:
    """Return a name in a form that fits in a line of text: escaped if it can't be printed."""
    return name if name.isprintable() else ascii(name)
