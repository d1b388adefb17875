"""ImageNet's archives in the forms that people unpack them to: the same samples, or what is missing."""

import io
import shutil
import tarfile

import pytest
from source_files import check_adds_up, samples, save_pictures, taken

from pipeline.command import InputError
from pipeline.sources.detect import open_source
from pipeline.sources.devkit import DEVKIT_ARCHIVE, DEVKIT_FOLDER
from pipeline.sources.official import TRAIN_ARCHIVE, VAL_ARCHIVE
from pipeline.synthesize import synthesize


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    synthesize(folder, classes=3, train_per_class=3, val_per_class=2, max_side=32)
    return folder


def train_archive(archives, root):
    shutil.copy(archives / TRAIN_ARCHIVE, root)


def inner_tars(archives, folder):
    with tarfile.open(archives / TRAIN_ARCHIVE) as tar:
        tar.extractall(folder, filter="data")


def class_folders(archives, folder):
    with tarfile.open(archives / TRAIN_ARCHIVE) as outer:
        for member in outer:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                inner.extractall(folder / member.name.removesuffix(".tar"), filter="data")


def flat_val(archives, folder):
    with tarfile.open(archives / VAL_ARCHIVE) as tar:
        tar.extractall(folder, filter="data")


def devkit(archives, root):
    shutil.copy(archives / DEVKIT_ARCHIVE, root)


def devkit_folder(archives, root):
    with tarfile.open(archives / DEVKIT_ARCHIVE) as tar:
        tar.extractall(root, filter="data")


def kaggle_tables(archives, root):
    listing, _ = taken(archives)
    classes = [f"{entry.wnid} {entry.name}" for entry in listing.classes]
    (root / "LOC_synset_mapping.txt").write_text("\n".join(classes) + "\n")
    rows = [f"{name.removesuffix('.JPEG')},{wnid} 1 2 3 4 " for name, wnid in samples(listing)["val"]]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows, ""]))


TRAIN_FORMS = {
    "archive": train_archive,
    "tars": inner_tars,
    "train/tars": lambda archives, root: inner_tars(archives, root / "train"),
    "img_train/tars": lambda archives, root: inner_tars(archives, root / "ILSVRC2012_img_train"),
    "folders": lambda archives, root: class_folders(archives, root / "train"),
    "root/folders": class_folders,
}
VAL_FORMS = {
    "archive": lambda archives, root: shutil.copy(archives / VAL_ARCHIVE, root),
    "val": lambda archives, root: flat_val(archives, root / "val"),
    "validation": lambda archives, root: flat_val(archives, root / "Validation"),
    "img_val": lambda archives, root: flat_val(archives, root / "ILSVRC2012_img_val"),
    "root": flat_val,
}
LABEL_FORMS = {"devkit": devkit, "devkit_folder": devkit_folder, "kaggle": kaggle_tables}


@pytest.mark.parametrize("labels", LABEL_FORMS)
@pytest.mark.parametrize("val", VAL_FORMS)
@pytest.mark.parametrize("train", TRAIN_FORMS)
def test_whatever_was_unpacked_the_samples_are_the_same(archives, tmp_path, train, val, labels):
    for forms, form in ((TRAIN_FORMS, train), (VAL_FORMS, val), (LABEL_FORMS, labels)):
        forms[form](archives, tmp_path)
    expected, _ = taken(archives)
    listing, inventory = taken(tmp_path)
    assert samples(listing) == samples(expected)
    assert listing.classes == expected.classes
    for split, table in listing.splits.items():
        assert table.select(["source", "num_bytes"]) == expected.splits[split].select(["source", "num_bytes"])
    check_adds_up(inventory)


