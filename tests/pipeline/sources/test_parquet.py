"""Parquet files as Hugging Face writes them: labels and names from the file, a row's bytes, damage, changed files."""

import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.command import InputError
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.pictures.encode import EncodingConfig
from pipeline.sources import parquet
from pipeline.sources.base import ListingOptions
from pipeline.sources.detect import open_source
from pipeline.sources.tree import LeftOut
from tests.pipeline.sources.test_sources import assert_sound

NAMES = ["tench, Tinca tinca", "goldfish", "shark"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
VAL = "data/validation-00000-of-00001.parquet"
TRAIN = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]


def jpeg(number):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30 + number), (number * 9, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def save(path, pictures, labels, names=NAMES, image="image", label="label"):
    """Write a file in row groups of four, with the metadata of Hugging Face's library."""
    features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else {}
    schema = pa.schema([(image, IMAGE), (label, pa.int64())], metadata=metadata)
    images = [{"bytes": content, "path": f"{row}.JPEG"} for row, content in enumerate(pictures)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({image: images, label: labels}, schema=schema), path, row_group_size=4)


@pytest.fixture
def folder(tmp_path):
    """Eleven training pictures in two files, three validation pictures, and test pictures without labels."""
    save(tmp_path / "data" / TRAIN[1], [jpeg(number) for number in range(8, 11)], [0, 1, 2])
    save(tmp_path / "data" / TRAIN[0], [jpeg(number) for number in range(8)], [2, 0, 1, 2, 0, 1, 2, 0])
    save(tmp_path / "data/validation-00000-of-00001.parquet", [jpeg(number) for number in range(20, 23)], [1, 1, 0])
    save(tmp_path / "data/test-00000-of-00001.parquet", [jpeg(30), jpeg(31)], [-1, -1])
    return tmp_path


def read_all(source, table):
    return [source.read(row["file"], row["offset"], row["num_bytes"]) for row in table.to_pylist()]


def test_rows_are_read_back(folder):
    source = open_source(folder)
    listing = source.list_samples()
    assert (source.layout, source.native_pixels) == ("parquet", False)
    assert_sound(source, listing)
    assert [(entry.wnid, entry.name) for entry in listing.classes] == list(zip("012", NAMES, strict=True))
    assert list(listing.splits) == ["train", "val"]
    train, val = listing.splits["train"], listing.splits["val"]
    assert train["class_index"].to_pylist() == [2, 0, 1, 2, 0, 1, 2, 0, 0, 1, 2]
    assert train["source"].to_pylist()[7:9] == ["train-00000-of-00002/7", "train-00001-of-00002/0"]
    assert read_all(source, train) == [jpeg(number) for number in range(11)]
    assert read_all(source, val.take([2, 0, 1])) == [jpeg(number) for number in (22, 20, 21)]


def test_it_can_be_sharded(folder, tmp_path):
    config = ShardingConfig(encoding=EncodingConfig(encoding="original", size=16))
    document = shard_dataset(open_source(folder), tmp_path / "out", config, num_workers=2)
    assert {name: counts["num_samples"] for name, counts in document["splits"].items()} == {"train": 11, "val": 3}


@pytest.mark.parametrize(
    ("names", "lines", "expected"),
    [
        (None, None, [("0", "0"), ("1", "1"), ("2", "2")]),
        (None, "cat\ndog\nox\ncow\n\n", [("0", "cat"), ("1", "dog"), ("2", "ox"), ("3", "cow")]),
        (["n00000001", "n00000002", "n00000004"], "cat\n", [(f"n0000000{i}",) * 2 for i in (1, 2, 4)]),
        (
            ["n00000002", "n00000001", "n00000004"],
            None,
            [("0", "n00000002"), ("1", "n00000001"), ("2", "n00000004")],
        ),
    ],
)
def test_class_names(tmp_path, names, lines, expected):
    save(tmp_path / "train.parquet", [jpeg(0)] * 3, [0, 1, 2], names, image="img", label="fine_label")
    if lines:
        (tmp_path / "classes.txt").write_text(lines)
    listing = open_source(tmp_path).list_samples()
    assert [(entry.wnid, entry.name) for entry in listing.classes] == expected


def test_a_picture_that_is_not_in_the_file_is_empty(tmp_path):
    table = pa.table({"image": pa.array([{"bytes": jpeg(0)}, {"bytes": None}, None], IMAGE), "label": [0, 0, 0]})
    pq.write_table(table, tmp_path / "train.parquet")
    source = open_source(tmp_path)
    assert read_all(source, source.list_samples().splits["train"]) == [jpeg(0), b"", b""]


def test_the_order_is_that_of_the_names_and_a_file_without_class_names_fits_any(tmp_path):
    stems = [f"train-{number * 7 % 16:05d}" for number in range(16)]
    for number, stem in enumerate(stems):
        save(tmp_path / f"{stem}.parquet", [jpeg(0)], [0], NAMES if number % 2 else None)
    source = open_source(tmp_path)
    listing = source.list_samples()
    assert_sound(source, listing)
    assert listing.splits["train"]["source"].to_pylist() == [f"{stem}/0" for stem in sorted(stems)]
    assert [entry.name for entry in listing.classes] == NAMES


@pytest.mark.parametrize(("limit", "num_reads"), [(1 << 20, 3), (1, 22)])
def test_row_groups_are_kept_up_to_a_number_of_bytes(folder, monkeypatch, limit, num_reads):
    kept, reads = parquet._RowGroups(), []
    read_pictures = parquet.PictureFile.read_pictures
    monkeypatch.setattr(parquet, "_row_groups", kept)
    monkeypatch.setattr(parquet, "_MAX_KEPT_BYTES", limit)
    monkeypatch.setattr(
        parquet.PictureFile, "read_pictures", lambda file, group: reads.append(group) or read_pictures(file, group)
    )
    source = open_source(folder)
    read_all(source, source.list_samples().splits["train"].take([0, 5, 8, 0, 5, 8, 0, 5, 8, 0, 5] * 2))
    assert len(reads) == num_reads
    assert kept._num_bytes == sum(pictures.nbytes for pictures in kept._kept.values())


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (lambda path: save(path, [jpeg(1)], [2]), 7),  # the row is no longer there
        (lambda path: save(path, [jpeg(number) for number in range(8)][::-1], [0] * 8), 0),  # it is another one
    ],
)
def test_a_file_that_was_written_anew_since_it_was_listed_is_an_error(folder, change, row):
    source = open_source(folder)
    table = source.list_samples().splits["train"]
    read_all(source, table)
    change(folder / "data" / TRAIN[0])
    with pytest.raises(OSError, match="holds other pictures than when it was listed") as caught:
        read_all(source, table.slice(row, 1))
    assert caught.value.filename.endswith(TRAIN[0])


