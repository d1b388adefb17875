"""Each oddity of real pictures: one rule, one note; what is no whole picture is rejected with a reason."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.encode import EncodingConfig, RejectedPicture, store_picture

JPEG = EncodingConfig(encoding="jpeg", size=32)
ORIGINAL = EncodingConfig(encoding="original", size=32)


def _gradient(width: int = 48, height: int = 40) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 60)], axis=-1).astype(np.uint8))


def _bytes(image: Image.Image, file_format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    return _bytes(_gradient(), exif=exif)


ODD = {
    "cmyk": _bytes(_gradient().convert("CMYK")),
    "grey": _bytes(_gradient().convert("L")),
    "png": _bytes(_gradient(), "PNG"),
    "exif_rotated": _rotated(),
}


@pytest.mark.parametrize("note", ODD)
def test_oddities_are_normalised_and_noted(note):
    stored = store_picture(ODD[note], JPEG)
    assert stored.notes == (note,)
    assert stored.pixels_HWC.shape == (32, 32, 3) and stored.pixels_HWC.dtype == np.uint8
    with Image.open(io.BytesIO(stored.data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))


@pytest.mark.parametrize(("note", "kept"), [("cmyk", False), ("png", False), ("exif_rotated", False), ("grey", True)])
def test_original_keeps_all_bytes_but_those_of_odd_formats(note, kept):
    stored = store_picture(ODD[note], ORIGINAL)
    assert (stored.data == ODD[note]) == kept
    with Image.open(io.BytesIO(stored.data)) as image:
        assert image.format == "JPEG" and image.size == (stored.width, stored.height)
        assert image.getexif().get(0x0112, 1) == 1


def test_a_rotated_picture_is_turned_upright():
    stored = store_picture(ODD["exif_rotated"], ORIGINAL)
    assert (stored.width, stored.height) == (40, 48)
    upright = np.asarray(Image.open(io.BytesIO(stored.data)).convert("RGB")).astype(int)
    expected = np.rot90(np.asarray(_gradient()), -1)
    assert np.abs(upright - expected).max() < 12


def test_several_oddities_of_one_picture_are_all_noted():
    transparent = _gradient().convert("RGBA")
    assert store_picture(_bytes(transparent, "PNG"), JPEG).notes == ("png", "alpha")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not a picture at all", "undecodable"),
        (_bytes(_gradient())[:400], "undecodable"),
        (_bytes(_gradient(200, 200), quality=95)[:-600], "truncated"),
        (_bytes(_gradient(200, 200), "PNG")[:-300], "truncated"),
    ],
    ids=["empty", "text", "header only", "cut JPEG", "cut PNG"],
)
def test_what_is_no_whole_picture_is_rejected(content, reason):
    with pytest.raises(RejectedPicture) as rejected:
        store_picture(content, JPEG)
    assert rejected.value.reason in (reason, "truncated" if reason == "undecodable" else reason)


def test_grey_of_sixteen_bits_keeps_its_upper_eight():
    deep = Image.fromarray(np.full((40, 40), 0x8123, dtype=np.uint16))
    stored = store_picture(_bytes(deep, "PNG"), EncodingConfig(encoding="raw", size=32))
    assert stored.notes == ("png", "grey")
    assert np.unique(stored.pixels_HWC).tolist() == [0x81]


def test_pixels_without_a_rule_are_rejected():
    with pytest.raises(RejectedPicture, match="pixels of mode F"):
        store_picture(_bytes(Image.new("F", (8, 8)), "TIFF"), JPEG)


def test_a_decompression_bomb_is_rejected_before_it_is_decoded():
    bomb = _bytes(Image.new("L", (20_000, 20_000)), "PNG", compress_level=1)
    with pytest.raises(RejectedPicture, match="too_large"):
        store_picture(bomb, JPEG)


def test_raw_stores_the_pixels_behind_a_header_of_128_bytes():
    pixels = np.arange(28 * 28 * 3, dtype=np.uint32).astype(np.uint8).reshape(28, 28, 3)
    stored = store_picture(pixels, EncodingConfig(encoding="raw", size=None))
    assert np.array_equal(np.load(io.BytesIO(stored.data)), pixels)
    assert stored.data[128:] == pixels.tobytes()


def test_the_centre_square_is_what_remains():
    wide = np.zeros((40, 80, 3), dtype=np.uint8)
    wide[:, 20:60] = 200
    stored = store_picture(_bytes(Image.fromarray(wide), "PNG"), EncodingConfig(encoding="raw", size=20))
    assert stored.pixels_HWC[:, 2:-2].min() > 190


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": "webp", "size": 32}, "encoding is 'webp'"),
        ({"encoding": "jpeg", "size": 0}, "size is 0"),
        ({"encoding": "jpeg", "size": 32, "quality": 100}, "quality is 100"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        EncodingConfig(**fields)
