"""CIFAR's binary files: planes become pixels, the fine label is the class."""

import numpy as np
import pytest

from pipeline.command import InputError
from pipeline.encode import EncodingConfig
from pipeline.shard_plan import ShardingConfig, plan_splits
from pipeline.sources.detect import open_source

PIXELS = np.random.Generator(np.random.Philox(key=7)).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
FILES = {
    "cifar-10": (
        "batches.meta.txt",
        {"data_batch_1.bin": [0, 1], "data_batch_2.bin": [2, 3], "test_batch.bin": [4, 5]},
    ),
    "cifar-100": ("fine_label_names.txt", {"train.bin": [0, 1, 2, 3], "test.bin": [4, 5]}),
}
LABELS = [2, 0, 1, 2, 1, 0]


@pytest.fixture(params=FILES)
def source(request, tmp_path):
    """Six pictures with the labels 2 0 1 2 1 0; in CIFAR-100's form behind a coarse label of 9."""
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
    assert len({row["source"] for row in rows}) == 6
    for row, expected in zip(rows, PIXELS, strict=True):
        assert np.array_equal(source.read(row["file"], row["offset"], row["num_bytes"]), expected)


def test_the_last_picture_of_the_last_training_file_becomes_val(source):
    config = ShardingConfig(encoding=EncodingConfig(encoding="raw", size=None), val_last=1)
    (row,) = plan_splits(source.list_samples(), config)["val"].to_pylist()
    assert np.array_equal(source.read(row["file"], row["offset"], row["num_bytes"]), PIXELS[3])


def test_a_cut_file_is_refused(source):
    path = sorted(source.root.glob("*.bin"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="no whole records of"):
        source.list_samples()


def test_a_label_without_a_name_is_refused(source):
    names = next(source.root.glob("*.txt"))
    names.write_text("airplane\nautomobile\n")
    with pytest.raises(InputError, match=r"has the label 2, but .* names 2 classes"):
        source.list_samples()