def test_a_file_that_is_gone_is_an_error(folder):
    source = open_source(folder)
    table = source.list_samples().splits["train"]
    (folder / "data" / TRAIN[0]).unlink()
    with pytest.raises(FileNotFoundError, match=TRAIN[0]):
        read_all(source, table.slice(0, 1))


def test_damaged_pictures_are_found_when_they_are_read(folder):
    path = folder / "data" / TRAIN[0]
    table = pq.read_table(path)
    pq.write_table(table, path, compression="gzip")
    content = bytearray(path.read_bytes())
    content[100:200] = bytes(100)
    path.write_bytes(content)
    source = open_source(folder)
    rows = source.list_samples().splits["train"]
    with pytest.raises(InputError, match=rf"{TRAIN[0]} is damaged \(.*\); get the file again"):
        read_all(source, rows)


@pytest.mark.parametrize("content", [b"", b"<html>", lambda whole: whole[: len(whole) // 2], lambda whole: whole[:-9]])
def test_a_damaged_file_is_named(folder, content):
    path = folder / "data" / TRAIN[1]
    path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    with pytest.raises(InputError, match=rf"{TRAIN[1]} is damaged \(.*\); get the file again") as caught:
        open_source(folder).list_samples()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: save(root / VAL, [b""], [3]), r"names 3 classes, but the labels need 4"),
        (lambda root: save(root / VAL, [b"", b""], [0, -1]), r"val of .* has the label -1; remove the rows"),
        (lambda root: save(root / VAL, [b""], [None]), r"validation-00000-of-00001.parquet has 1 rows without a label"),
        (lambda root: save(root / VAL, [b""], [0], ["a", "b", "c"]), "name their classes differently"),
        (lambda root: save(root / "train.parquet", [b""], [0]), "so does its folder data; keep one of them"),
        (
            lambda root: save(root / VAL, [b""], [0], image="photo"),
            r"parquet has the columns photo: struct<bytes: binary, path: string>, label: int64; expected image",
        ),
        (
            lambda root: pq.write_table(pa.table({"image": [b""], "label": ["cat"]}), root / VAL),
            r"validation-00000-of-00001.parquet has the columns image: binary, label: string; expected image: struct",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message):
        open_source(folder).list_samples()


def test_labels_that_number_no_classes_are_refused(tmp_path):
    save(tmp_path / "train.parquet", [b""], [123456789], names=None)
    with pytest.raises(InputError, match="has the label 123456789; labels must number the classes from 0"):
        open_source(tmp_path).list_samples()


def test_a_set_without_any_label_is_refused(tmp_path):
    save(tmp_path / "test-0.parquet", [b""], [-1])
    with pytest.raises(InputError, match="holds no Parquet file with labels"):
        open_source(tmp_path).list_samples()


def test_listing_reads_no_picture(folder, monkeypatch):
    monkeypatch.setattr(parquet.PictureFile, "read_pictures", None)
    listing = open_source(folder).list_samples()
    assert np.all(listing.splits["train"]["num_bytes"].to_numpy() > 0)


# Which files are a set's


def save_all(root, names):
    for number, name in enumerate(names):
        save(root / name, [jpeg(number)], [number % 3])


def list_with(root, **options):
    return open_source(root, None, ListingOptions(**options)).list_samples()


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train.parquet"], {"train": 1}),
        (["Training_0.parquet", "Training_1.parquet", "DEV.parquet"], {"train": 2, "val": 1}),
        (["data/valid-0-of-1.parquet", "data/testing-0-of-1.parquet"], {"val": 1, "test": 1}),
        (
            ["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"],
            {"train": 2, "test": 1},
        ),
        (["train/0000.parquet", "validation/0000.parquet"], {"train": 1, "val": 1}),
    ],
)
def test_where_files_lie_and_how_they_are_called(tmp_path, names, splits):
    save_all(tmp_path, names)
    source = open_source(tmp_path)
    found = source.list_samples()
    assert source.layout == "parquet"
    assert {split: table.num_rows for split, table in found.splits.items()} == splits
    assert sorted(file for table in found.splits.values() for file in table["file"].to_pylist()) == sorted(names)
    assert all(len(read_all(source, table)) == table.num_rows for table in found.splits.values())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([TRAIN[0]], "lacks train-00001-of-00002.parquet; get what is missing, or"),
        (["data/train-00001-of-00003-ab.parquet"], "lacks data/train-00000-of-00003.parquet and 1 more of its set"),
        (["train/0000.parquet", "train/0002.parquet"], "lacks train/0001.parquet"),
        (
            ["c/partial-train/0000.parquet"],
            "partial-train holds only the first part of a split; get the whole set, or",
        ),
    ],
)
def test_incomplete_sets_are_for_trials_alone(tmp_path, names, message):
    save_all(tmp_path, names)
    with pytest.raises(InputError, match=f"{message}.*--partial"):
        list_with(tmp_path)
    assert list_with(tmp_path, partial=True).splits["train"].num_rows == len(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-0-of-1.parquet", "train-0-of-2.parquet", "train-1-of-2.parquet"], "parts of two sets"),
        (["train-0-of-1-ab.parquet", "train-0-of-1-cd.parquet"], "holds one part twice"),
        (["train-0-of-1.parquet", "train.parquet"], "two sets of files for train, .*; keep those of one set, or leave"),
        (["train-0-of-1.parquet", "train-new-0-of-1.parquet"], "two sets of files for train"),
        (["c/train/0000.parquet", "c/partial-train/0000.parquet"], "two sets of files for train"),
        (["val.parquet", "dev.parquet"], "uses two words for val, in dev.parquet and val.parquet"),
        (["a/train/0000.parquet", "b/train/0000.parquet"], "of two configurations, a and b; name one's folder, .*/a"),
        (["train.parquet", "c/train/0000.parquet"], "and so does its folder c; keep one of them"),
    ],
)
def test_files_of_two_sets_are_refused(tmp_path, names, message):
    save_all(tmp_path, names)
    for partial in (True,) if "partial" in names[1] else (True, False):
        with pytest.raises(InputError, match=message):
            list_with(tmp_path, partial=partial)


