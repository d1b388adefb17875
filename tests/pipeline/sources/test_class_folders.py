"""Class folders: what people's folders hold, read right or refused by name."""

import os
import re
import unicodedata

import pytest
from source_files import check_adds_up, samples, save_pictures, taken

from pipeline.command import InputError

TRAIN = ["train/cat/a.jpg", "train/dog/b.jpg"]


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("training", "train"),
        ("Train", "train"),
        ("TRAINING", "train"),
        ("valid", "val"),
        ("Val", "val"),
        ("VALIDATION", "val"),
        ("dev", "val"),
        ("Dev", "val"),
        ("testing", "test"),
        ("TEST", "test"),
    ],
)
def test_a_split_has_many_names(tmp_path, folder, split):
    other = "val" if split == "train" else "train"
    save_pictures(tmp_path, [f"{folder}/cat/a.jpg", f"{folder}/dog/b.jpg", f"{other}/cat/c.jpg", f"{other}/dog/d.jpg"])
    listing, inventory = taken(tmp_path)
    assert samples(listing) == {
        name: [(f"cat/{'a' if name == split else 'c'}.jpg", "cat"), (f"dog/{'b' if name == split else 'd'}.jpg", "dog")]
        for name in sorted((split, other), key=["train", "val", "test"].index)
    }
    assert {file.partition("/")[0] for file in listing.splits[split]["file"].to_pylist()} == {folder}
    check_adds_up(inventory)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(["val/x.jpg"], r"/val holds pictures \(val/x.jpg\) but no class.*--ignore /val$", id="flat"),
        pytest.param(["test/x.jpg", "test/y.jpg"], r"/test holds pictures .*--ignore /test$", id="flat-test"),
        pytest.param(["val/cat/c.jpg", "val/x.jpg"], r"beside class folders.*--ignore val/x.jpg$", id="stray"),
        pytest.param(["train/stray.jpg"], r"beside class folders.*--ignore train/stray.jpg$", id="stray-train"),
        pytest.param(["val/cat/c.jpg", "valid/cat/d.jpg"], r"valid means val, as .*/val does", id="twice"),
        pytest.param(["Train/cat/c.jpg"], r"means train, as .* does", id="twice-by-case"),
        pytest.param(["val2/cat/c.jpg"], "val2 is named almost like a split", id="almost"),
        pytest.param(["test1/x.jpg"], "test1 is named almost like a split", id="almost-flat"),
        pytest.param(["train2017/x.jpg"], "train2017 is named almost like a split", id="almost-year"),
        pytest.param(["val/images/x.jpg"], r"/val has the classes images, none of which is in .*/train", id="images"),
        pytest.param(["train/cow/x/1.jpg", "train/cow/y/2.jpg"], r"train/cow would be one class.*\(x, y\)", id="deep"),
        pytest.param(["train/train/cow/1.jpg"], r"train/train would be one class, but", id="level"),
        pytest.param(["train/a/val/1.jpg"], "train/a would be one class, but holds folders", id="split-in-class"),
        pytest.param(["extra/cat/x.jpg"], r"is a picture that the layout folders does not read.*extra", id="out"),
        pytest.param(["x.jpg"], r"is a picture that .* not read \(the first is x.jpg, PNG\).*--ignore", id="top"),
        pytest.param(["train/cat/c"], r"the first is train/cat/c, PNG\).*--ignore train/cat/c$", id="ending"),
        pytest.param(["train/cat/c.txt", "val/cat/x.jpg"], r"train/cat/c.txt, PNG.*--ignore '\*.txt'$", id="text"),
        pytest.param(["train/cat/.c.jpg"], r"train/cat/.c.jpg, PNG", id="hidden"),
        pytest.param(["train/.old/c.jpg"], r"train/.old/c.jpg, PNG", id="hidden-folder"),
    ],
)
def test_what_may_be_read_in_two_ways_is_refused_by_name(tmp_path, names, message):
    save_pictures(tmp_path, [*TRAIN, *names])
    with pytest.raises(InputError, match=message):
        taken(tmp_path)


