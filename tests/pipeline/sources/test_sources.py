import gzip
import hashlib
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from source_files import save_pictures

from pipeline import shard
from pipeline.command import InputError
from pipeline.sources import official
from pipeline.sources.base import SAMPLE_SCHEMA
from pipeline.sources.detect import open_source
from pipeline.sources.devkit import DEVKIT_ARCHIVE
from pipeline.sources.idx import read_idx
from pipeline.sources.official import TRAIN_ARCHIVE, VAL_ARCHIVE
from pipeline.sources.tar_headers import scan_tar
from pipeline.synthesize import synthesize
from pipeline.synthetic.synthetic_pictures import class_name


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    synthesize(folder, classes=4, train_per_class=3, val_per_class=2, max_side=32)
    return folder


@pytest.fixture
def broken(archives, tmp_path):
    """A copy of the archives to be damaged."""
    for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE):
        shutil.copy(archives / name, tmp_path)
    return tmp_path


def save_idx(path, array):
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def save_mnist(root, prefix="train", ending=".gz", num_samples=12, num_labels=12):
    images = np.arange(num_samples * 6).reshape(num_samples, 2, 3)
    save_idx(root / f"{prefix}-images-idx3-ubyte{ending}", images)
    save_idx(root / f"{prefix}-labels-idx1-ubyte{ending}", np.arange(num_labels) % 11)
    return images


def read_row(source, listing, split, row):
    where = listing.splits[split].slice(row, 1).to_pylist()[0]
    return source.read(where["file"], where["offset"], where["num_bytes"])


def assert_sound(source, listing):
    """What holds for every source: schema, order, unique names, labels in range, and a copy in another process."""
    wnids = [entry.wnid for entry in listing.classes]
    assert wnids == sorted(set(wnids))
    for table in listing.splits.values():
        assert table.schema == SAMPLE_SCHEMA
        names = table["source"].to_pylist()
        assert names == sorted(set(names))
        assert set(table["class_index"].to_pylist()) <= set(range(len(wnids)))
    assert pickle.loads(pickle.dumps(source)).list_samples() == listing


# ImageNet's archives


def test_pictures_of_the_archives_are_found_where_tarfile_finds_them(archives):
    source = open_source(archives)
    listing = source.list_samples()
    assert source.layout == "official"
    assert_sound(source, listing)
    with tarfile.open(archives / TRAIN_ARCHIVE) as outer:
        expected = {}
        for inner_tar in outer:
            with tarfile.open(fileobj=outer.extractfile(inner_tar)) as inner:
                wnid = inner_tar.name.removesuffix(".tar")
                expected |= {f"{wnid}/{member.name}": inner.extractfile(member).read() for member in inner}
    names = listing.splits["train"]["source"].to_pylist()
    assert {name: read_row(source, listing, "train", row) for row, name in enumerate(names)} == expected
    with tarfile.open(archives / VAL_ARCHIVE) as tar:
        expected = {member.name: tar.extractfile(member).read() for member in tar}
    names = listing.splits["val"]["source"].to_pylist()
    assert {name: read_row(source, listing, "val", row) for row, name in enumerate(names)} == expected


