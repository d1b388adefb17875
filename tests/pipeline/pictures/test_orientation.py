"""Pictures are turned as EXIF or XMP says, wherever that stands in the file; the note says what was done."""

import io

import numpy as np
import pytest
from pictures import before_mark, changed, decoded, encoded, photo, png_chunk, png_of_sixteen_bits
from PIL import Image, ImageOps, PngImagePlugin

from pipeline.pictures.decode import decode_picture
from pipeline.pictures.encode import EncodingConfig, store_picture
from pipeline.pictures.jpeg_markers import read_segments

ORIENTATION = 0x0112
# The corners of the upright picture, and what is stored of them for each orientation.
CORNERS = np.array([[40, 100], [160, 220]], dtype=np.uint8)
STORED = {
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.T,
    6: np.rot90(CORNERS, 1),
    7: CORNERS[::-1, ::-1].T,
    8: np.rot90(CORNERS, -1),
}


def _exif(value, kind: int | None = None) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    content = exif.tobytes()
    if kind is not None:  # another type of the same field
        order = "little" if content[6:8] == b"II" else "big"
        content = changed(content, content.index(ORIENTATION.to_bytes(2, order)) + 2, kind.to_bytes(2, order))
    return content


def _image(orientation: int, mode: str) -> Image.Image:
    """Return a picture of four plain quarters, 48x32 upright."""
    stored = STORED[orientation]
    factors = (16, 24) if orientation < 5 else (24, 16)
    grey = np.repeat(np.repeat(stored, factors[0], 0), factors[1], 1)
    return Image.fromarray(grey).convert(mode)


def _file(orientation: int, kind: str) -> bytes:
    exif = _exif(orientation)
    if kind == "PNG 16":
        grey = np.asarray(_image(orientation, "L")).astype(np.uint16) << 8
        return before_mark(png_of_sixteen_bits(grey[..., None]), b"\0\0\0\0IEND", png_chunk(b"eXIf", exif[6:]))
    if kind == "PNG behind the pixels":
        return before_mark(encoded(_image(orientation, "RGB"), "PNG"), b"\0\0\0\0IEND", png_chunk(b"eXIf", exif[6:]))
    if kind == "PNG as text":
        info = PngImagePlugin.PngInfo()
        info.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n")
        return encoded(_image(orientation, "RGB"), "PNG", pnginfo=info)
    file_format, mode, options = {
        "JPEG grey": ("JPEG", "L", {}),
        "JPEG RGB": ("JPEG", "RGB", {}),
        "JPEG CMYK": ("JPEG", "CMYK", {}),
        "JPEG progressive": ("JPEG", "RGB", {"progressive": True}),
        "PNG 8": ("PNG", "RGB", {}),
        "PNG palette": ("PNG", "P", {}),
        "AVIF": ("AVIF", "RGB", {"quality": 100}),
        "WebP": ("WEBP", "RGB", {"lossless": True}),
        "TIFF": ("TIFF", "RGB", {}),
        "TIFF 16": ("TIFF", "I;16", {}),
        "TIFF CMYK": ("TIFF", "CMYK", {}),
        "TIFF grey": ("TIFF", "L", {"compression": "tiff_lzw"}),
        "TIFF deflated": ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    }[kind]
    if mode == "I;16":
        deep = Image.fromarray(np.asarray(_image(orientation, "L")).astype(np.uint16) << 8)
        return encoded(deep, file_format, tiffinfo={ORIENTATION: orientation})
    if file_format == "TIFF":
        return encoded(_image(orientation, mode), file_format, tiffinfo={ORIENTATION: orientation}, **options)
    return encoded(_image(orientation, mode), file_format, exif=exif, **options)


KINDS = [
    "JPEG grey", "JPEG RGB", "JPEG CMYK", "JPEG progressive", "PNG 8", "PNG 16", "PNG palette", "PNG as text",
    "PNG behind the pixels", "WebP", "TIFF", "TIFF grey", "TIFF deflated", "TIFF 16", "TIFF CMYK", "AVIF",
]  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_orientation_and_kind_is_turned_upright(kind, orientation):
    picture = decode_picture(_file(orientation, kind))
    assert picture.pixels_HWC.shape == (32, 48, 3)
    corners = picture.pixels_HWC[[4, -5]][:, [4, -5]].astype(int)
    assert np.abs(corners - CORNERS[..., None]).max() <= 8
    assert ("exif_rotated" in picture.notes) == (orientation != 1)


EXIF_6 = encoded(photo(96, 64), exif=_exif(6))
PLAIN = encoded(photo(96, 64))
APP1 = b"\xff\xe1"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