@pytest.mark.parametrize("ignored", ["val", "val/*", "*.bmp", "x.bmp", "val/x.bmp"])
def test_what_is_refused_can_be_ignored(tmp_path, ignored):
    save_pictures(tmp_path, [*TRAIN, "val/x.bmp"])
    with pytest.raises(InputError, match="but no class folders"):
        taken(tmp_path)
    if ignored == "val":
        listing, inventory = taken(tmp_path, ignored)
        assert samples(listing) == {"train": [("cat/a.jpg", "cat"), ("dog/b.jpg", "dog")]}
        assert inventory.left_out["ignored by val"].num_files == 1
        check_adds_up(inventory)
    else:  # the folder is still there, and empty
        with pytest.raises(InputError, match="val is named like a split, but holds no picture"):
            taken(tmp_path, ignored)
        listing, inventory = taken(tmp_path, ignored, "val")
        assert list(listing.splits) == ["train"]


def test_one_level_too_high_names_the_right_folder(tmp_path):
    save_pictures(tmp_path, [f"imagenet/{name}" for name in TRAIN] + ["imagenet/val/cat/c.jpg"])
    with pytest.raises(InputError, match=re.escape(f"name {tmp_path / 'imagenet'} itself as the SOURCE")):
        taken(tmp_path)


def test_an_empty_split_folder_is_no_missing_split(tmp_path):
    save_pictures(tmp_path, TRAIN)
    (tmp_path / "val").mkdir()
    with pytest.raises(InputError, match="val is named like a split, but holds no picture; fill it or remove it"):
        taken(tmp_path)


def test_pictures_alone_are_told_to_be_sorted(tmp_path):
    save_pictures(tmp_path, ["a.jpg", "b.jpg"])
    with pytest.raises(InputError, match=r"holds pictures .* but no class folders"):
        taken(tmp_path)


@pytest.mark.parametrize("names", [["train/a.jpg", "test/b.jpg", "other/c.jpg"], ["train/a.jpg"]])
def test_flat_split_folders_are_no_classes(tmp_path, names):
    save_pictures(tmp_path, names)
    with pytest.raises(InputError, match="but no class folders"):
        taken(tmp_path)


def test_a_class_without_pictures_in_a_split_is_told(tmp_path):
    save_pictures(tmp_path, [*TRAIN, "train/emu/e.jpg", "val/cat/c.jpg", "val/yak/y.jpg"])
    _, inventory = taken(tmp_path)
    assert inventory.splits["train"].missing == ("yak",)
    assert inventory.splits["val"].missing == ("dog", "emu")
    assert "train has no sample of yak" in str(inventory) and "val has no sample of dog, emu" in str(inventory)


@pytest.mark.parametrize("ending", ["jfif", "jpe", "avif", "JFIF", "pgm", "jp2"])
def test_endings_of_pictures(tmp_path, ending):
    save_pictures(tmp_path, [*TRAIN, f"train/cat/z.{ending}"])
    listing, _ = taken(tmp_path)
    assert (f"cat/z.{ending}", "cat") in samples(listing)["train"]


# What lies beside the pictures


