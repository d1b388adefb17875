"""Recognition of files that are not what they should be: compressed files, web pages, pointers to files elsewhere."""

_KINDS = {  # first bytes of the file -> what it is, and what to do
    b"\x1f\x8b": "is compressed by gzip; decompress it first: gzip -dc FILE > NEW",
    b"BZh": "is compressed by bzip2; decompress it first: bzip2 -dc FILE > NEW",
    b"\xfd7zXZ\0": "is compressed by xz; decompress it first: xz -dc FILE > NEW",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; decompress it first: zstd -dc FILE > NEW",
    b"\x04\x22\x4d\x18": "is compressed by lz4; decompress it first: lz4 -dc FILE > NEW",
    b"PK\x03\x04": "is a zip; unpack it first: unzip FILE",
    b"7z\xbc\xaf\x27\x1c": "is packed by 7-Zip; unpack it first: 7z x FILE",
    b"Rar!": "is packed by RAR; unpack it first: unrar x FILE",
    b"version https://git-lfs": "is Git LFS's pointer to the file; get the file itself: git lfs pull",
}
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body")


def foreign_kind(head: bytes) -> str | None:
    """Return what a file is, by its first bytes, and what to do, as the end of a sentence; None if unknown."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_PAGES):
        return "is a web page, perhaps an error or a login; get the file again"
    return next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), None)