XMP_SEGMENT = _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)
TURNED = {
    "plain": EXIF_6,
    "a fill byte before it": before_mark(EXIF_6, APP1, b"\xff"),
    "many fill bytes before it": before_mark(EXIF_6, APP1, b"\xff" * 50),
    "fill bytes before the first segment": EXIF_6[:2] + b"\xff\xff" + EXIF_6[2:],
    "behind a comment with fill bytes": before_mark(EXIF_6, APP1, b"\xff" + _segment(0xFE, b"abcd")),
    "behind a comment that looks like it": EXIF_6[:2] + _segment(0xFE, b"Exif\0\0") + EXIF_6[2:],
    "behind another APP1": before_mark(EXIF_6, APP1, _segment(0xE1, b"something else")),
    "behind an APP2": before_mark(EXIF_6, APP1, _segment(0xE2, b"ICC_PROFILE\0\1\1")),
    "behind bytes that belong to nothing": before_mark(EXIF_6, APP1, b"\0\1\2"),
    "behind a short Adobe segment": before_mark(EXIF_6, APP1, _segment(0xEE, b"Adobe")),
    "before a short colour profile": before_mark(EXIF_6, b"\xff\xdb", _segment(0xE2, b"ICC_PROFILE\0")),
    "before a broken index of pictures": before_mark(EXIF_6, b"\xff\xdb", _segment(0xE2, b"MPF\0garbage")),
    "XMP alone": before_mark(PLAIN, b"\xff\xdb", XMP_SEGMENT),
    "XMP behind EXIF without it": before_mark(
        encoded(photo(96, 64), exif=Image.Exif().tobytes()), b"\xff\xdb", XMP_SEGMENT
    ),
}


@pytest.mark.parametrize("name", TURNED)
def test_a_jpegs_orientation_is_found_wherever_it_stands(name):
    picture = decode_picture(TURNED[name])
    assert picture.notes[-1] == "exif_rotated" and picture.jpeg is None
    assert np.array_equal(picture.pixels_HWC, np.rot90(decoded(PLAIN), -1))
    stored = store_picture(TURNED[name], EncodingConfig(encoding="original", size=32))
    assert (stored.width, stored.height) == (64, 96)
    assert Image.open(io.BytesIO(stored.data)).getexif().get(ORIENTATION, 1) == 1


@pytest.mark.parametrize("name", [name for name in TURNED if not {"nothing", "short", "broken"} & {*name.split()}])
def test_jpegs_are_turned_as_pillow_does(name):
    image = Image.open(io.BytesIO(TURNED[name]))
    assert np.array_equal(decode_picture(TURNED[name]).pixels_HWC, np.asarray(ImageOps.exif_transpose(image)))


def _broken(content: bytes) -> bytes:
    return changed(content, content.index(b"Exif\0\0") + 6, b"XX\0\0\xff\xff\xff\xff")


UPRIGHT = {
    "no EXIF": PLAIN,
    "absent": encoded(photo(96, 64), exif=Image.Exif().tobytes()),
    "0": encoded(photo(96, 64), exif=_exif(0)),
    "9": encoded(photo(96, 64), exif=_exif(9)),
    "60000": encoded(photo(96, 64), exif=_exif(60000)),
    "65536": encoded(photo(96, 64), exif=_exif(6, kind=4).replace(b"\x06\0\0\0", b"\0\0\x01\0")),
    "a string": encoded(photo(96, 64), exif=_exif(6, kind=2)),
    "a rational": encoded(photo(96, 64), exif=_exif(6, kind=5)),
    "a signed byte": encoded(photo(96, 64), exif=_exif(250, kind=6)),
    "a broken block": _broken(EXIF_6),
    "an empty block": before_mark(PLAIN, b"\xff\xdb", _segment(0xE1, b"Exif\0\0")),
    "XMP of 9": before_mark(PLAIN, b"\xff\xdb", XMP_SEGMENT.replace(b'"6"', b'"9"')),
    "XMP in a comment": before_mark(PLAIN, b"\xff\xdb", _segment(0xFE, XMP)),
}


@pytest.mark.parametrize("name", UPRIGHT)
def test_an_invalid_orientation_is_upright_without_a_note(name):
    picture = decode_picture(UPRIGHT[name])
    assert picture.notes == () and picture.jpeg == UPRIGHT[name]
    assert np.array_equal(picture.pixels_HWC, decoded(PLAIN))


@pytest.mark.parametrize(
    ("content", "markers"),
    [
        (b"\xff\xd8", []),
        (b"\xff\xd8\xff", []),
        (b"\xff\xd8" + b"\xff" * 100_000, []),
        (b"\xff\xd8" + b"\xff\x00" * 1000, []),
        (b"\xff\xd8\xff\xe1", [0xE1]),
        (b"\xff\xd8\xff\xe1\x00", [0xE1]),
        (b"\xff\xd8\xff\xe1\x00\x00\xff\xd9", [0xE1, 0xD9]),
        (b"\xff\xd8\xff\xe1\xff\xffExif", [0xE1]),
        (b"\xff\xd8\xff\x01\xff\xd0\xff\xd7\xff\xda\x00\x02\xff\xe1", [0x01, 0xD0, 0xD7, 0xDA]),
        (b"\xff\xd8abc\xff\xff\xfe\x00\x04\xff\xe1\xff\xd9\xff\xe1", [0xFE, 0xD9]),
    ],
)
def test_markers_are_read_from_any_bytes(content, markers):
    assert [segment.marker for segment in read_segments(content)] == markers
