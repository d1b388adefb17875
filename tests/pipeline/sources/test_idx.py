"""IDX files: the forms in which they lie, what does not fit, and no more memory than their headers ask for."""

import gzip
import tracemalloc

import numpy as np
import pytest

from pipeline.command import InputError
from pipeline.sources.base import ListingOptions, Members
from pipeline.sources.detect import open_source
from pipeline.sources.idx import read_idx
from tests.pipeline.sources.test_sources import assert_sound, read_row, save_idx, save_mnist


@pytest.mark.parametrize("ending", [".gz", ""])
def test_the_form_with_a_dot_is_the_same_file(tmp_path, ending):
    images = save_mnist(tmp_path, "train", ending)
    for name in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        (tmp_path / f"train-{name}{ending}").rename(tmp_path / f"train-{name.replace('-', '.', 1)}{ending}")
    source = open_source(tmp_path)
    listing = source.list_samples()
    assert_sound(source, listing)
    assert np.array_equal(read_row(source, listing, "train", 7)[..., 0], images[7])
    assert listing.tables == (f"train-labels.idx1-ubyte{ending}",)
    assert listing.members == Members(12)


def test_equal_forms_beside_each_other_are_read_once(tmp_path):
    save_mnist(tmp_path, "train", ".gz")
    save_mnist(tmp_path, "train", "")
    listing = open_source(tmp_path).list_samples()
    assert listing.splits["train"].num_rows == 12
    assert listing.left_out == {
        "train-images-idx3-ubyte.gz": "the same as train-images-idx3-ubyte",
        "train-labels-idx1-ubyte.gz": "the same as train-labels-idx1-ubyte",
    }


@pytest.mark.parametrize("name", ["images-idx3-ubyte", "labels-idx1-ubyte"])
def test_forms_that_differ_are_refused_by_name(tmp_path, name):
    save_mnist(tmp_path, "train", "")
    (other,) = [tmp_path / f"train-{name.replace('-', '.', 1)}.gz"]
    save_idx(other, np.zeros((12, 2, 3) if name.startswith("images") else 12))
    with pytest.raises(InputError, match=rf"train-{name} and {other.name} beside it differ; .*--ignore /{other.name}"):
        open_source(tmp_path).list_samples()
    listing = open_source(tmp_path, None, ListingOptions(ignore=("*.gz",))).list_samples()
    assert listing.splits["train"]["class_index"].to_pylist() == [*range(11), 0]


def test_labels_without_pictures_are_named(tmp_path):
    save_mnist(tmp_path, "train", "")
    save_mnist(tmp_path, "t10k", "")
    (tmp_path / "train-images-idx3-ubyte").unlink()
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte has no pictures: train-images-idx3-ubyte\[.gz\] is"):
        open_source(tmp_path).list_samples()


def idx(shape, data, kind=8):
    return bytes([0, 0, kind, len(shape)]) + np.array(shape, ">u4").tobytes() + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx((2**32 - 1,) * 3, b"1234"), r"should hold \(4294967295, 4294967295, 4294967295\) bytes, but has"),
        (idx((2, 1, 2), b"12345"), r"should hold \(2, 1, 2\) bytes, but has more"),
        (idx((2, 1, 2), b"123"), r"should hold \(2, 1, 2\) bytes, but has 3"),
        (idx((0, 28, 28), b""), "holds no picture|has 0 pictures"),
        (idx((2, 1, 2), b"1234" * 8, kind=0x0D), "is not an IDX file of uint8 with 3 dimensions"),
        (idx((2, 2), b"1234"), "is not an IDX file of uint8 with 3 dimensions"),
        (b"", "is not an IDX file"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_headers_that_do_not_fit_their_files_are_refused(tmp_path, content, message, ending):
    save_mnist(tmp_path, "train", "", 2, 2)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    path = tmp_path / f"train-images-idx3-ubyte{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(InputError, match=rf"{path.name}.* ({message})"):
        open_source(tmp_path).list_samples()


def test_a_bomb_takes_no_more_memory_than_its_header_asks_for(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx((2, 1, 2), bytes(2**26))))
    tracemalloc.start()
    with pytest.raises(InputError, match="but has more; get the file again"):
        read_idx(path, 3)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-4], "is damaged"),
        (lambda content: content[:-8] + bytes(8), "is damaged"),  # the check sum
        (lambda content: content + b"<html>", "is damaged|has more"),
        (lambda content: content[:12], "is damaged"),
    ],
)
def test_compressed_files_are_read_to_their_check_sums(tmp_path, damage, message):
    save_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"{path.name} .*({message})"):
        open_source(tmp_path).list_samples()


def test_class_names_of_windows_and_shifted_ones(tmp_path):
    save_mnist(tmp_path)
    names = [f"thing {number}" for number in range(11)]
    (tmp_path / "classes.txt").write_bytes("\r\n".join(names).encode("utf-8-sig"))
    listing = open_source(tmp_path).list_samples()
    assert [entry.name for entry in listing.classes] == names
    assert "classes.txt" in listing.tables
    (tmp_path / "classes.txt").write_text("\n".join(["", *names]))
    with pytest.raises(InputError, match=r"classes.txt: line 1 names no class"):
        open_source(tmp_path).list_samples()
