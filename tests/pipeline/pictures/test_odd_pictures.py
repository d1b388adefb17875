"""Damage is never silent: it is rejected or noted; what only looks odd is stored with all its pixels, and noted."""

import json
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from nvidia.dali import fn, pipeline_def
from pictures import (
    before_mark,
    changed,
    decoded,
    encoded,
    photo,
    png_chunk,
    png_of_rows,
    with_zeros,
)
from PIL import Image

from pipeline import shard
from pipeline.command import InputError
from pipeline.pictures.decode import RejectedPicture, decode_picture
from pipeline.pictures.encode import EncodingConfig, store_picture
from pipeline.pictures.jpeg_markers import lacks_data, read_segments

END = b"\xff\xd9"
PLAIN = encoded(photo(), quality=90)
PROGRESSIVE = encoded(photo(), quality=90, progressive=True)
RESTARTS = encoded(photo(), quality=90, restart_marker_blocks=10)
CMYK = encoded(photo().convert("CMYK"), quality=90)
GREY = encoded(photo().convert("L"), quality=90)
DEFLATED = encoded(photo(), "TIFF", compression="tiff_adobe_deflate")
SCANS = [place for place in range(len(PROGRESSIVE)) if PROGRESSIVE.startswith(b"\xff\xda", place)]
HALF = len(PLAIN) // 2
FRAME = PLAIN.index(b"\xff\xc0")
ROWS = b"".join(b"\0" + row.tobytes() for row in np.asarray(photo()))
PNG = png_of_rows(ROWS, 201, 149)


def _scan_of_brightness_alone() -> bytes:
    """Return a sequential JPEG whose second and third scan, of the colours, are missing."""
    frame = GREY.index(b"\xff\xc0")
    components = b"".join(bytes([name, 0x11, 0]) for name in (1, 2, 3))
    return GREY[: frame + 2] + b"\x00\x11" + GREY[frame + 4 : frame + 9] + b"\x03" + components + GREY[frame + 13 :]


def _of_three_scans(brightness: bytes, colour: bytes) -> bytes:
    """Return a sequential JPEG of one scan per component, from the scans of two grey ones with their tables."""
    frame = brightness.index(b"\xff\xc0")
    components = b"".join(bytes([name, 0x11, 0]) for name in (1, 2, 3))
    head = brightness[: frame + 2] + b"\x00\x11" + brightness[frame + 4 : frame + 9] + b"\x03" + components
    parts = []
    for name, content in ((1, brightness), (2, colour), (3, colour)):
        part = content[content.index(b"\xff\xc4") : -len(END)]
        parts.append(changed(part, part.index(b"\xff\xda") + 5, bytes([name])))
    return head + b"".join(parts) + END


def _swapped(content: bytes) -> bytes:
    middle, size = len(content) // 2, 1000
    return (
        content[:middle]
        + content[middle + size : middle + 2 * size]
        + content[middle : middle + size]
        + content[middle + 2 * size :]
    )