def test_the_class_index_is_the_rank_of_the_wnid_and_not_the_ilsvrc_id(archives):
    listing = open_source(archives).list_samples()
    assert [entry.name for entry in listing.classes] == [class_name(index) for index in range(4)]
    wnids = [entry.wnid for entry in listing.classes]
    for row in listing.splits["train"].to_pylist():
        assert wnids[row["class_index"]] == row["source"].partition("/")[0]
    # ilsvrc_id(index, 4) = (index + 1) % 4 + 1: the ground truth, by hand
    with tarfile.open(archives / DEVKIT_ARCHIVE) as tar:
        ids = tar.extractfile("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").read().split()
    assert listing.splits["val"]["class_index"].to_pylist() == [(int(number) - 2) % 4 for number in ids]


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE])
def test_a_missing_archive_is_named(broken, name):
    (broken / name).unlink()
    with pytest.raises(InputError, match=f"lacks {name}; put all of"):
        open_source(broken).list_samples()


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE])
@pytest.mark.parametrize("kept", [0, 0.5, 0.8])
def test_an_archive_that_was_cut_short_is_named(broken, name, kept):
    content = (broken / name).read_bytes()
    (broken / name).write_bytes(content[: int(kept * len(content)) // 512 * 512])
    with pytest.raises(InputError, match=f"{name} is .*; get the archive again"):
        open_source(broken).list_samples()


def test_an_inner_tar_without_its_end_mark_does_not_run_into_the_next(broken):
    path = broken / VAL_ARCHIVE
    with open(path, "rb") as file:
        *_, last = scan_tar(file, 0, path.stat().st_size)
        end = last.offset + -(-last.num_bytes // 512) * 512
        with pytest.raises(InputError, match=f"cut short at byte {end} "):
            list(scan_tar(file, 0, end))


def test_a_damaged_header_is_found_by_its_checksum(broken):
    content = bytearray((broken / VAL_ARCHIVE).read_bytes())
    content[124] ^= 1  # in the first member's size
    (broken / VAL_ARCHIVE).write_bytes(content)
    with pytest.raises(InputError, match="damaged or cut short at byte 0 "):
        open_source(broken).list_samples()


@pytest.mark.parametrize(
    ("options", "replaced", "message"),
    [
        ({"classes": 5}, TRAIN_ARCHIVE, "the devkit lacks n90000040, which the training archive has"),
        ({"classes": 3}, TRAIN_ARCHIVE, "the training archive lacks n90000030, which the devkit has"),
        (
            {"classes": 4, "val_per_class": 3},
            VAL_ARCHIVE,
            "holds 12 pictures, but the devkit's ground truth has 8 lines",
        ),
    ],
)
def test_archives_that_do_not_fit_together_are_refused(broken, tmp_path, options, replaced, message):
    other = tmp_path / "other"
    synthesize(other, **{"train_per_class": 1, "val_per_class": 2, "max_side": 16} | options)
    shutil.copy(other / replaced, broken)
    with pytest.raises(InputError, match=message):
        open_source(broken).list_samples()


def test_validation_pictures_must_be_numbered_without_a_gap(broken):
    with tarfile.open(broken / VAL_ARCHIVE) as tar:
        members = [(member, tar.extractfile(member)) for member in tar]
        with tarfile.open(broken / "new.tar", "w", format=tarfile.USTAR_FORMAT) as new:
            for member, file in members[1:]:
                new.addfile(member, file)
    (broken / "new.tar").rename(broken / VAL_ARCHIVE)
    with pytest.raises(InputError, match=r"holds ILSVRC2012_val_00000002.JPEG where picture 1 should be"):
        open_source(broken).list_samples()


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_packed_anew_by_other_tools_are_read(broken, tar_format):
    listing = open_source(broken).list_samples()
    with tarfile.open(broken / VAL_ARCHIVE) as tar:
        contents = {member.name: tar.extractfile(member) for member in tar}
        with tarfile.open(broken / "new.tar", "w", format=tar_format) as new:
            folder = tarfile.TarInfo("val")
            folder.type = tarfile.DIRTYPE
            new.addfile(folder)
            for name, file in reversed(contents.items()):
                info = tarfile.TarInfo(f"./val/{name}")
                info.size, info.mtime = len(file.read()), 1.5  # a fraction of a second needs a PAX header
                file.seek(0)
                new.addfile(info, file)
    (broken / "new.tar").rename(broken / VAL_ARCHIVE)
    again = open_source(broken).list_samples()
    assert again.splits["val"].drop_columns("offset") == listing.splits["val"].drop_columns("offset")
    assert read_row(open_source(broken), again, "val", 3)[:3] == b"\xff\xd8\xff"


def test_a_file_that_shrank_since_it_was_listed_is_an_error(broken):
    source = open_source(broken)
    listing = source.list_samples()
    (broken / VAL_ARCHIVE).write_bytes(b"x" * 1000)
    with pytest.raises(OSError, match="shorter than when it was listed"):
        read_row(source, listing, "val", 0)


# Class folders


def test_archives_are_checked_by_their_md5_on_request(archives, tmp_path, monkeypatch, capsys):
    for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE):
        monkeypatch.setitem(official._ARCHIVES, name, hashlib.md5((archives / name).read_bytes()).hexdigest())
    options = ["--size", "16", "--max-rejects", "0", "--workers", "1", "--check-md5"]
    assert shard.main([str(archives), str(tmp_path / "out"), *options]) == 0
    assert "checking MD5: 100%" in capsys.readouterr().err
    monkeypatch.setitem(official._ARCHIVES, VAL_ARCHIVE, "0" * 32)
    with pytest.raises(InputError, match=f"{VAL_ARCHIVE} has the MD5 .*, the published archive 0000"):
        shard.main([str(archives), str(tmp_path / "other"), *options])
    assert not (tmp_path / "other").exists()


def test_md5_is_published_for_the_official_archives_alone(tmp_path):
    save_pictures(tmp_path / "in", ["a/1.png", "b/2.png"])
    with pytest.raises(InputError, match="--check-md5 is for the official archives"):
        shard.main([str(tmp_path / "in"), str(tmp_path / "out"), "--check-md5"])


def test_class_folders_with_splits(tmp_path):
    names = ["train/cat/b.jpg", "train/cat/a.JPEG", "train/dog/deep/c.png", "val/dog/d.webp", "test/cat/e.TIF"]
    save_pictures(tmp_path, names)
    (tmp_path / "train/cat/notes.txt").write_text("no picture")
    (tmp_path / "train/cat/.hidden.jpg").write_text("no picture")
    (tmp_path / "classes.txt").write_text("dog Canis familiaris\nwolf Canis lupus\n")
    source = open_source(tmp_path)
    listing = source.list_samples()
    assert source.layout == "folders"
    assert_sound(source, listing)
    assert [(entry.wnid, entry.name) for entry in listing.classes] == [("cat", "cat"), ("dog", "Canis familiaris")]
    columns = {split: table.select(["source", "class_index"]) for split, table in listing.splits.items()}
    rows = {split: [tuple(row.values()) for row in table.to_pylist()] for split, table in columns.items()}
    assert rows == {
        "train": [("cat/a.JPEG", 0), ("cat/b.jpg", 0), ("dog/deep/c.png", 1)],
        "val": [("dog/d.webp", 1)],
        "test": [("cat/e.TIF", 0)],
    }
    assert read_row(source, listing, "train", 0) == (tmp_path / "train/cat/a.JPEG").read_bytes()


def test_class_folders_alone_are_training_pictures_also_below_the_working_directory(tmp_path, monkeypatch):
    save_pictures(tmp_path, ["locomotive/a.jpg", "train/a.jpg", "wagon/b.jpg"])  # an unlucky class name
    monkeypatch.chdir(tmp_path)
    source = open_source(type(tmp_path)("."))
    listing = source.list_samples()
    assert_sound(source, listing)
    assert listing.splits["train"]["source"].to_pylist() == ["locomotive/a.jpg", "train/a.jpg", "wagon/b.jpg"]
    assert list(listing.splits) == ["train"]
    assert read_row(source, listing, "train", 2) == (tmp_path / "wagon/b.jpg").read_bytes()


def test_a_class_folder_without_pictures_is_named(tmp_path):
    save_pictures(tmp_path, ["train/cat/a.jpg"])
    (tmp_path / "train/dog").mkdir()
    with pytest.raises(InputError, match="train/dog holds no picture"):
        open_source(tmp_path).list_samples()


def test_a_file_name_that_is_not_utf8_is_named(tmp_path):
    save_pictures(tmp_path, ["cat/a.jpg"])
    (tmp_path / "cat/a.jpg").rename(tmp_path / "cat/\udce9.jpg")
    with pytest.raises(InputError, match=r"not UTF-8: 'cat/\\udce9.jpg'"):
        open_source(tmp_path).list_samples()


# IDX


@pytest.mark.parametrize("ending", [".gz", ""])
def test_idx_files(tmp_path, ending):
    images = save_mnist(tmp_path, "train", ending)
    save_mnist(tmp_path, "t10k", ending, num_samples=5, num_labels=5)
    source = open_source(tmp_path)
    listing = source.list_samples()
    assert (source.layout, source.native_pixels) == ("idx", True)
    assert_sound(source, listing)
    assert [(entry.wnid, entry.name) for entry in listing.classes[8:]] == [("08", "8"), ("09", "9"), ("10", "10")]
    assert listing.splits["train"]["class_index"].to_pylist() == [*range(11), 0]
    assert listing.splits["test"]["source"].to_pylist() == [f"t10k/{number}" for number in range(5)]
    pixels = read_row(source, listing, "train", 7)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (2, 3, 3))
    assert all(np.array_equal(pixels[..., channel], images[7]) for channel in range(3))


def test_idx_classes_are_named_by_classes_txt(tmp_path):
    save_mnist(tmp_path)
    (tmp_path / "classes.txt").write_text("".join(f"thing {number}\n" for number in range(12)))
    assert [entry.name for entry in open_source(tmp_path).list_samples().classes][10:] == ["thing 10", "thing 11"]
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match="names 2 classes, but the labels need 11"):
        open_source(tmp_path).list_samples()