@pytest.mark.parametrize("word", ["train_corrupted", "dev2", "unsupervised", "extra", "trainer"])
def test_files_of_no_split_are_named_and_can_be_ignored(tmp_path, word):
    save_all(tmp_path, ["train-0-of-1.parquet", f"{word}-0-of-1.parquet"])
    with pytest.raises(InputError, match=f"is named after '{word}', which is not a split.*--ignore '{word}\\[-"):
        list_with(tmp_path)
    assert list_with(tmp_path, ignore=(f"{word}*",)).splits["train"].num_rows == 1


def test_files_of_a_split_have_the_same_columns(folder):
    path = folder / "data" / TRAIN[1]
    pq.write_table(pq.read_table(path).append_column("source", pa.array(["web"] * 3)), path)
    with pytest.raises(
        InputError, match=f"{TRAIN[1]} and .*{TRAIN[0]} belong to one split, but .* the columns source; keep"
    ):
        open_source(folder).list_samples()


def test_a_split_without_labels_is_counted(folder):
    save(folder / "data/test-00000-of-00001.parquet", [jpeg(30), jpeg(31)], [-1, -1])
    found = open_source(folder).list_samples()
    assert found.left_out == {"data/test-00000-of-00001.parquet": "without labels"}
    assert found.members.num_found == 16
    assert found.members.left_out == {"without labels": LeftOut(2, "data/test-00000-of-00001.parquet")}


