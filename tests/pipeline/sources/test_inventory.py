"""What lies in a source is said before the work begins, and kept."""

import json

import pytest
from source_files import save_pictures

from pipeline import shard
from pipeline.command import InputError
from pipeline.sources.signatures import picture_format
from pipeline.sources.text import decode_lines
from pipeline.system.files import sha256_file

INVENTORY = {
    "layout": "folders",
    "splits": {
        "train": {
            "num_samples": 3,
            "num_classes": 2,
            "first_class": "cat",
            "last_class": "dog",
            "smallest": {"wnid": "dog", "num_samples": 1},
            "largest": {"wnid": "cat", "num_samples": 2},
            "missing": [],
        },
        "val": {
            "num_samples": 1,
            "num_classes": 1,
            "first_class": "cat",
            "last_class": "cat",
            "smallest": {"wnid": "cat", "num_samples": 1},
            "largest": {"wnid": "cat", "num_samples": 1},
            "missing": ["dog"],
        },
    },
    "num_files": 7,
    "num_samples": 4,
    "num_archives": 0,
    "tables": ["classes.txt"],
    "left_out": {
        "ending .xml": {"num_files": 1, "first": "train/cat/a.xml"},
        "of a NAS or desktop": {"num_files": 1, "first": "train/Thumbs.db"},
    },
    "members": None,
    "without_effect": [],
}
WORDS = """\
source, layout folders:
  train: 3 samples of 2 classes, cat to dog; the smallest is dog with 1, the largest cat with 2
  val: 1 sample of the class cat
  val has no sample of dog
  7 files: 4 samples, 1 table, 2 left out
    left out: 1 ending .xml (the first is train/cat/a.xml)
    left out: 1 of a NAS or desktop (the first is train/Thumbs.db)
"""


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    save_pictures(root, ["train/cat/a.jpg", "train/cat/b.jpg", "train/dog/c.jpg", "val/cat/d.jpg"])
    (root / "classes.txt").write_text("cat Felis catus\n")
    (root / "train/cat/a.xml").write_text("a box")
    (root / "train/Thumbs.db").write_text("thumbnails")
    return root


def test_the_inventory_is_said_first_and_kept_in_the_dataset(source, tmp_path, capsys):
    assert shard.main([str(source), str(tmp_path / "out"), "--size", "8", "--workers", "1"]) == 0
    assert capsys.readouterr().out.startswith(WORDS)
    assert json.loads((tmp_path / "out/inventory.json").read_text()) == INVENTORY


def test_what_lies_beside_the_pictures_leaves_the_dataset_the_same_one(source, tmp_path):
    digests = []
    for name in ("out", "again"):
        assert shard.main([str(source), str(tmp_path / name), "--size", "8", "--workers", "1"]) == 0
        digests.append(sha256_file(tmp_path / name / "dataset.json"))
        (source / "train/desktop.ini").write_text("more")
    assert digests[0] == digests[1]
    found = json.loads((tmp_path / "again/inventory.json").read_text())["left_out"]["of a NAS or desktop"]
    assert found == {"num_files": 2, "first": "train/Thumbs.db"}


def test_a_dry_run_says_it_and_writes_nothing(source, tmp_path, capsys):
    assert shard.main([str(source), str(tmp_path / "out"), "--size", "8", "--workers", "1", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(WORDS)
    assert not (tmp_path / "out").exists()


def test_pictures_that_would_be_left_out_stop_it_before_anything_is_written(source, tmp_path, capsys):
    save_pictures(source, ["train/cat/more.dat"])
    command = [str(source), str(tmp_path / "out"), "--size", "8", "--workers", "1"]
    with pytest.raises(InputError, match=r"the first is train/cat/more.dat, PNG\).*--ignore '\*.dat'"):
        shard.main(command)
    assert not (tmp_path / "out").exists()
    assert shard.main([*command, "--ignore", "*.dat", "--ignore", "*.xml"]) == 0
    left_out = json.loads((tmp_path / "out/inventory.json").read_text())["left_out"]
    assert left_out["ignored by *.dat"] == {"num_files": 1, "first": "train/cat/more.dat"}
    assert left_out["ignored by *.xml"] == {"num_files": 1, "first": "train/cat/a.xml"}


def test_a_pattern_that_matches_nothing_is_told(source, tmp_path, capsys):
    command = [str(source), str(tmp_path / "out"), "--size", "8", "--workers", "1", "--dry-run"]
    assert shard.main([*command, "--ignore", "*.xml", "--ignore", "./train", "--ignore", "vla"]) == 0
    out = capsys.readouterr().out
    assert "--ignore ./train has no effect" in out and "--ignore vla has no effect" in out
    assert "--ignore *.xml has" not in out


@pytest.mark.parametrize("out", ["", "out", "train/out"])
def test_a_dataset_in_its_own_source_is_refused(source, out):
    with pytest.raises(InputError, match=r"lies in SOURCE .*; choose a folder outside SOURCE"):
        shard.main([str(source), str(source / out)])


def test_names_that_would_break_a_line_are_escaped(source, tmp_path, capsys):
    (source / "train/cat/a\nb.md").write_text("text")
    (source / "train/cat/\udce9.txt").write_text("text")
    assert shard.main([str(source), str(tmp_path / "out"), "--dry-run", "--size", "8", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert r"1 ending .md (the first is 'train/cat/a\nb.md')" in out
    assert r"1 ending .txt (the first is 'train/cat/\udce9.txt')" in out


def test_a_file_is_no_source(source, tmp_path):
    with pytest.raises(InputError, match=r"a\.jpg is a file; name the folder that holds the pictures or archives"):
        shard.main([str(source / "train/cat/a.jpg"), str(tmp_path / "out")])


# Content, not names


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG"),
        (b"GIF89a\1\0\1\0", "GIF"),
        (b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0", "BMP"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "WebP"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"P6\n8 8\n255\n", "PNM"),
        (b"P5 8 8", "PNM"),
        (b"", None),
        (b"P7", None),
        (b"Platypus", None),
        (b"BMW is a car, and no picture", None),
        (b"RIFF\x24\0\0\0WAVEfmt ", None),
        (b"\0\0\0\x20ftypisom\0\0\0\0", None),
        (b"<!DOCTYPE html>", None),
        (b"\xff\xd8", None),
    ],
)
def test_what_a_picture_begins_with(head, name):
    assert picture_format(head) == name


# Text tables


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb\r", ["a", "b"]),
        (b"a\n\n", ["a", ""]),
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),
        ("ä ü\u2028x\x0c\n".encode(), ["ä ü\u2028x\x0c"]),  # a separator of Unicode's, a form feed: within a line
        (b"a, b\tc  \n", ["a, b\tc  "]),
    ],
)
def test_lines_of_a_table(content, lines):
    assert decode_lines(content, "table") == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ä\n".encode("utf-16"), "table is not UTF-8 but UTF-16; convert it"),
        ("ä\n".encode("utf-16-be"), "UTF-16 or UTF-32 without a byte order mark"),
        ("a\n".encode("utf-32"), "but UTF-32"),
        ("\ufeffa\n".encode("utf-32-be"), "but UTF-32"),
        (b"K\xe4fig\n", r"Latin-1, Windows-1252 or another \(byte 0xe4 at 1\)"),
        (b"a\0b", "or not text at all"),
        (b"\x89PNG\r\n\x1a\n\0", "or not text at all"),
    ],
)
def test_a_table_in_another_encoding_is_refused(content, message):
    with pytest.raises(InputError, match=message):
        decode_lines(content, "table")
