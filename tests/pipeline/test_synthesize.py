import io
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.io import loadmat

import pipeline.synthesize
from pipeline.command import InputError
from pipeline.sources.devkit import DEVKIT_ARCHIVE, DEVKIT_GROUND_TRUTH, DEVKIT_META
from pipeline.sources.official import TRAIN_ARCHIVE, VAL_ARCHIVE
from pipeline.synthesize import Picture, encode_picture, main, synthesize
from pipeline.synthetic.synthetic_devkit import ilsvrc_id
from pipeline.synthetic.synthetic_pictures import NUM_CLASSES, class_name, draw_picture

ARCHIVES = (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE)
ODDITIES = ["cmyk", "png_as_jpeg", "grey", "exif_rotated", "truncated"]


def tar_contents(file):
    with tarfile.open(fileobj=file) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def read_archives(folder):
    """All files, by their names in `source` and the devkit."""
    files = {}
    for name in ARCHIVES:
        with open(folder / name, "rb") as file:
            members = tar_contents(file)
        for member, content in members.items():
            if member.endswith(".tar"):
                inner = tar_contents(io.BytesIO(content))
                files |= {f"{member.removesuffix('.tar')}/{name}": data for name, data in inner.items()}
            else:
                files[member] = content
    return files


def archive_bytes(folder):
    return [(folder / name).read_bytes() for name in ARCHIVES]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folder, files and names of the odd files of three classes."""
    folder = tmp_path_factory.mktemp("archives")
    odd_files = synthesize(folder, classes=3, train_per_class=4, val_per_class=2, max_side=64, odd_files=True)
    return folder, read_archives(folder), odd_files


def test_names_and_counts_are_those_of_the_official_layout(small):
    _, files, _ = small
    train = [name for name in files if name.startswith("n")]
    assert train[:5] == [f"n90000000/n90000000_{number}.JPEG" for number in range(1, 6)]
    assert len(train) == 3 * 4 + len(ODDITIES)
    val = [name for name in files if name.startswith("ILSVRC2012_val")]
    assert val == [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 3 * 2 + len(ODDITIES) + 1)]
    assert len(files) == len(train) + len(val) + len([DEVKIT_META, DEVKIT_GROUND_TRUTH])


def test_tars_are_ustar_without_time_or_owner(small):
    folder, _, _ = small
    for name in ARCHIVES:
        with tarfile.open(folder / name) as tar:
            assert all((m.mtime, m.uid, m.gid, m.uname, m.gname, m.type) == (0, 0, 0, "", "", b"0") for m in tar)
    assert (folder / TRAIN_ARCHIVE).read_bytes()[257:263] == b"ustar\0"
    assert (folder / DEVKIT_ARCHIVE).read_bytes()[4:8] == bytes(4), "time in the gzip header"


def test_the_devkit_is_built_like_the_real_one(small):
    _, files, _ = small
    assert b"Created on" not in files[DEVKIT_META], "the time"
    synsets = loadmat(io.BytesIO(files[DEVKIT_META]), squeeze_me=True)["synsets"]
    assert synsets.dtype.names == (
        *("ILSVRC2012_ID", "WNID", "words", "gloss"),
        *("num_children", "children", "wordnet_height", "num_train_images"),
    )
    assert synsets["ILSVRC2012_ID"].tolist() == list(range(1, 7))
    leaves = synsets[synsets["num_children"] == 0]
    assert sorted(leaves["WNID"]) == ["n90000000", "n90000010", "n90000020"]
    assert list(leaves["WNID"]) != sorted(leaves["WNID"]), "ids must not be ranks"
    assert dict(zip(leaves["WNID"], leaves["words"], strict=True))["n90000010"] == class_name(1)
    assert leaves["num_train_images"].sum() == 3 * 4 + len(ODDITIES)
    inner = synsets[synsets["num_children"] > 0]
    assert len(inner) == 3
    assert all(np.size(synset["children"]) == synset["num_children"] for synset in inner)
    ground_truth = [int(line) for line in files[DEVKIT_GROUND_TRUTH].split()]
    assert sorted(ground_truth[:6]) == [1, 1, 2, 2, 3, 3]
    assert ground_truth[:6] != sorted(ground_truth[:6])


def test_ilsvrc_ids_and_class_indices_can_not_be_confused():
    for num_classes in range(3, 40):
        ids = [ilsvrc_id(index, num_classes) for index in range(num_classes)]
        assert sorted(ids) == list(range(1, num_classes + 1))
        there = [number - 1 for number in ids]
        assert all(there[index] != index and there[there[index]] != index for index in range(num_classes))


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    options = {"classes": 2, "train_per_class": 130, "val_per_class": 10, "max_side": 24}
    for workers in (1, 2):
        synthesize(tmp_path / str(workers), **options, workers=workers)
    assert archive_bytes(tmp_path / "1") == archive_bytes(tmp_path / "2")
    synthesize(tmp_path / "seed", **options, seed=1, workers=1)
    for here, there in zip(archive_bytes(tmp_path / "1"), archive_bytes(tmp_path / "seed"), strict=True):
        assert here != there, "pictures, and the order of the validation pictures, come from the seed"


def test_a_picture_does_not_depend_on_the_others(small, tmp_path):
    _, files, _ = small
    synthesize(tmp_path, classes=4, train_per_class=2, val_per_class=1, max_side=64)
    for name in ("n90000010/n90000010_1.JPEG", "n90000020/n90000020_2.JPEG"):
        assert read_archives(tmp_path)[name] == files[name]
    assert len({content for name, content in files.items() if "JPEG" in name}) == len(files) - 2, "no two are alike"


def test_pictures_are_colour_jpegs_of_the_usual_sizes():
    images = [Image.open(io.BytesIO(encode_picture(Picture("train", 0, i), seed=0, max_side=500))) for i in range(30)]
    assert {(image.format, image.mode) for image in images} == {("JPEG", "RGB")}
    assert {(500, 375), (375, 500), (500, 333)} <= {image.size for image in images}
    assert all(np.asarray(image).std(axis=2).max() > 20 for image in images), "not grey"
    small = Image.open(io.BytesIO(encode_picture(Picture("train", 0, 0), seed=0, max_side=64)))
    assert max(small.size) == 64


def test_the_odd_files_are_what_their_list_says(small):
    _, files, odd_files = small
    assert [odd_files[name] for name in odd_files if name.startswith("ILSVRC")] == ODDITIES
    assert sorted(odd_files[name] for name in odd_files if name.startswith("n9")) == sorted(ODDITIES)
    of_kind = {oddity: Image.open(io.BytesIO(files[name])) for name, oddity in odd_files.items()}
    assert (of_kind["cmyk"].format, of_kind["cmyk"].mode) == ("JPEG", "CMYK")
    assert (of_kind["png_as_jpeg"].format, of_kind["png_as_jpeg"].mode) == ("PNG", "RGB")
    assert (of_kind["grey"].format, of_kind["grey"].mode) == ("JPEG", "L")
    assert of_kind["exif_rotated"].getexif()[0x0112] == 6
    with pytest.raises(OSError, match="truncated"):
        of_kind["truncated"].load()


def test_a_rotated_picture_is_upright_when_its_exif_block_is_obeyed():
    upright = Image.open(io.BytesIO(encode_picture(Picture("train", 1, 1), seed=0, max_side=64)))
    rotated = Image.open(io.BytesIO(encode_picture(Picture("train", 1, 1, "exif_rotated"), seed=0, max_side=64)))
    assert rotated.size == upright.size[::-1]
    difference = np.asarray(ImageOps.exif_transpose(rotated), float) - np.asarray(upright, float)
    assert np.abs(difference).mean() < 6, "JPEG's own error, in grey levels"


def test_classes_are_many_and_each_has_its_own_name_and_pictures():
    assert NUM_CLASSES >= 1000
    assert len({class_name(index) for index in range(NUM_CLASSES)}) == NUM_CLASSES
    assert class_name(3) == "six outlined crosses in a circle"
    one_stream = {
        draw_picture(k, np.random.Generator(np.random.Philox(key=1)), 48).tobytes() for k in range(NUM_CLASSES)
    }
    assert len(one_stream) == NUM_CLASSES


def test_mean_colour_alone_tells_next_to_nothing():
    def mean_colors(split, count):
        pictures = [Picture(split, index, number) for index in range(10) for number in range(count)]
        images = [Image.open(io.BytesIO(encode_picture(picture, seed=0, max_side=64))) for picture in pictures]
        labels = np.array([picture.class_index for picture in pictures])
        return np.array([np.asarray(image).mean(axis=(0, 1)) / 255 for image in images]), labels

    train, train_labels = mean_colors("train", 60)
    val, val_labels = mean_colors("val", 30)
    centres = np.array([train[train_labels == index].mean(axis=0) for index in range(10)])
    nearest = np.linalg.norm(val[:, None] - centres, axis=2).argmin(axis=1)
    weights = np.linalg.lstsq(np.c_[train, np.ones(600)], np.eye(10)[train_labels])[0]
    linear = (np.c_[val, np.ones(300)] @ weights).argmax(axis=1)
    for predicted in (nearest, linear):
        assert (predicted == val_labels).mean() < 0.17, "chance is 0.1, four deviations above it 0.17"


def test_the_command_lists_the_odd_files_and_refuses_a_folder_in_use(tmp_path, capsys):
    arguments = [str(tmp_path), "--classes", "2", "--train-per-class", "1", "--val-per-class", "1", "--max-side", "32"]
    assert main([*arguments, "--odd-files"]) == 0
    assert "truncated: n90000000/n90000000_4.JPEG" in capsys.readouterr().out
    with pytest.raises(InputError, match="exists already; remove it, or choose another folder"):
        main(arguments)


def test_a_dataset_gets_no_archives(tmp_path):
    (tmp_path / "dataset.json").touch()
    with pytest.raises(InputError, match="is a dataset, which holds only its own files"):
        main([str(tmp_path), "--classes", "1", "--train-per-class", "1", "--val-per-class", "1", "--max-side", "32"])
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("classes", 0), ("classes", NUM_CLASSES + 1), ("train_per_class", 0), ("max_side", 0), ("seed", -1)],
)
def test_numbers_out_of_range_are_named(tmp_path, name, value):
    small = {"classes": 1, "train_per_class": 1, "val_per_class": 1}
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} is {value}; it must be "):
        synthesize(tmp_path, **small | {name: value})


def test_an_interrupted_run_leaves_no_archive(tmp_path, monkeypatch):
    def interrupt(*arguments):
        if arguments[0] == 1:
            raise KeyboardInterrupt
        return draw_picture(*arguments)

    monkeypatch.setattr(pipeline.synthesize, "draw_picture", interrupt)
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path, classes=2, train_per_class=2, val_per_class=1, max_side=32)
    assert list(tmp_path.iterdir()) == []