DAMAGED = {
    "cut, with an end mark": PLAIN[: len(PLAIN) * 2 // 5] + END,
    "last byte lost": PLAIN[:-3] + END,
    "zeros inside": with_zeros(PLAIN),
    "few zeros inside": with_zeros(PLAIN, 100),
    "zeros inside that take as many blocks as the data": with_zeros(PLAIN, 500),
    "zeros up to the end": PLAIN[:HALF] + bytes(HALF),
    "foreign bytes inside": changed(PLAIN, HALF, b"<html>moved</html>" * 30),
    "bytes lost inside": PLAIN[:HALF] + PLAIN[HALF + 500 :],
    "blocks swapped": _swapped(PLAIN),
    "oddity in the header before damage inside": before_mark(with_zeros(PLAIN), b"\xff\xdb", b"abc"),
    "grey, cut": GREY[: len(GREY) // 2] + END,
    "CMYK, cut": CMYK[: len(CMYK) // 2] + END,
    "CMYK, zeros inside": with_zeros(CMYK),
    "progressive, cut before its second scan": PROGRESSIVE[: SCANS[1]] + END,
    "progressive, cut before its fourth scan": PROGRESSIVE[: SCANS[3]] + END,
    "progressive, cut before its last scan": PROGRESSIVE[: SCANS[-1]] + END,
    "progressive, cut inside a scan": PROGRESSIVE[: SCANS[3] + 400] + END,
    "progressive, zeros inside": with_zeros(PROGRESSIVE, 1000),
    "sequential, scans of the colours missing": _scan_of_brightness_alone(),
    "a restart mark missing": RESTARTS.replace(b"\xff\xd3", b"", 1),
    "restart marks out of order": RESTARTS.replace(b"\xff\xd3", b"\xff\xd5", 1),
    "nonsense for an arithmetic decoder": changed(PLAIN, FRAME + 1, b"\xc9"),
    "PNG, half the rows": png_of_rows(ROWS[: 75 * 604], 201, 149),
    "PNG, wrong checksum": changed(PNG, len(PNG) - 16, b"\x00\x01\x02\x03"),
    "deflated TIFF, zeros inside": with_zeros(DEFLATED),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_rejected_or_noted(name):
    content = DAMAGED[name]
    with pytest.raises(RejectedPicture) as rejected:
        decode_picture(content)
    assert rejected.value.reason in ("damaged", "truncated") and rejected.value.detail
    noted = decode_picture(content, "note")
    assert "damaged" in noted.notes and noted.jpeg is None and noted.pixels_HWC.shape == (149, 201, 3)
    original = store_picture(content, EncodingConfig(encoding="original", size=32, damaged="note"))
    assert not decode_picture(original.data).notes  # encoded anew, so that no reader stumbles over it


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (DAMAGED["cut, with an end mark"], "Corrupt JPEG data: premature end of data segment"),
        (DAMAGED["restart marks out of order"], "Corrupt JPEG data: found marker 0xd5 instead of RST3"),
        (DAMAGED["progressive, cut before its last scan"], "the file ends before the last of its scans"),
        (DAMAGED["PNG, half the rows"], "the pixels end after 45300 of 89996 bytes"),
        (DAMAGED["PNG, wrong checksum"], "the checksum of a IDAT chunk is wrong"),
    ],
)
def test_the_detail_says_what_is_wrong(content, words):
    with pytest.raises(RejectedPicture) as rejected:
        decode_picture(content)
    assert rejected.value.reason == "damaged" and rejected.value.detail.startswith(words)


@pytest.mark.parametrize("name", ["plain", "progressive", "progressive between two scans", "PNG", "GIF", "BMP", "WebP"])
def test_a_cut_file_is_truncated_or_undecodable(name):
    whole = {
        "plain": PLAIN,
        "progressive": PROGRESSIVE,
        "PNG": PNG,
        "GIF": encoded(photo(), "GIF"),
        "BMP": encoded(photo(), "BMP"),
        "WebP": encoded(photo(), "WEBP"),
    }
    content = whole[name][: len(whole[name]) // 2] if name in whole else PROGRESSIVE[: SCANS[4]]
    with pytest.raises(RejectedPicture) as rejected:
        decode_picture(content)
    assert rejected.value.reason == ("undecodable" if name == "WebP" else "truncated")


def test_most_data_that_damage_has_shifted_are_told_from_something_else():
    random = np.random.Generator(np.random.Philox(key=4))
    surplus, stored = 0, 0
    for place in range(1000, len(PLAIN) - 600, 200):
        content = changed(PLAIN, place, random.integers(0, 255, 300, dtype=np.uint8).tobytes())
        try:
            stored += "surplus_data" in decode_picture(content).notes
        except RejectedPicture as rejected:
            surplus += "extraneous bytes before marker 0xd9" in rejected.detail
    assert surplus > 30 and stored < surplus / 3


JFIF, ADOBE, SCAN = PLAIN.index(b"JFIF\0"), CMYK.index(b"Adobe"), PLAIN.index(b"\xff\xda")
HARMLESS = {
    "bytes before the first segment": (before_mark(PLAIN, b"\xff\xe0", b"abc"), ("extraneous_bytes",)),
    "bytes between segments": (before_mark(PLAIN, b"\xff\xc4", bytes(7)), ("extraneous_bytes",)),
    "bytes before the scan": (before_mark(PLAIN, b"\xff\xda", b"\0\xff\0\0"), ("extraneous_bytes",)),
    "padded with zeros before the end mark": (before_mark(PLAIN, END, bytes(300)), ("extraneous_bytes",)),
    "padded with another byte": (before_mark(PLAIN, END, b"\x20" * 300), ("extraneous_bytes",)),
    "progressive, padded": (before_mark(PROGRESSIVE, END, bytes(300)), ("extraneous_bytes",)),
    "something else before the end mark": (before_mark(PLAIN, END, bytes(range(1, 120))), ("surplus_data",)),
    "much else before the end mark": (before_mark(PLAIN, END, b"<html>moved</html>" * 80), ("surplus_data",)),
    "progressive, something else before the end mark": (before_mark(PROGRESSIVE, END, b"moved" * 9), ("surplus_data",)),
    "stray bytes and something else": (
        before_mark(before_mark(PLAIN, b"\xff\xc4", bytes(7)), END, b"moved" * 9),
        ("extraneous_bytes", "surplus_data"),
    ),
    "no end mark": (PLAIN[:-2], ("no_end_mark",)),
    "half an end mark": (PLAIN[:-1], ("no_end_mark",)),
    "progressive without an end mark": (PROGRESSIVE[:-2], ("no_end_mark",)),
    "zeros instead of an end mark": (PLAIN[:-2] + bytes(2048), ("extraneous_bytes", "no_end_mark")),
    "JFIF of a version to come": (changed(PLAIN, JFIF + 5, b"\x02\x09"), ("odd_header",)),
    "odd parameters of the scan": (changed(PLAIN, SCAN + 11, b"\0\0\0"), ("odd_header",)),
    "odd transform of Adobe's": (changed(CMYK, ADOBE + 11, b"\x07"), ("odd_header", "cmyk")),
    "PNG without an end mark": (PNG[:-12], ("png", "no_end_mark")),
    "PNG without the stream's checksum": (
        PNG[:33] + png_chunk(b"IDAT", zlib.compress(ROWS)[:-4]) + png_chunk(b"IEND", b""),
        ("png",),
    ),
    "GIF with trailing bytes": (encoded(photo(), "GIF") + b"\r\ntrailing;", ("gif", "palette")),
    "GIF without an end mark": (encoded(photo(), "GIF")[:-1], ("gif", "no_end_mark", "palette")),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_odd_keeps_all_its_pixels_and_is_noted(name):
    content, notes = HARMLESS[name]
    picture = decode_picture(content)
    assert picture.notes == notes
    whole = {"png": PNG, "gif": encoded(photo(), "GIF"), "cmyk": encoded(photo().convert("CMYK"), quality=90)}
    plain = next((whole[note] for note in notes if note in whole), PROGRESSIVE if "progressive" in name else PLAIN)
    if "cmyk" not in notes:  # whose colours an unknown transform leaves open
        assert np.array_equal(picture.pixels_HWC, decoded(plain))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_zeros_that_mean_plain_blocks_are_no_hole(mode):
    content = encoded(Image.new(mode, (800, 800), "white"), optimize=True)
    assert bytes(64) in content
    assert decode_picture(content).jpeg == content
    assert decode_picture(PLAIN + bytes(4096)).jpeg == PLAIN + bytes(4096)  # behind the end mark


def test_zeros_in_a_scan_of_plain_colours_are_no_hole():
    brightness = encoded(Image.new("L", (800, 800), "white"))
    colour = encoded(Image.new("L", (800, 800), "white"), optimize=True)  # zeros end blocks
    content = _of_three_scans(brightness, colour)
    assert decode_picture(content).jpeg == content
    damaged = _of_three_scans(colour, with_zeros(brightness, 1000))
    assert lacks_data(damaged, read_segments(damaged))


@pytest.mark.parametrize(
    "content",
    [
        before_mark(PLAIN, b"\xff\xe0", b"\xff"),
        before_mark(PLAIN, b"\xff\xda", b"\xff\xff\xff"),
        before_mark(PLAIN, END, b"\xff"),
        PLAIN + b"trailing",
        PLAIN + PLAIN,
    ],
    ids=["fill byte", "fill bytes", "before the end mark", "trailing bytes", "another picture"],
)
def test_fill_bytes_and_what_follows_the_end_mark_are_no_oddity(content):
    picture = decode_picture(content)
    assert picture.notes == () and picture.jpeg == content
    assert np.array_equal(picture.pixels_HWC, decoded(PLAIN))


@pytest.mark.parametrize("name", [name for name, (content, _) in HARMLESS.items() if content[:2] == PLAIN[:2]])
def test_an_odd_original_is_stored_as_a_jpeg_that_dali_reads(name):
    content, notes = HARMLESS[name]
    stored = store_picture(content, EncodingConfig(encoding="original", size=32)).data

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def graph():
        return fn.decoders.image(fn.external_source(source=lambda: [np.frombuffer(stored, np.uint8)], batch=True))

    read = np.asarray(graph().run()[0].at(0)).astype(int)
    same = 12 if "cmyk" in notes else 0  # which is encoded anew; all others have lost no bit
    assert np.abs(read - decode_picture(content).pixels_HWC).mean() <= same
    assert simplejpeg.decode_jpeg(stored, strict=True).shape == (149, 201, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 5}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_sound_jpeg_has_pillows_bits(mode, options):
    content = encoded(photo().convert(mode), **options)
    picture = decode_picture(content)
    assert np.array_equal(picture.pixels_HWC, decoded(content))
    assert picture.notes == {"RGB": (), "L": ("grey",), "CMYK": ("cmyk",)}[mode]
    assert picture.jpeg == (None if mode == "CMYK" else content)


def test_a_jpeg_of_rgb_without_a_transform_has_pillows_bits():
    content = encoded(photo(), keep_rgb=True)
    assert np.array_equal(decode_picture(content).pixels_HWC, decoded(content))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed(PLAIN, FRAME + 4, b"\x0c"), "a JPEG of 12 bits per sample is not supported"),
        (changed(PLAIN, FRAME + 1, b"\xc3"), "lossless JPEG is not supported"),
        (changed(PLAIN, FRAME + 1, b"\xc5"), "hierarchical JPEG is not supported"),
        (changed(PLAIN, FRAME + 5, b"\0\0"), "a JPEG whose height follows its first scan is not supported"),
        (b"<!DOCTYPE html><title>404</title>", "no known picture format: begins with b'<!DOCTYPE html><'"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "pixels of mode F: no rule brings them to 8-bit RGB"),
        (encoded(Image.new("I", (8, 8)), "TIFF"), "pixels of mode I: no rule"),
        (encoded(Image.new("LAB", (8, 8)), "TIFF"), "pixels of mode LAB: no rule"),
    ],
)
def test_what_is_not_storable_says_so(content, words):
    for damaged in ("reject", "note"):
        with pytest.raises(RejectedPicture) as rejected:
            decode_picture(content, damaged)
        assert rejected.value.reason == "undecodable" and rejected.value.detail.startswith(words)


def _of_rare_subsampling(content: bytes, frame_mark: bytes) -> bytes:
    """Return a JPEG of 4:4:4 that says of its brightness: three times as high as the colours."""
    return changed(content, content.index(frame_mark) + 11, b"\x13")


def test_a_jpeg_that_the_strict_decoder_can_not_read_is_noted():
    unchecked = decode_picture(_of_rare_subsampling(encoded(photo(), subsampling=0), b"\xff\xc0"))
    assert unchecked.notes == ("unchecked",) and unchecked.jpeg is None


def test_a_jpeg_that_the_strict_decoder_can_not_read_still_has_to_be_complete():
    progressive = _of_rare_subsampling(encoded(photo(), subsampling=0, progressive=True), b"\xff\xc2")
    blurred = progressive[: progressive.rindex(b"\xff\xda")] + END
    with pytest.raises(RejectedPicture, match="damaged: the file ends before the last of its scans"):
        decode_picture(blurred)
    assert decode_picture(blurred, "note").notes == ("damaged", "unchecked")


@pytest.mark.parametrize("content", [PLAIN[:FRAME], PLAIN[: FRAME + 11] + b"\xf5" + PLAIN[FRAME + 12 :], b"\xff\xd8"])
def test_whatever_a_decoder_raises_is_a_reject(content):
    for damaged in ("reject", "note"):
        with pytest.raises(RejectedPicture):
            decode_picture(content, damaged)


def _folder(path, contents):
    for number, content in enumerate(contents):
        (path / "train" / "c").mkdir(parents=True, exist_ok=True)
        (path / "train" / "c" / f"{number}.jpg").write_bytes(content)
    return path


@pytest.mark.parametrize("damaged", ["reject", "note"])
def test_the_command_rejects_damaged_pictures_or_notes_them(tmp_path, damaged):
    source = _folder(
        tmp_path / "in", [PLAIN, DAMAGED["zeros inside"], DAMAGED["progressive, cut before its last scan"]]
    )
    options = ["--size", "32", "--workers", "1", "--val-fraction", "0", "--max-rejects", "1", "--damaged", damaged]
    assert shard.main([str(source), str(tmp_path / "out"), *options]) == 0
    rows = pq.read_table(tmp_path / "out/manifest/train.parquet", columns=["source", "notes"]).to_pylist()
    notes = {row["source"]: row["notes"] for row in rows}
    reasons = pq.read_table(tmp_path / "out/rejects.parquet")["reason"].to_pylist()
    if damaged == "reject":
        assert notes == {"c/0.jpg": ""} and reasons == ["damaged", "damaged"]
    else:
        assert notes == {"c/0.jpg": "", "c/1.jpg": "damaged", "c/2.jpg": "damaged"} and reasons == []
    assert json.loads((tmp_path / "out/dataset.json").read_text())["encoding"]["damaged"] == damaged


def test_an_interrupted_run_does_not_go_on_under_another_rule(tmp_path):
    source = _folder(tmp_path / "in", [PLAIN, DAMAGED["zeros inside"]])
    options = ["--size", "32", "--workers", "1", "--val-fraction", "0"]
    with pytest.raises(InputError, match="1 damaged"):
        shard.main([str(source), str(tmp_path / "out"), *options])
    with pytest.raises(InputError, match="an interrupted run with other encoding"):
        shard.main([str(source), str(tmp_path / "out"), *options, "--damaged", "note"])


def test_a_wrong_rule_is_named():
    with pytest.raises(ValueError, match="damaged is 'keep'; known: reject, note"):
        EncodingConfig(encoding="jpeg", size=32, damaged="keep")