@pytest.mark.parametrize(
    "name",
    [
        "train/@eaDir/cat.jpg/SYNOPHOTO_THUMB_M.jpg",
        "train/cat/@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg",
        "__MACOSX/train/cat/a.jpg",
        "train/__MACOSX/cat/._a.jpg",
        "#recycle/a.jpg",
        "train/#recycle/a.jpg",
        "$RECYCLE.BIN/a.jpg",
        "lost+found/a.jpg",
        "train/lost+found/a.jpg",
        "train/cat/Thumbs.db",
        "train/cat/thumbs.DB",
        "train/cat/.DS_Store",
        "train/cat/._a.jpg",
        "train/cat/.@__thumb/a.jpg",
        ".Trash-1000/files/a.jpg",
        "System Volume Information/a.jpg",
        "desktop.ini",
    ],
)
def test_what_a_nas_or_desktop_keeps_is_left_out_and_counted(tmp_path, name):
    save_pictures(tmp_path, [*TRAIN, name])
    listing, inventory = taken(tmp_path)
    assert samples(listing) == {"train": [("cat/a.jpg", "cat"), ("dog/b.jpg", "dog")]}
    assert (inventory.num_files, inventory.num_samples) == (3, 2)
    (found,) = inventory.left_out.values()
    assert list(inventory.left_out) == ["of a NAS or desktop"] and (found.num_files, found.first) == (1, name)


def test_other_files_are_left_out_by_their_endings_and_counted(tmp_path):
    save_pictures(tmp_path, TRAIN)
    for name in ("README", "train/labels.csv", "train/cat/a.xml", "train/dog/b.xml", ".gitignore", "notes/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    _, inventory = taken(tmp_path)
    assert {reason: (found.num_files, found.first) for reason, found in inventory.left_out.items()} == {
        "hidden": (1, ".gitignore"),
        "outside the splits": (2, "README"),
        "ending .csv": (1, "train/labels.csv"),
        "ending .xml": (2, "train/cat/a.xml"),
    }
    check_adds_up(inventory)
    assert "8 files: 2 samples, 6 left out" in str(inventory)
    assert "  left out: 2 ending .xml (the first is train/cat/a.xml)" in str(inventory)


# Links


def link(root, name, target):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(target)


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("train/cat/all", "..", r"train/cat/all leads back to .*/train, in which it lies.*--ignore train/cat/all"),
        ("train/dog/self", ".", "train/dog/self leads back to .*/train/dog, in which it lies"),
        ("train/cat/root", "../..", "train/cat/root leads back to"),
        ("train/hound", "dog", "are one folder, reached through a link"),
        ("val", "train", r"/val and .*/train are one folder, reached through a link.*--ignore /val"),
        ("train/dog/a.jpg", "../cat/a.jpg", "are one file, which would be a picture of two splits or classes"),
        ("val/cat/c.jpg", "../../train/cat/a.jpg", "one file, which would be a picture of two splits or classes"),
        ("train/cat/gone.jpg", "nowhere.jpg", r"gone.jpg is a link to nowhere.jpg, which leads to no file"),
        ("train/cat/gone", "nowhere", r"gone is a link to nowhere, which leads to no file; .*--ignore"),
        ("train/cat/round", "round", r"round is a link to round, which leads to no file"),
    ],
)
def test_a_link_that_doubles_or_loses_pictures_is_refused(tmp_path, name, target, message):
    save_pictures(tmp_path, [*TRAIN, *(["val/cat/x.jpg"] if name.startswith("val/") else [])])
    link(tmp_path, name, target)
    with pytest.raises(InputError, match=message):
        taken(tmp_path)
    listing, inventory = taken(tmp_path, name)
    assert samples(listing)["train"] == [("cat/a.jpg", "cat"), ("dog/b.jpg", "dog")]
    check_adds_up(inventory)


def test_links_to_a_pool_of_pictures_are_followed(tmp_path):
    save_pictures(tmp_path / "pool", ["1.jpg", "2.jpg", "dogs/3.jpg"])
    link(tmp_path / "set", "train/cat/a.jpg", tmp_path / "pool/1.jpg")
    link(tmp_path / "set", "val/cat/b.jpg", tmp_path / "pool/2.jpg")
    link(tmp_path / "set", "train/dog", tmp_path / "pool/dogs")
    listing, inventory = taken(tmp_path / "set")
    assert samples(listing) == {"train": [("cat/a.jpg", "cat"), ("dog/3.jpg", "dog")], "val": [("cat/b.jpg", "cat")]}
    check_adds_up(inventory)