def test_pictures_are_read_from_whatever_was_unpacked(archives, tmp_path):
    inner_tars(archives, tmp_path / "train")
    flat_val(archives, tmp_path / "val")
    devkit(archives, tmp_path)
    contents = []
    for root in (archives, tmp_path):
        source = open_source(root)
        rows = [row for table in source.list_samples().splits.values() for row in table.to_pylist()]
        contents.append([source.read(row["file"], row["offset"], row["num_bytes"]) for row in rows])
    assert contents[0] == contents[1] and len(contents[0]) == 15


def test_validation_pictures_in_class_folders_need_no_table_of_theirs(archives, tmp_path):
    inner_tars(archives, tmp_path / "train")
    devkit(archives, tmp_path)
    save_pictures(tmp_path, [f"val/n900000{number}0/x.JPEG" for number in range(3)])
    listing, inventory = taken(tmp_path)
    assert samples(listing)["val"] == [(f"n900000{n}0/x.JPEG", f"n900000{n}0") for n in range(3)]
    check_adds_up(inventory)


@pytest.mark.parametrize(
    ("forms", "message"),
    [
        ([inner_tars], f"lacks {VAL_ARCHIVE}, {DEVKIT_ARCHIVE}; put all of"),
        ([VAL_FORMS["val"], devkit], f"lacks {TRAIN_ARCHIVE}; put all of"),
        ([TRAIN_FORMS["folders"], VAL_FORMS["val"]], f"lacks {DEVKIT_ARCHIVE}; .*LOC_synset_mapping.txt and LOC_val"),
        ([inner_tars, VAL_FORMS["val"]], f"lacks {DEVKIT_ARCHIVE}"),
        ([VAL_FORMS["val"]], f"lacks {TRAIN_ARCHIVE}, {DEVKIT_ARCHIVE}"),
        ([flat_val], f"lacks {TRAIN_ARCHIVE}, {DEVKIT_ARCHIVE}"),
    ],
)
def test_what_is_missing_is_named(archives, tmp_path, forms, message):
    for form in forms:
        form(archives, tmp_path)
    with pytest.raises(InputError, match=message):
        taken(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: next((root / "train").glob("*.tar")).unlink(), "lacks n900000.0, which the devkit has"),
        (lambda root: next((root / "val").iterdir()).unlink(), "holds 5 pictures, the table of their labels lists 6"),
        (lambda root: save_pictures(root, ["val/more.JPEG"]), r"the first mismatch: val/more.JPEG"),
        (lambda root: save_pictures(root, ["train/n90000000/x.JPEG"]), "a file is a picture that the layout official"),
        (lambda root: save_pictures(root, ["more/x.JPEG"]), "a file is a picture that the layout official"),
        (lambda root: (root / "train/n90000000.tar").write_bytes(bytes(1024)), "n90000000.tar holds no picture"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(archives, tmp_path, damage, message):
    inner_tars(archives, tmp_path / "train")
    flat_val(archives, tmp_path / "val")
    devkit(archives, tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        taken(tmp_path)


@pytest.mark.parametrize("name", ["test/ILSVRC2012_test_00000001.JPEG", "img/ILSVRC2012_test_00000002.JPEG"])
def test_the_test_pictures_are_left_out_by_name(archives, tmp_path, name):
    shutil.copytree(archives, tmp_path, dirs_exist_ok=True)
    save_pictures(tmp_path, [name])
    (tmp_path / "ILSVRC2012_img_test_v10102019.tar").write_bytes(bytes(1024))
    _, inventory = taken(tmp_path)
    assert inventory.left_out["test pictures without labels"].num_files == 2
    check_adds_up(inventory)


def repack(archives, path, change):
    """Pack the training archive anew, with what `change` adds to the first class's tar."""
    with tarfile.open(archives / TRAIN_ARCHIVE) as outer, tarfile.open(path, "w") as new:
        for number, member in enumerate(outer):
            content = io.BytesIO()
            with (
                tarfile.open(fileobj=outer.extractfile(member)) as inner,
                tarfile.open(fileobj=content, mode="w") as tar,
            ):
                for picture in inner:
                    tar.addfile(picture, inner.extractfile(picture))
                if number == 0:
                    change(tar, inner)
            info = tarfile.TarInfo(member.name)
            info.size = len(content.getvalue())
            new.addfile(info, io.BytesIO(content.getvalue()))


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("._n90000000_1.JPEG", b"\0\5\x16\7", "of a NAS or desktop"),
        (".DS_Store", b"x", "of a NAS or desktop"),
        (".listing", b"x", "hidden"),
        ("README.txt", b"x", "ending .txt"),
        ("README", b"x", "no ending"),
    ],
)
def test_members_that_are_no_pictures_are_counted(archives, tmp_path, name, content, reason):
    shutil.copytree(archives, tmp_path, dirs_exist_ok=True)
    repack(archives, tmp_path / TRAIN_ARCHIVE, lambda tar, inner: add(tar, name, content))
    listing, inventory = taken(tmp_path)
    assert samples(listing) == samples(taken(archives)[0])
    assert inventory.members.left_out[reason].first.endswith(f"/{name}")
    check_adds_up(inventory)


