"""WebDataset tars, foreign ones and our own: grouping, labels, splits, pixels, and sharding again without loss."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.pictures.encode import EncodingConfig
from pipeline.shard import main
from pipeline.sources.base import ListingOptions, Members
from pipeline.sources.detect import open_source
from tests.pipeline.sources.test_sources import assert_sound


def picture(number, kind="JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30 + number), (number * 9, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def save(path, members, tar_format=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5  # a fraction of a second: PAX puts it into a header of its own
            tar.addfile(info, io.BytesIO(content))


def read_all(source, table):
    return [source.read(row["file"], row["offset"], row["num_bytes"]) for row in table.to_pylist()]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_read_back_by_name(tmp_path, tar_format):
    folder = "cat" * (30 if tar_format == tarfile.USTAR_FORMAT else 60)  # longer than a USTAR header takes
    save(tmp_path / "a-TRAIN-1.tar", [("x.png", picture(3, "PNG")), ("x.cls.txt", b" 2 ")], tar_format)
    save(
        tmp_path / "a-TRAIN-0.tar",
        [
            ("README", b"no sample's"),
            (f"{folder}/b.json", b'{"label": 1, "width": 40}'),
            (f"{folder}/b.JPEG", picture(1)),
            (f"{folder}/a.seg.png", b"no picture"),
            (f"{folder}/a.jpg", picture(0)),
            (f"{folder}/a.cls", b"0\n"),
        ],
        tar_format,
    )
    save(tmp_path / "a-validation.tar", [("y.webp", picture(4, "WEBP")), ("y.json", b'{"cls": 1}')], tar_format)
    save(tmp_path / "a-test.tar", [("z.jpg", b""), ("z.index", b"0")], tar_format)
    (tmp_path / "classes.txt").write_text("cat\ndog\nox\ncow\n")
    (tmp_path / "._a.tar").write_text("a Mac's note")
    source = open_source(tmp_path)
    listing = source.list_samples()
    assert (source.layout, source.native_pixels) == ("webdataset", False)
    assert_sound(source, listing)
    assert [(entry.wnid, entry.name) for entry in listing.classes] == [
        ("0", "cat"),
        ("1", "dog"),
        ("2", "ox"),
        ("3", "cow"),
    ]
    found = {
        split: list(
            zip(*table.select(["source", "class_index"]).to_pydict().values(), read_all(source, table), strict=True)
        )
        for split, table in listing.splits.items()
    }
    assert found == {
        "train": [
            (f"a-TRAIN-0/{folder}/a", 0, picture(0)),
            (f"a-TRAIN-0/{folder}/b", 1, picture(1)),
            ("a-TRAIN-1/x", 2, picture(3, "PNG")),
        ],
        "val": [("a-validation/y", 1, picture(4, "WEBP"))],
        "test": [("a-test/z", 0, b"")],
    }


def test_tars_that_name_no_split_are_training_pictures(tmp_path):
    for number in range(12):
        save(tmp_path / f"{number:06d}.tar", [("0.jpg", picture(number)), ("0.cls", b"%d" % number)])
    source = open_source(tmp_path)
    listing = source.list_samples()
    assert_sound(source, listing)
    assert list(listing.splits) == ["train"]
    assert [(entry.wnid, entry.name) for entry in listing.classes[9:]] == [("09", "9"), ("10", "10"), ("11", "11")]
    document = shard_dataset(
        source,
        tmp_path / "out",
        ShardingConfig(encoding=EncodingConfig(encoding="original", size=16)),
        num_workers=2,
    )
    assert document["splits"]["train"]["num_samples"] == 12


def test_pixels(tmp_path):
    pixels = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    members = {"a": npy(pixels), "b": npy(np.asfortranarray(pixels)), "c": b""}
    save(tmp_path / "a.tar", [pair for key in "abc" for pair in ((f"{key}.npy", members[key]), (f"{key}.cls", b"0"))])
    source = open_source(tmp_path)
    assert source.native_pixels
    listing = source.list_samples()
    assert_sound(source, listing)
    first, second, third = read_all(source, listing.splits["train"])
    assert first.dtype == np.uint8 and np.array_equal(first, pixels) and np.array_equal(second, pixels)
    assert third == b""  # which is rejected as empty


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.zeros((2, 2, 3))), r"float64 \(2, 2, 3\)"),
        (npy(np.zeros((2, 2), np.uint8)), r"uint8 \(2, 2\)"),
        (npy(np.zeros((2, 2, 3), np.uint8))[:-1], r"11 bytes for \(2, 2, 3\)"),
        (npy(np.zeros((2, 2, 3), np.uint8))[:20], r"EOF"),
        (b"\x93NUMPY\x09\x00", r"9, 0"),
    ],
)
def test_an_npy_member_that_is_no_picture_is_named(tmp_path, content, message):
    save(tmp_path / "a.tar", [("a.npy", content), ("a.cls", b"0")])
    source = open_source(tmp_path)
    with pytest.raises(InputError, match=rf"a.tar: the npy member at byte 512 is not a picture \(.*{message}"):
        read_all(source, source.list_samples().splits["train"])


def test_an_npy_member_is_never_unpickled(tmp_path):
    save(tmp_path / "a.tar", [("a.npy", npy(np.array([[[print]]], dtype=object))), ("a.cls", b"0")])
    source = open_source(tmp_path)
    with pytest.raises(InputError, match=r"object \(1, 1, 1\)"):
        read_all(source, source.list_samples().splits["train"])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.cls", b"0")], r"t.tar: the sample a has no picture \(jpg, .* but cls;"),
        ([("a.jpg", b"")], r"t.tar: the sample a has no label \(cls, .* but jpg;"),
        ([("a.jpg", b""), ("b.cls", b"0"), ("a.cls", b"0")], "the sample a has no label"),
        ([("a.jpg", b""), ("a.cls", b"cat")], r"a has the cls b'cat', which gives no label"),
        ([("a.jpg", b""), ("a.cls", b"-1")], r"a has the cls b'-1', which gives no label"),
        ([("a.jpg", b""), ("a.cls", b"4294967296")], "which gives no label"),
        ([("a.jpg", b""), ("a.json", b'{"label": "3"}')], "which gives no label"),
        ([("a.jpg", b""), ("a.json", b'{"label": true}')], "which gives no label"),
        ([("a.jpg", b""), ("a.json", b"{label: 3}")], "which gives no label"),
        ([("a.jpg", b""), ("a.cls", b"0"), ("a.jpg", b"")], "t.tar: a.jpg: duplicate file name"),
        (
            [(f"{key}.{ext}", b"0") for key in "aba" for ext in ("jpg", "cls")],
            "t.tar holds two samples a; pack it again",
        ),
        ([("a.jpg", b""), ("a.cls", b"0"), ("b.npy", b""), ("b.cls", b"0")], "the sample b is npy; .* can't be mixed"),
        ([("README", b"")], "hold no sample"),
    ],
)
def test_a_sample_that_is_not_whole_is_named(tmp_path, members, message):
    save(tmp_path / "t.tar", members)
    with pytest.raises(InputError, match=message) as caught:
        open_source(tmp_path).list_samples()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-0.tar", "extra.tar"], "extra.tar is named after no split, but others are; name it after one of"),
        (["train-test.tar"], "train-test.tar is named after train and test; name it after one of"),
        (["val-0.tar", "dev-0.tar"], "uses two words for val, in dev-0.tar and val-0.tar; keep those of one set"),
    ],
)
def test_tars_whose_names_do_not_tell_the_split_are_refused(tmp_path, names, message):
    for name in names:
        save(tmp_path / name, [("a.jpg", b""), ("a.cls", b"0")])
    with pytest.raises(InputError, match=message):
        open_source(tmp_path).list_samples()


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_damaged_tar_is_named_wherever_it_is_cut(tmp_path, tar_format):
    path = tmp_path / "a.tar"
    save(
        path,
        [(f"{'f' * 120 if tar_format else ''}{i}.{e}", b"0") for i in range(3) for e in ("jpg", "cls")],
        tar_format,
    )
    content = path.read_bytes()
    last = max(i for i in range(0, len(content), 512) if any(content[i : i + 512])) + 512
    for length in range(0, last + 1, 512):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"a.tar is damaged or cut short at byte \d+ .*; get the archive again"):
            open_source(tmp_path).list_samples()
    path.write_bytes(content[:600] + b"\xff" * 600 + content[1200:])
    with pytest.raises(InputError, match=r"a.tar is damaged or cut short at byte \d+ "):
        open_source(tmp_path).list_samples()


def test_a_member_with_holes_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(info)
    with pytest.raises(InputError, match=r"stores a\.jpg with holes; pack it again without --sparse"):
        open_source(tmp_path).list_samples()


def test_a_tar_that_shrank_since_it_was_listed_is_an_error(tmp_path):
    save(tmp_path / "a.tar", [("a.cls", b"0"), ("a.jpg", picture(0))])
    source = open_source(tmp_path)
    listing = source.list_samples()
    (tmp_path / "a.tar").write_bytes(b"x" * 1600)
    with pytest.raises(OSError, match="shorter than when it was listed"):
        read_all(source, listing.splits["train"])


# Our own datasets


@pytest.mark.parametrize("name", ["original_dataset", "raw_dataset", "jpeg_dataset"])
def test_sharding_again_keeps_bytes_labels_classes_and_names(request, tmp_path, name):
    first = request.getfixturevalue(name)
    source = open_source(first.path)
    assert (source.layout, source.native_pixels) == ("webdataset", name == "raw_dataset")
    assert_sound_but_for_names(source, first)
    encoding = ["--encoding", "original", "--size", "32"] if name != "raw_dataset" else []
    assert main([str(first.path), str(tmp_path / "b"), "--seed", "5", "--samples-per-shard", "7", *encoding]) == 0
    second = Dataset.open(tmp_path / "b")
    assert (second.wnids, second.class_names) == (first.wnids, first.class_names)
    assert second.splits == first.splits == ("train", "val")
    for split in first.splits:
        assert contents(second, split) == contents(first, split)
        assert second.manifest(split)["source"] != first.manifest(split)["source"]  # another order


def test_sharding_again_alike_gives_the_same_shards(raw_dataset, tmp_path):
    config = ShardingConfig(encoding=EncodingConfig(encoding="raw", size=None), samples_per_shard=15)
    shard_dataset(open_source(raw_dataset.path), tmp_path / "b", config, num_workers=1)
    shard_dataset(open_source(tmp_path / "b"), tmp_path / "c", config, num_workers=2)
    assert Dataset.open(tmp_path / "b").document["files"] == Dataset.open(tmp_path / "c").document["files"]


def assert_sound_but_for_names(source, dataset):
    listing = source.list_samples()
    assert_sound(source, listing)
    for split, table in listing.splits.items():
        assert sorted(dataset.manifest(split)["source"].to_pylist()) == table["source"].to_pylist()


def contents(dataset, split):
    """Return the source's name of each sample -> its picture's bytes, its class, what else its manifest says of it."""
    found = {}
    for row in dataset.manifest(split).to_pylist():
        with open(dataset.path / row["shard"], "rb") as file:
            file.seek(row["offset"])
            found[row["source"]] = (
                file.read(row["num_bytes"]),
                *(row[name] for name in ("class_index", "wnid", "width", "height", "hash")),
            )
    return found


@pytest.fixture
def copy(tmp_path):
    """A dataset of 12 pictures whose classes have names."""
    for number in range(12):
        folder = tmp_path / "pictures" / f"n0000000{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(picture(number))
    (tmp_path / "pictures/classes.txt").write_text("n00000000 tench\nn00000001 goldfish, Carassius\n")
    config = ShardingConfig(encoding=EncodingConfig(encoding="original", size=16))
    shard_dataset(open_source(tmp_path / "pictures"), tmp_path / "a", config, num_workers=1)
    return tmp_path / "a"


def test_class_names_are_those_of_the_first_source(copy):
    listing = open_source(copy).list_samples()
    assert [(entry.wnid, entry.name) for entry in listing.classes] == [
        ("n00000000", "tench"),
        ("n00000001", "goldfish, Carassius"),
        ("n00000002", "n00000002"),
    ]
    assert listing.splits["val"]["source"].to_pylist()[0].startswith("n00000000/")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "train-000000.tar").unlink(), "train-000000.tar is missing or has another length"),
        (
            lambda root: (root / "train-000000.tar").write_bytes(b""),
            "train-000000.tar is missing or has another length",
        ),
        (lambda root: (root / "manifest/val.parquet").write_bytes(b""), "val.parquet was changed since"),
        (lambda root: (root / "dataset.json").write_text("{}"), "dataset.json can't be read as"),
        (
            lambda root: ((root / "dataset.json").unlink(), (root / ".partial").mkdir()),
            "holds an interrupted run of `python -m pipeline.shard`; run it again first",
        ),
    ],
)
def test_a_dataset_that_is_not_whole_is_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(InputError, match=message):
        open_source(copy).list_samples()


def test_a_dataset_accounts_for_its_documents_and_members(copy):
    found = open_source(copy).list_samples()
    assert found.members == Members(24, 12)
    listed = {file for table in found.splits.values() for file in table["file"].to_pylist()}
    there = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert listed | set(found.tables) == there


@pytest.mark.parametrize("pattern", ["train-000000.tar", "*.parquet"])
def test_a_dataset_is_read_whole(copy, pattern):
    with pytest.raises(InputError, match=r"a dataset of this project, which is read as a whole, .*from --ignore"):
        open_source(copy, None, ListingOptions(ignore=(pattern,))).list_samples()
    assert open_source(copy, None, ListingOptions(ignore=("*.txt",))).list_samples().members == Members(24, 12)
