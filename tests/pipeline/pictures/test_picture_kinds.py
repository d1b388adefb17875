"""Formats, modes and depths: what is taken and noted; files for prediction follow the same rules."""

import io

import numpy as np
import pytest
from pictures import encoded, photo, png_of_rows, png_of_sixteen_bits
from PIL import Image

from pipeline.command import InputError
from pipeline.pictures.decode import RejectedPicture, decode_picture
from pipeline.pictures.encode import EncodingConfig, store_picture
from pipeline.pictures.picture_files import read_square
from tests.pipeline.pictures.test_odd_pictures import CMYK, DAMAGED, PLAIN


def _interlaced(pixels: np.ndarray) -> list[bytes]:
    """Return the rows of a PNG's seven passes, each with its filter's number."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    parts = [pixels[top::down, left::right] for top, left, down, right in passes]
    return [b"\0" + row.tobytes() for part in parts if part.size for row in part]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (9, 17), (20, 3)])
def test_an_interlaced_png_is_whole_or_damaged(shape):
    pixels = np.random.Generator(np.random.Philox(key=3)).integers(0, 256, (*shape, 3), dtype=np.uint8)
    rows = _interlaced(pixels)
    whole, lacking = (png_of_rows(b"".join(part), shape[1], shape[0], interlaced=True) for part in (rows, rows[:-1]))
    assert np.array_equal(decode_picture(whole).pixels_HWC, pixels) and decode_picture(whole).notes == ("png",)
    with pytest.raises(RejectedPicture):
        decode_picture(lacking)


def test_what_other_programs_would_draw_is_rejected():
    with pytest.raises(RejectedPicture, match="undecodable: EPS is drawn by programs outside of this one"):
        decode_picture(encoded(photo(), "EPS"))


FRAMES = [photo(), photo().transpose(Image.Transpose.ROTATE_180)]
DEEP = np.random.Generator(np.random.Philox(key=2)).integers(0, 1 << 16, (20, 30, 4), dtype=np.uint16)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_of_several_pictures_is_taken_and_noted(file_format):
    options = {"lossless": True} if file_format == "WEBP" else {}
    content = encoded(FRAMES[0], file_format, save_all=True, append_images=FRAMES[1:], **options)
    alone = encoded(FRAMES[0], "JPEG" if file_format == "MPO" else file_format, **options)
    picture, single = decode_picture(content), decode_picture(alone)
    assert "one_of_several" in picture.notes and "one_of_several" not in single.notes
    assert set(picture.notes) - {"one_of_several", "alpha"} == set(
        single.notes
    )  # an animated WebP has an alpha channel
    assert np.array_equal(picture.pixels_HWC, single.pixels_HWC)
    assert (picture.jpeg == content) == (file_format == "MPO")


def test_the_largest_picture_of_an_icon_is_taken_and_noted():
    picture = decode_picture(encoded(photo(128, 128), "ICO", sizes=[(16, 16), (64, 64)]))
    assert picture.pixels_HWC.shape == (64, 64, 3) and picture.notes[:2] == ("ico", "one_of_several")


@pytest.mark.parametrize("num_channels", [1, 2, 3, 4])
def test_of_sixteen_bits_the_upper_eight_are_kept_and_noted(num_channels):
    pixels = DEEP[..., :num_channels]
    picture = decode_picture(png_of_sixteen_bits(pixels))
    kind = {1: ("grey",), 2: ("alpha",), 3: (), 4: ("alpha",)}[num_channels]
    assert picture.notes == ("png", "sixteen_bit", *kind)
    expected = (pixels >> 8).astype(np.uint8)
    assert np.array_equal(picture.pixels_HWC, expected[..., :3] if num_channels > 2 else expected[..., [0, 0, 0]])


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (encoded(photo().convert("1"), "PNG"), ("png", "grey")),
        (encoded(photo().convert("LA"), "PNG"), ("png", "alpha")),
        (encoded(photo().convert("P"), "PNG", transparency=bytes(range(200))), ("png", "palette")),
        (encoded(photo().convert("P"), "PNG", transparency=3), ("png", "palette")),
    ],
    ids=["1 bit", "grey and alpha", "palette of transparencies", "a transparent colour"],
)
def test_other_modes_have_a_rule_and_warn_of_nothing(content, notes):
    picture = decode_picture(content)
    assert picture.notes == notes and picture.pixels_HWC.shape == (149, 201, 3)


ODD_FILES = {
    "a.avif": encoded(photo(), "AVIF"),
    "x.jp2": encoded(photo(), "JPEG2000"),
    "w.webp": encoded(photo(), "WEBP"),
    "cmyk.jpg": CMYK,
    "thin.png": encoded(Image.new("RGB", (1, 500)), "PNG"),
    "dot.png": encoded(Image.new("L", (1, 1)), "PNG"),
    "float.tif": encoded(Image.new("F", (8, 8)), "TIFF"),
    "zero.jpg": b"",
    "page.jpg": b"<html>404",
    "cut.jpg": PLAIN[:900],
    "damaged.jpg": DAMAGED["zeros inside"],
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_a_file_for_prediction_follows_the_same_rules(tmp_path, name):
    (tmp_path / name).write_bytes(ODD_FILES[name])
    encoding = EncodingConfig(encoding="jpeg", size=32)
    try:
        expected = store_picture(ODD_FILES[name], encoding)
    except RejectedPicture as rejected:
        with pytest.raises(InputError) as error:
            read_square(tmp_path / name, encoding)
        assert str(error.value) == f"{tmp_path / name} is not a complete picture ({rejected}); leave it out"
        assert "\n" not in str(error.value) and "0x7" not in str(error.value)
    else:
        assert np.array_equal(read_square(tmp_path / name, encoding), decode_picture(expected.data).pixels_HWC)


def test_a_damaged_file_is_predicted_where_the_dataset_kept_such(tmp_path):
    (tmp_path / "d.jpg").write_bytes(DAMAGED["zeros inside"])
    square = read_square(tmp_path / "d.jpg", EncodingConfig(encoding="jpeg", size=32, damaged="note"))
    assert square.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (f"cannot identify image file {io.BytesIO()!r}", "cannot identify image file"),
        ("two\nlines \0 of\ttext", "two lines \0 of text"),
        ("a surrogate \udc80", "a surrogate \\udc80"),
        ("x" * 300, "x" * 197 + "..."),
    ],
    ids=["address", "control characters", "surrogate", "long"],
)
def test_a_detail_is_the_same_line_in_every_process(error, detail):
    assert RejectedPicture("undecodable", error).detail == detail