@pytest.mark.parametrize("name", ["picture", "picture.txt", ".picture.JPEG"])
def test_a_member_that_is_a_picture_by_its_content_alone_is_refused(archives, tmp_path, name):
    shutil.copytree(archives, tmp_path, dirs_exist_ok=True)
    repack(archives, tmp_path / TRAIN_ARCHIVE, lambda tar, inner: add(tar, name, b"\xff\xd8\xff\xe0JFIF"))
    with pytest.raises(InputError, match=rf"{name} of n9000.*tar is a picture \(JPEG\), but not named like one"):
        taken(tmp_path)
    _, inventory = taken(tmp_path, name)
    assert inventory.members.left_out[f"ignored by {name}"].num_files == 1
    check_adds_up(inventory)


def test_a_member_that_is_there_twice_is_refused(archives, tmp_path):
    shutil.copytree(archives, tmp_path, dirs_exist_ok=True)
    repack(archives, tmp_path / TRAIN_ARCHIVE, lambda tar, inner: add(tar, f"x/{inner.getnames()[0]}", b"other"))
    with pytest.raises(InputError, match=r"n9000.*\.tar holds n9000.*JPEG twice; pack it again"):
        taken(tmp_path)


def test_the_devkits_folder_without_a_file_is_told(archives, tmp_path):
    inner_tars(archives, tmp_path)
    flat_val(archives, tmp_path / "val")
    (tmp_path / DEVKIT_FOLDER / "data").mkdir(parents=True)
    with pytest.raises(InputError, match=r"ILSVRC2012_devkit_t12.* lacks data/meta.mat"):
        taken(tmp_path)


# Kaggle's folder and Tiny ImageNet


def test_kaggles_folder_without_its_tables_is_no_folder_of_classes(archives, tmp_path):
    class_folders(archives, tmp_path / "ILSVRC/Data/CLS-LOC/train")
    flat_val(archives, tmp_path / "ILSVRC/Data/CLS-LOC/val")
    with pytest.raises(InputError, match=r"LOC_synset_mapping.txt is missing"):
        taken(tmp_path)
    with pytest.raises(InputError, match=r"Data/CLS-LOC would be one class, but holds folders"):
        taken(tmp_path / "ILSVRC")
    with pytest.raises(
        InputError, match=r"for the labels, LOC_synset_mapping.txt and LOC_val_solution.csv will do, too"
    ):
        taken(tmp_path / "ILSVRC/Data/CLS-LOC")


