"""Opening what is not a dataset gets one line that names the cause and the next step."""

import hashlib
import json
import shutil

import pytest

from pipeline.command import InputError
from pipeline.dataset import Dataset


def test_the_doors_stay(raw_dataset):
    assert raw_dataset.num_samples("train") == 41
    assert raw_dataset.class_names == ["class 0", "class 1", "class 2", "class 3"]
    assert raw_dataset.manifest("train").num_rows == 41
    assert raw_dataset.color_basis.eigenvalues_3.shape == (3,)
    assert raw_dataset.stored_size == 32


def test_a_missing_folder_and_an_unfinished_one_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(
        InputError, match=r"has no dataset.json: it is not a finished dataset; run `python -m pipeline.shard"
    ):
        Dataset.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "can't be read"), ("[]", "can't be read"), ('{"format": "x", "format_version": 9}', "is of format x 9")],
)
def test_other_documents_are_refused(tmp_path, content, message):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Dataset.open(tmp_path)


def test_an_unknown_split_is_answered_with_the_known_ones(raw_dataset):
    with pytest.raises(InputError, match="has no split 'test'; it has train, val"):
        raw_dataset.num_samples("test")


def test_statistics_of_another_manifest_are_refused(raw_dataset, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(raw_dataset.path, folder)
    path = folder / "statistics" / "color.json"
    document = json.loads(path.read_text())
    document["manifest_sha256"] = "0" * 64
    path.write_text(json.dumps(document))
    _rehash(folder, "statistics/color.json")
    with pytest.raises(InputError, match="computed on another manifest"):
        _ = Dataset.open(folder).color_basis


def _rehash(folder, name):
    """Make `dataset.json` agree with a changed file."""
    document = json.loads((folder / "dataset.json").read_text())
    document["files"][name]["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["manifest/train.parquet", "statistics/color.json", "classes.parquet"])
def test_a_changed_or_missing_document_is_refused(raw_dataset, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(raw_dataset.path, folder)
    dataset = Dataset.open(folder)
    read = {"m": lambda: dataset.manifest("train"), "s": lambda: dataset.color_basis, "c": lambda: dataset.wnids}
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} was changed since it was written"):
        read[name[0]]()
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} can't be read"):
        read[name[0]]()
