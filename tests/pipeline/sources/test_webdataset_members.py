"""Members of WebDataset tars: what gives no sample is counted, a picture never left out, a label never chosen."""

import shlex

import numpy as np
import pytest
from webdataset import tariterators

from pipeline.command import InputError
from pipeline.sources.base import ListingOptions
from pipeline.sources.detect import open_source
from pipeline.sources.tree import LeftOut
from tests.pipeline.sources.test_webdataset_tars import npy, picture, save

SAMPLE = [("a.jpg", picture(0)), ("a.cls", b"0")]


def list_with(root, **options):
    return open_source(root, None, ListingOptions(**options)).list_samples()


@pytest.mark.parametrize(
    ("members", "left_out"),
    [
        ([("README", b"words")], "members without an extension"),
        ([("a.txt", b"a caption")], "members that are neither a picture nor a label"),
        ([("a.json", b'{"width": 40, "label": "tench"}')], "members that are neither a picture nor a label"),
        ([("a.png", b"no picture")], "members that are neither a picture nor a label"),
        ([(".DS_Store", b"")], "of a NAS or desktop"),
        ([("__MACOSX/._b.jpg", b"")], "of a NAS or desktop"),
        ([("._a.jpg", picture(1))], "of a NAS or desktop"),
        ([("x/.hidden/b.jpg", b"no picture")], "hidden"),
    ],
)
def test_members_of_no_sample_are_counted(tmp_path, members, left_out):
    save(tmp_path / "a.tar", [*SAMPLE, *members])
    found = list_with(tmp_path)
    assert found.splits["train"]["source"].to_pylist() == ["a/a"]
    assert (found.members.num_found, found.members.num_labels) == (3, 1)
    assert found.members.left_out == {left_out: LeftOut(1, f"a.tar/{members[0][0]}")}


def test_notes_of_a_mac_between_the_members_of_a_sample_do_not_part_it(tmp_path):
    save(tmp_path / "a.tar", [("s/._a.jpg", b"1"), ("s/a.jpg", picture(0)), ("s/._a.cls", b"2"), ("s/a.cls", b"0")])
    assert list_with(tmp_path).splits["train"]["source"].to_pylist() == ["a/s/a"]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("a.png", r"a.png is a picture \(PNG\), but the sample a already has one, its jpg; .*--ignore '\*.png'"),
        ("a.seg.png", r"a.seg.png is a picture \(PNG\), but the sample .*--ignore '\*.seg.png'"),
        ("a.avif", r"a.avif is a picture \(PNG\), but the sample .*--ignore '\*.avif'"),
        (".old/b.jpg", r".old/b.jpg is a picture \(PNG\), but hidden; .*--ignore .old/b.jpg"),
        ("0001", r"0001 is a picture \(PNG\), but has no extension, .*--ignore /0001"),
    ],
)
def test_a_picture_that_would_be_left_out_is_refused_unless_it_is_ignored(tmp_path, member, message):
    save(tmp_path / "a.tar", [*SAMPLE, (member, picture(1, "PNG"))])
    with pytest.raises(InputError, match=message) as caught:
        list_with(tmp_path)
    pattern = shlex.split(str(caught.value).partition("--ignore ")[2])[0].rstrip(",")
    found = list_with(tmp_path, ignore=(pattern,))
    assert found.members.left_out == {f"ignored by {pattern}": LeftOut(1, f"a.tar/{member}")}
    assert found.splits["train"]["num_bytes"].to_pylist() == [len(picture(0))]


