"""CIFAR's binary files: planes become pixels, the fine label is the class."""

import numpy as np
import pytest

from pipeline.command import InputError
from pipeline.offline.shard_plan import ShardingConfig, plan_splits
from pipeline.pictures.encode import EncodingConfig
from pipeline.sources.base import ListingOptions, Members
from pipeline.sources.detect import open_source

PIXELS = np.random.Generator(np.random.Philox(key=7)).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
FILES = {
    "cifar-10": (
        "batches.meta.txt",
        {**{f"data_batch_{number}.bin": [number - 1] for number in range(1, 6)}, "test_batch.bin": [5, 6]},
    ),
    "cifar-100": ("fine_label_names.txt", {"train.bin": [0, 1, 2, 3, 4], "test.bin": [5, 6]}),
}
LABELS = [2, 0, 1, 2, 1, 0, 2]


@pytest.fixture(params=FILES)
def source(request, tmp_path):
    """Seven pictures with the labels 2 0 1 2 1 0 2; in CIFAR-100's form behind a coarse label of 9."""
    names, files = FILES[request.param]
    (tmp_path / names).write_text("airplane\nautomobile\nbird\n\n")
    coarse = b"\x09" if request.param == "cifar-100" else b""
    for file, numbers in files.items():
        records = [coarse + bytes([LABELS[i]]) + PIXELS[i].transpose(2, 0, 1).tobytes() for i in numbers]
        (tmp_path / file).write_bytes(b"".join(records))
    return open_source(tmp_path)


def test_pixels_and_labels_are_read_back(source):
    assert source.layout == "cifar" and source.native_pixels
    listing = source.list_samples()
    assert [(entry.wnid, entry.name) for entry in listing.classes] == [
        ("0", "airplane"),
        ("1", "automobile"),
        ("2", "bird"),
    ]
    rows = listing.splits["train"].to_pylist() + listing.splits["test"].to_pylist()
    assert [row["class_index"] for row in rows] == LABELS
    assert len({row["source"] for row in rows}) == 7
    for row, expected in zip(rows, PIXELS, strict=True):
        assert np.array_equal(source.read(row["file"], row["offset"], row["num_bytes"]), expected)


def test_the_last_picture_of_the_last_training_file_becomes_val(source):
    config = ShardingConfig(encoding=EncodingConfig(encoding="raw", size=None), val_last=1)
    (row,) = plan_splits(source.list_samples(), config)["val"].to_pylist()
    assert np.array_equal(source.read(row["file"], row["offset"], row["num_bytes"]), PIXELS[4])


def test_a_cut_file_is_refused(source):
    path = sorted(source.root.glob("*.bin"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"not a whole number of 307[34]-byte records"):
        source.list_samples()


def test_a_label_without_a_name_is_refused(source):
    names = next(source.root.glob("*.txt"))
    names.write_text("airplane\nautomobile\n")
    with pytest.raises(InputError, match=r"has the label 2, but .* names 2 classes"):
        source.list_samples()


def test_records_and_names_are_accounted_for(source):
    listing = source.list_samples()
    assert listing.members == Members(7)
    listed = {file for table in listing.splits.values() for file in table["file"].to_pylist()}
    assert listed | set(listing.tables) == {path.name for path in source.root.iterdir()}


def test_each_missing_file_is_named_unless_a_part_will_do(source):
    for path in sorted(source.root.iterdir()):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(InputError, match=f"lacks {path.name}"):
            open_source(source.root).list_samples()
        if path.suffix == ".bin":
            listing = open_source(source.root, None, ListingOptions(partial=True)).list_samples()
            assert 0 < listing.members.num_found < 7
        path.write_bytes(content)


@pytest.fixture
def ten(tmp_path):
    (tmp_path / "batches.meta.txt").write_text("airplane\nautomobile\nbird\n")
    for name, numbers in FILES["cifar-10"][1].items():
        records = [bytes([LABELS[i]]) + PIXELS[i].transpose(2, 0, 1).tobytes() for i in numbers]
        (tmp_path / name).write_bytes(b"".join(records))
    return tmp_path


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("data_batch_7.bin", "lacks data_batch_6.bin; get the whole set"),
        ("data_batch_1_copy.bin", "data_batch_1_copy.bin is not one of cifar-10's files, .*--ignore"),
        ("data_batch_01.bin", "data_batch_01.bin is not one of cifar-10's files, .*--ignore"),
    ],
)
def test_a_file_too_many_is_named_and_can_be_ignored(ten, extra, message):
    (ten / extra).write_bytes((ten / "data_batch_1.bin").read_bytes())
    with pytest.raises(InputError, match=message):
        open_source(ten).list_samples()
    assert open_source(ten, None, ListingOptions(ignore=(extra,))).list_samples().members == Members(7)


@pytest.mark.parametrize(
    ("files", "title"),
    [
        (["data_batch_1", "data_batch_2", "test_batch", "batches.meta"], "cifar-10"),
        (["data_batch_1.mat", "batches.meta.mat"], "cifar-10"),
        (["train", "test", "meta"], "cifar-100"),
        (["train.mat", "test.mat", "meta.mat"], "cifar-100"),
    ],
)
def test_other_versions_are_refused_by_what_to_get(tmp_path, files, title):
    for name in files:
        (tmp_path / name).write_bytes(b"\x80\x02}q")
    with pytest.raises(
        InputError, match=f"holds {title} in another version; get .*, {title}-binary.tar.gz, and unpack"
    ):
        open_source(tmp_path).list_samples()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("airplane\n\nautomobile\nbird\n", "line 2 names no class; write one name per line, from class 0 on"),
        ("airplane\nautomobile\nbird\n".encode("utf-16"), "is not UTF-8 but UTF-16"),
        ("\n\n", "names no class; get the file again"),
    ],
)
def test_names_that_may_be_shifted_or_are_no_text_are_refused(ten, names, message):
    (ten / "batches.meta.txt").write_bytes(names if isinstance(names, bytes) else names.encode())
    with pytest.raises(InputError, match=f"batches.meta.txt:? {message}"):
        open_source(ten).list_samples()


def test_names_of_windows_are_read(ten):
    (ten / "batches.meta.txt").write_bytes("airplane\r\nautomobile\r\nbird\r\n\r\n".encode("utf-8-sig"))
    assert [entry.name for entry in open_source(ten).list_samples().classes] == ["airplane", "automobile", "bird"]