def test_classes_txt_is_a_table_where_it_is_read(folder):
    (folder / "classes.txt").write_text("not read\n")
    assert open_source(folder).list_samples().tables == ()
    for path in (folder / "data").iterdir():
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    (folder / "classes.txt").write_text("a\nb\nc\n")
    assert open_source(folder).list_samples().tables == ("classes.txt",)


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int8(), pa.int16(), pa.uint32(), pa.uint64()])
def test_labels_of_any_integers(tmp_path, kind):
    table = pa.table({"image": pa.array([{"bytes": jpeg(0)}] * 2, IMAGE), "label": pa.array([1, 0], kind)})
    pq.write_table(table, tmp_path / "train.parquet")
    assert open_source(tmp_path).list_samples().splits["train"]["class_index"].to_pylist() == [1, 0]


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (IMAGE, pa.array([2**40]), "has the label 1099511627776; labels must number the classes from 0"),
        (IMAGE, pa.array([2**63], pa.uint64()), "has the label 9223372036854775808; labels must number"),
        (IMAGE, pa.array([-(2**40)]), "has the label -1099511627776; labels must"),
        (IMAGE, pa.array([1.0]), "has the columns .*label: double; expected image"),
        (IMAGE, pa.array(["cat"]), "has the columns .*label: string; expected image"),
        (
            pa.struct([("bytes", pa.string())]),
            pa.array([0]),
            "has the columns image: struct<bytes: string>.*; expected",
        ),
    ],
)
def test_columns_of_other_kinds_are_refused(tmp_path, image, label, message):
    pq.write_table(pa.table({"image": pa.array([{"bytes": "x"}], image), "label": label}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=f"train.parquet {message}"):
        open_source(tmp_path).list_samples()


@pytest.mark.parametrize(
    "document", ["[]", '{"info": []}', '{"info": {"features": {"label": {"names": 7}}}}', "[" * 100_000]
)
def test_metadata_of_another_form_are_damage(tmp_path, document):
    table = pa.table({"image": pa.array([{"bytes": b""}], IMAGE), "label": [0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": document}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train.parquet is damaged \(.*\); get the file again"):
        open_source(tmp_path).list_samples()


def test_class_folders_are_not_listed_for_parquet_files(tmp_path, monkeypatch):
    """A class folder may hold a million pictures on a network's disk."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.jpg").write_bytes(jpeg(0))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    assert not parquet.ParquetFiles.recognises(tmp_path)
    assert str(tmp_path / "cat") not in listed