def test_a_process_decompresses_an_idx_file_once_and_no_pickle_carries_it(tmp_path):
    save_mnist(tmp_path, num_samples=2000, num_labels=2000)
    source = open_source(tmp_path)
    listing = source.list_samples()
    misses = read_idx.cache_info().misses
    for row in range(20):
        read_row(source, listing, "train", row)
    assert read_idx.cache_info().misses == misses
    assert len(pickle.dumps(source)) < 1000


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-20], "is damaged"),
        (lambda content: b"<html>", "is damaged"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-1]), r"should hold \(12, 2, 3\) bytes, but has 71"),
        (lambda content: gzip.compress(b"\0\0\x0d\x03" + gzip.decompress(content)[4:]), "is not an IDX file of uint8"),
        (lambda content: gzip.compress(b"\0\0"), "is not an IDX file of uint8"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, damage, message):
    save_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"train-images-idx3-ubyte.gz {message}"):
        open_source(tmp_path).list_samples()


def test_idx_images_and_labels_must_fit(tmp_path):
    save_mnist(tmp_path, num_labels=13)
    with pytest.raises(InputError, match=r"has 12 pictures, but .* 13 labels"):
        open_source(tmp_path).list_samples()
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match="has no labels"):
        open_source(tmp_path).list_samples()


def test_an_idx_file_without_pictures_is_refused(tmp_path):
    save_mnist(tmp_path, num_samples=0, num_labels=0)
    with pytest.raises(InputError, match="holds no picture"):
        open_source(tmp_path).list_samples()


# Recognition


def test_sources_that_can_not_be_read_are_one_line_each(tmp_path):
    with pytest.raises(InputError, match="absent does not exist"):
        open_source(tmp_path / "absent")
    with pytest.raises(InputError, match="is empty"):
        open_source(tmp_path)
    (tmp_path / "table.csv").touch()
    with pytest.raises(InputError, match=r"not recognised; known layouts: official .* idx .* folders") as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"table\.csv is a file; name the folder"):
        open_source(tmp_path / "table.csv")
    with pytest.raises(InputError, match="layout 'zip' is unknown; known layouts: official"):
        open_source(tmp_path, "zip")


@pytest.mark.parametrize("layout", ["official", "idx", "folders"])
def test_a_layout_that_was_asked_for_is_not_guessed(tmp_path, layout):
    (tmp_path / "file").touch()
    source = open_source(tmp_path, layout)
    assert source.layout == layout
    with pytest.raises(InputError, match=str(tmp_path)):
        source.list_samples()
