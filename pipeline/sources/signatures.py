"""Recognition of picture formats by a file's first bytes, since names may be wrong."""

HEAD_BYTES = 32  # enough for every format
_PICTURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"8BPS": "Photoshop",
    b"DDS ": "DDS",
    b"qoif": "QOI",
}
_ISO_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC"}
_WHITE_SPACE = b" \t\r\n"


def picture_format(head: bytes) -> str | None:
    """Return the name of the picture format of a file that begins with these bytes, or None.

    Args:
        head: First `HEAD_BYTES` bytes of the file, or all if it has fewer.
    """
    for signature, name in _PICTURES.items():
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return _ISO_BRANDS.get(head[8:12])
    if head[:2] == b"BM" and head[6:10] == bytes(4):  # two reserved fields
        return "BMP"
    if len(head) > 2 and head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in _WHITE_SPACE:
        return "PNM"
    return None