def test_patterns_are_for_whole_names_too_and_for_tars(tmp_path):
    save(tmp_path / "a.tar", [("./x/a.jpg", b"1"), ("./x/a.cls", b"1"), ("y/a.jpg", picture(0)), ("y/a.cls", b"0")])
    save(tmp_path / "extra-train.tar", SAMPLE)
    assert list_with(tmp_path, ignore=("x/*", "extra*")).splits["train"]["source"].to_pylist() == ["a/y/a"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([("a.cls", b"3"), ("a.json", b'{"label": 4}')], r"has the labels 3 \(cls\) and 4 \(json\); leave out those"),
        ([("a.cls", b"3"), ("a.index", b"7")], r"has the labels 3 \(cls\) and 7 \(index\); .*--ignore '\*.index'"),
        ([("a.json", b'{"label": 3, "cls": 4}')], "has the json .* which gives no label"),
        ([("a.cls", b"3"), ("a.label", b"tench")], "has the label b'tench', which gives no label"),
        ([("a.cls", b"3.0")], "which gives no label"),
        ([("a.cls", b"1e3")], "which gives no label"),
        ([("a.cls", b"1_0")], "which gives no label"),
        ([("a.cls", b"\xff")], "which gives no label"),
        ([("a.cls", "٣".encode())], "which gives no label"),
        ([("a.cls", b"9" * 5000)], "which gives no label"),
        ([("a.json", b"[" * 100_000)], "which gives no label"),
        ([("a.json", b'{"label": 3.0}')], "which gives no label"),
        ([("a.cls", bytes(2**24 + 1))], "of 16777217 bytes, too long for a label"),
    ],
)
def test_labels_that_differ_or_are_none_are_refused(tmp_path, labels, message):
    save(tmp_path / "a.tar", [("a.jpg", b""), *labels])
    with pytest.raises(InputError, match=f"a.tar: the sample a {message}|a.tar: the sample a .*{message}") as caught:
        list_with(tmp_path)
    assert "\n" not in str(caught.value)


def test_labels_that_agree_are_all_counted(tmp_path):
    save(tmp_path / "a.tar", [*SAMPLE, ("a.json", b'{"label": 0, "cls": 0}')])
    assert (list_with(tmp_path).members.num_found, list_with(tmp_path).members.num_labels) == (3, 2)


def test_a_sample_of_a_picture_and_other_numbers_is_no_stored_pixels(tmp_path):
    save(tmp_path / "a.tar", [*SAMPLE, ("a.npy", npy(np.zeros(3)))])
    source = open_source(tmp_path)
    assert not source.native_pixels
    assert source.list_samples().splits["train"].num_rows == 1


def test_keys_are_those_of_the_webdataset_library(tmp_path):
    names = ["a.b/0001", "./0002", "x/0001", "y/0001", "x.y/z/0003"]
    save(tmp_path / "train-0.tar", [(f"{name}.{end}", content) for name in names for end, content in ENDS])
    with open(tmp_path / "train-0.tar", "rb") as file:
        members = tariterators.tar_file_expander([{"url": "train-0.tar", "stream": file}])
        keys = sorted(sample["__key__"] for sample in tariterators.group_by_keys(members))
    found = list_with(tmp_path).splits["train"]["source"].to_pylist()
    assert found == [f"train-0/{key}" for key in keys] and len(keys) == 5


ENDS = [("jpg", picture(0)), ("extra.v2.txt", b"words"), ("cls", b"0")]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["contest-000.tar", "train-000.tar"], None),
        (["retrain.tar", "interval.tar"], {"train": 2}),
        (["train-latest-0.tar", "DEV-0.tar"], {"train": 1, "val": 1}),
        (["training-0.tar", "testing.tar", "valid.tar"], {"train": 1, "val": 1, "test": 1}),
    ],
)
def test_splits_are_whole_words_of_the_names(tmp_path, names, splits):
    for name in names:
        save(tmp_path / name, SAMPLE)
    if splits is None:
        with pytest.raises(InputError, match=r"contest-000.tar is named after no split, but others are; .*--ignore"):
            list_with(tmp_path)
    else:
        assert {split: table.num_rows for split, table in list_with(tmp_path).splits.items()} == splits


def test_a_missing_tar_is_named_unless_a_part_will_do(tmp_path):
    for number in (0, 1, 3):
        save(tmp_path / f"train-{number:06d}.tar", SAMPLE)
    with pytest.raises(InputError, match=r"lacks train-000002.tar; get what is missing, or .*--partial"):
        list_with(tmp_path)
    assert list_with(tmp_path, partial=True).splits["train"].num_rows == 3


def test_tables_and_tars_without_samples_are_accounted_for(tmp_path):
    save(tmp_path / "a.tar", SAMPLE)
    save(tmp_path / "b.tar", [("README", b"")])
    (tmp_path / "classes.txt").write_text("cat\n")
    found = list_with(tmp_path)
    assert (tuple(found.tables), found.left_out) == (("classes.txt",), {"b.tar": "holds no sample"})