def test_kaggles_test_pictures_and_boxes_are_left_out_by_name(archives, tmp_path):
    class_folders(archives, tmp_path / "ILSVRC/Data/CLS-LOC/train")
    flat_val(archives, tmp_path / "ILSVRC/Data/CLS-LOC/val")
    kaggle_tables(archives, tmp_path)
    save_pictures(tmp_path, ["ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG"])
    (tmp_path / "ILSVRC/Annotations/CLS-LOC/train").mkdir(parents=True)
    (tmp_path / "ILSVRC/Annotations/CLS-LOC/train/x.xml").write_text("box")
    _, inventory = taken(tmp_path)
    assert {reason: found.num_files for reason, found in inventory.left_out.items()} == {
        "annotations that are not used": 1,
        "test pictures without labels": 1,
    }
    check_adds_up(inventory)


@pytest.fixture
def tiny(tmp_path):
    wnids = [f"n0000000{number}" for number in range(3)]
    save_pictures(tmp_path, [f"train/{wnid}/images/{wnid}_{number}.JPEG" for wnid in wnids for number in range(2)])
    for wnid in wnids:
        (tmp_path / f"train/{wnid}/{wnid}_boxes.txt").write_text("a box")
    save_pictures(tmp_path, [f"val/images/val_{number}.JPEG" for number in range(3)])
    save_pictures(tmp_path, [f"test/images/test_{number}.JPEG" for number in range(2)])
    (tmp_path / "val/val_annotations.txt").write_text(
        "".join(f"val_{number}.JPEG\t{wnids[2 - number]}\t0\t0\t9\t9\n" for number in range(3))
    )
    (tmp_path / "wnids.txt").write_text("\n".join(reversed(wnids)) + "\n")
    (tmp_path / "words.txt").write_text("n00000000\tcat, true cat\nn00000002\temu\nn99999999\tyak\n")
    return tmp_path


def test_tiny_imagenet_as_it_unpacks(tiny):
    listing, inventory = taken(tiny)
    assert inventory.layout == "tiny-imagenet"
    assert [entry.name for entry in listing.classes] == ["cat, true cat", "n00000001", "emu"]
    assert samples(listing)["train"][0] == ("n00000000/images/n00000000_0.JPEG", "n00000000")
    assert samples(listing)["val"] == [(f"val_{number}.JPEG", f"n0000000{2 - number}") for number in range(3)]
    assert inventory.tables == ("val/val_annotations.txt", "wnids.txt", "words.txt")
    assert {reason: found.num_files for reason, found in inventory.left_out.items()} == {
        "ending .txt": 3,
        "test pictures without labels": 2,
    }
    check_adds_up(inventory)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "val/val_annotations.txt").unlink(), "val_annotations.txt is missing"),
        (lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG\n"), "line 1: 'val_0.JPEG' does not"),
        (lambda root: (root / "val/images/val_1.JPEG").unlink(), "the first mismatch: val/images/val_1.JPEG"),
        (lambda root: save_pictures(root, ["val/images/val_9.JPEG"]), "the first mismatch: val/images/val_9.JPEG"),
        (lambda root: shutil.rmtree(root / "train/n00000001"), "differ; the first mismatch: n00000001"),
        (lambda root: (root / "wnids.txt").write_text("n00000000\nn00000001\n"), "the first mismatch: n00000002"),
        (lambda root: save_pictures(root, ["val/more.JPEG"]), "a file is a picture that the layout tiny-imagenet"),
    ],
)
def test_tiny_imagenet_whose_tables_do_not_fit_is_refused(tiny, damage, message):
    damage(tiny)
    with pytest.raises(InputError, match=message):
        taken(tiny)


def test_tiny_imagenet_sorted_by_hand_is_class_folders(tiny):
    for number in range(3):
        folder = tiny / f"val/n0000000{2 - number}"
        folder.mkdir()
        (tiny / f"val/images/val_{number}.JPEG").rename(folder / f"val_{number}.JPEG")
    (tiny / "val/images").rmdir()
    listing, inventory = taken(tiny, "test")
    assert inventory.layout == "folders"
    assert samples(listing)["val"][0] == ("n00000000/val_2.JPEG", "n00000000")
    check_adds_up(inventory)
