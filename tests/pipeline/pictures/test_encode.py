"""Each oddity of real pictures: one rule, one note; what is not a complete picture is rejected with a reason."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures import decode
from pipeline.pictures.decode import RejectedPicture, decode_picture
from pipeline.pictures.encode import EncodingConfig, store_picture

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


@pytest.mark.parametrize("side", [20, 32, 40, 63, 64, 100, 135])
def test_statistics_of_originals_count_points_of_the_centred_square(side):
    pixels_HWC = np.random.default_rng(side).integers(0, 256, (side, side + 7, 3), dtype=np.uint8)
    box = max(1, side // 32)
    num_boxes = side // box
    covered = pixels_HWC[: num_boxes * box, 3 : 3 + num_boxes * box].astype(float)
    means = covered.reshape(num_boxes, box, num_boxes, box, 3).mean((1, 3))
    nearest = [int((place + 0.5) * num_boxes / 32) for place in range(32)]
    points_HWC = store_picture(pixels_HWC, ORIGINAL).pixels_HWC
    assert points_HWC.flags.c_contiguous and points_HWC.dtype == np.uint8
    assert np.abs(points_HWC - means[nearest][:, nearest]).max() <= (0.5 if box > 1 else 0)


def test_points_of_originals_have_the_statistics_of_the_resized_square():
    x, y = np.meshgrid(np.arange(500), np.arange(375))
    waves = [np.sin(x / 30 + channel) * np.cos(y / (45 + channel)) for channel in range(3)]
    pixels_HWC = (128 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
    for size in (256, 100, 48):
        points, resized = (
            store_picture(pixels_HWC, EncodingConfig(encoding=encoding, size=size)).pixels_HWC.reshape(-1, 3)
            for encoding in ("original", "raw")
        )
        assert np.abs(points.mean(0) - resized.mean(0)).max() < 0.5
        assert np.abs(points.std(0) / resized.std(0) - 1).max() < 0.01


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
    assert stored.notes == ("png", "sixteen_bit", "grey")
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


def _photo_like(width: int, height: int) -> Image.Image:
    """Smooth colour with some noise, as a JPEG encoder expects it."""
    noise = np.random.Generator(np.random.Philox(key=1)).normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(_gradient(width, height)) + noise, 0, 255).astype(np.uint8))


PLAIN = {
    "4:2:0": _bytes(_photo_like(201, 149), subsampling=2),
    "4:2:2": _bytes(_photo_like(201, 149), subsampling=1),
    "4:4:4": _bytes(_photo_like(201, 149), subsampling=0),
    "progressive": _bytes(_photo_like(201, 149), progressive=True),
    "grey": _bytes(_photo_like(201, 149).convert("L")),
    "EXIF upright": _bytes(_photo_like(201, 149), exif=Image.Exif()),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_jpeg_is_decoded_to_pillows_bits(name):
    direct, judged = decode_picture(PLAIN[name]), decode._decode_other(PLAIN[name], "reject")
    assert np.array_equal(direct.pixels_HWC, judged.pixels_HWC)
    assert direct.notes == judged.notes and direct.jpeg == PLAIN[name]


def test_any_cut_of_a_jpeg_is_rejected_or_whole():
    content = PLAIN["4:2:0"]
    for length in range(0, len(content) - 2, 97):
        with pytest.raises(RejectedPicture):
            decode_picture(content[:length])


@pytest.mark.parametrize("size", [(100, 64), (64, 100), (97, 61), (61, 97), (20, 31), (40, 40), (32, 50)])
def test_the_centre_square_is_resized_as_pillow_does(size):
    image = _photo_like(*size)
    stored = store_picture(np.array(image), EncodingConfig(encoding="raw", size=32))
    left, top = (size[0] - min(size)) // 2, (size[1] - min(size)) // 2
    square = image.crop((left, top, left + min(size), top + min(size)))
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert (
        np.abs(stored.pixels_HWC - expected).max() <= 3
    )  # another order of the two passes, weights of other precision
    assert (stored.source_width, stored.source_height) == size


def test_without_a_crop_the_whole_resized_picture_is_stored_and_its_centre_counted():
    content = _bytes(_photo_like(97, 61), quality=95)
    cut, whole = (store_picture(content, EncodingConfig(encoding="jpeg", size=32, crop=c)) for c in ("centre", "none"))
    assert (cut.width, cut.height, whole.width, whole.height) == (32, 32, 51, 32)
    assert np.array_equal(cut.pixels_HWC, whole.pixels_HWC)
    with Image.open(io.BytesIO(whole.data)) as image:
        assert image.size == (51, 32)
        centre = np.asarray(image.crop((9, 0, 41, 32))).astype(int)
    assert np.abs(centre - whole.pixels_HWC).mean() < 6


@pytest.mark.parametrize("size", [(100, 64), (64, 100), (20, 61), (32, 50), (50, 32), (32, 32)])
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_squashed_pictures_are_resized_as_pillow_does_and_counted_as_stored(size, encoding):
    image = _photo_like(*size)
    stored = store_picture(np.array(image), EncodingConfig(encoding=encoding, size=32, crop="squash"))
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(stored.pixels_HWC - expected).max() <= 3  # as above
    assert (stored.width, stored.height, stored.source_width, stored.source_height) == (32, 32, *size)
    if encoding == "raw":
        assert np.array_equal(np.load(io.BytesIO(stored.data)), stored.pixels_HWC)
    else:
        decoded = np.asarray(Image.open(io.BytesIO(stored.data))).astype(int)
        assert decoded.shape == (32, 32, 3) and np.abs(decoded - stored.pixels_HWC).mean() < 10


def test_a_strip_that_would_grow_beyond_all_bounds_is_rejected():
    with pytest.raises(RejectedPicture, match=r"too_large: 60000x1 pixels would become 15360000x256"):
        store_picture(_bytes(Image.new("RGB", (60_000, 1))), EncodingConfig(encoding="jpeg", size=256, crop="none"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoding": "webp", "size": 32}, "encoding is 'webp'"),
        ({"encoding": "jpeg", "size": 0}, "size is 0"),
        ({"encoding": "jpeg", "size": 32, "quality": 100}, "quality is 100"),
        ({"encoding": "jpeg", "size": 32, "crop": "left"}, "crop is 'left'"),
        ({"encoding": "raw", "size": 32, "crop": "none"}, "crop is 'none', which is for resized jpeg"),
        ({"encoding": "original", "size": 32, "crop": "squash"}, "crop is 'squash', which is for jpeg and raw"),
        (
            {"encoding": "raw", "size": None, "crop": "squash"},
            "crop is 'squash', which is for jpeg and raw with a size",
        ),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        EncodingConfig(**fields)