@pytest.mark.parametrize("names", [("a.jpg", "b.jpg"), ("b.jpg", "a.jpg")])
def test_a_second_link_in_the_class_is_left_out_whatever_its_name(tmp_path, names):
    name, linked = names
    save_pictures(tmp_path, [f"train/cat/{name}", "train/dog/x.jpg"])
    link(tmp_path, f"train/cat/{linked}", name)
    listing, inventory = taken(tmp_path)
    assert samples(listing)["train"] == [(f"cat/{name}", "cat"), ("dog/x.jpg", "dog")]
    assert inventory.left_out["a second link to a file"].first == f"train/cat/{linked}"
    check_adds_up(inventory)


def test_hard_links_in_a_class_are_its_samples_as_before(tmp_path):
    save_pictures(tmp_path, TRAIN)
    os.link(tmp_path / "train/cat/a.jpg", tmp_path / "train/cat/b.jpg")
    listing, inventory = taken(tmp_path)
    assert samples(listing)["train"] == [("cat/a.jpg", "cat"), ("cat/b.jpg", "cat"), ("dog/b.jpg", "dog")]
    check_adds_up(inventory)


def test_a_hard_link_under_two_classes_is_refused(tmp_path):
    save_pictures(tmp_path, TRAIN)
    os.link(tmp_path / "train/cat/a.jpg", tmp_path / "train/dog/a.jpg")
    with pytest.raises(InputError, match=r"train/cat/a.jpg and .*train/dog/a.jpg are one file"):
        taken(tmp_path)


def test_what_is_no_file_is_left_out(tmp_path):
    save_pictures(tmp_path, TRAIN)
    os.mkfifo(tmp_path / "train/cat/pipe.jpg")
    _, inventory = taken(tmp_path)
    assert inventory.left_out["not a regular file"].first == "train/cat/pipe.jpg"
    check_adds_up(inventory)


# Names


@pytest.mark.parametrize(
    "pair",
    [("cat", "Cat"), (unicodedata.normalize("NFC", "Käfer"), unicodedata.normalize("NFD", "Käfer")), ("cat", "cat ")],
    ids=["case", "normalisation", "space"],
)
def test_classes_whose_names_a_person_takes_for_one_are_refused(tmp_path, pair):
    save_pictures(tmp_path, [f"train/{pair[0]}/a.jpg", f"train/{pair[1]}/b.jpg", "train/x/c.jpg"])
    with pytest.raises(InputError, match="whose names differ only by case, spaces at the end or Unicode"):
        taken(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"cat Felis catus\nhot dog Canis, hot\n",
        b"cat Felis catus\r\nhot dog Canis, hot\r\n",
        "cat Felis catus\nhot dog Canis, hot".encode("utf-8-sig"),
        b"cat\tFelis catus  \nhot dog\tCanis, hot\t\nunknown Name\n\n",
    ],
)
def test_names_for_people_whatever_the_line_ends(tmp_path, content):
    save_pictures(tmp_path, ["train/cat/a.jpg", "train/hot dog/b.jpg", "train/yak/c.jpg"])
    (tmp_path / "classes.txt").write_bytes(content)
    listing, inventory = taken(tmp_path)
    assert [entry.name for entry in listing.classes] == ["Felis catus", "Canis, hot", "yak"]
    assert inventory.tables == ("classes.txt",)
    check_adds_up(inventory)


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("utf-16-le", "UTF-16 or UTF-32 without"), ("latin-1", "Latin-1")],
)
def test_names_in_another_encoding_are_refused(tmp_path, encoding, named):
    save_pictures(tmp_path, TRAIN)
    (tmp_path / "classes.txt").write_bytes("cat Käfig\n".encode(encoding))
    with pytest.raises(InputError, match=f"classes.txt is not UTF-8 but {named}.*convert it"):
        taken(tmp_path)
