"""Verification finds every kind of damage, names it, and finds nothing in a whole dataset."""

import hashlib
import json
import shutil

import pyarrow.parquet as pq
import pytest
import xxhash

from pipeline import verify
from pipeline.dataset import Dataset
from pipeline.system.files import write_table


@pytest.fixture
def copy(jpeg_dataset, tmp_path):
    shutil.copytree(jpeg_dataset.path, tmp_path / "copy")
    return tmp_path / "copy"


def _problems(folder) -> list[str]:
    return list(verify.verify(Dataset.open(folder), num_workers=1))


def _rehash(folder, name) -> None:
    """Make `dataset.json` agree with a changed file, so that only a closer look finds it."""
    document, content = json.loads((folder / "dataset.json").read_text()), (folder / name).read_bytes()
    document["files"][name] = {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "dataset.json").write_text(json.dumps(document))


@pytest.mark.parametrize("fixture", ["raw_dataset", "jpeg_dataset", "original_dataset"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_whole_dataset_has_no_problem(fixture, workers, request, capsys):
    dataset = request.getfixturevalue(fixture)
    assert verify.main([str(dataset.path), "--workers", workers]) == 0
    assert capsys.readouterr().out == f"51 samples in {len(dataset.document['files'])} files: 0 problem(s)\n"


def test_problems_are_a_document(copy, capsys):
    (copy / "stray.txt").touch()
    assert verify.main([str(copy), "--workers", "1", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["problems"] == ["stray.txt: is not listed in dataset.json"]
    assert (document["num_samples"], document["num_files"]) == (51, len(Dataset.open(copy).files))


def test_a_single_flipped_bit_is_found(copy, capsys):
    row = pq.read_table(copy / "manifest" / "train.parquet").to_pylist()[7]
    content = bytearray((copy / row["shard"]).read_bytes())
    content[row["offset"] + row["num_bytes"] // 2] ^= 4
    (copy / row["shard"]).write_bytes(content)
    problems = _problems(copy)
    assert f"{row['shard']}: has another SHA-256 than dataset.json says" in problems
    assert f"{row['shard']}: sample {row['key']}: its bytes have another hash than the manifest's" in problems
    assert verify.main([str(copy), "--workers", "1"]) == 1


def test_swapped_shards_are_found(copy):
    for ending in ("tar", "idx"):
        first, second, aside = copy / f"train-000000.{ending}", copy / f"train-000001.{ending}", copy.parent / "aside"
        first.rename(aside)
        second.rename(first)
        aside.rename(second)
    problems = _problems(copy)
    assert "train-000000.tar: its members are not those of the manifest" in problems
    assert "train-000001.tar: its members are not those of the manifest" in problems


def test_a_missing_and_an_edited_index_are_found(copy):
    (copy / "train-000000.idx").unlink()
    index = (copy / "train-000001.idx").read_text()
    (copy / "train-000001.idx").write_text(index.replace("v1.2", "v1.1"))
    _rehash(copy, "train-000001.idx")
    problems = _problems(copy)
    assert "train-000000.idx: is missing" in problems
    assert "train-000001.idx: is not the index of its shard" in problems


def test_an_unlisted_file_is_found(copy):
    (copy / "train-000099.tar").write_bytes(b"")
    assert _problems(copy) == ["train-000099.tar: is not listed in dataset.json"]


EDITS = {
    "class_index": ("its label is not the manifest's", lambda value: (value + 1) % 4),
    "offset": ("the manifest has offset and length", lambda value: value + 512),
    "num_bytes": ("the manifest has offset and length", lambda value: value - 1),
    "hash": ("its bytes have another hash", lambda value: value ^ 1),
    "width": ("the manifest says 33x32", lambda value: value + 1),
    "key": ("its members are not those of the manifest", lambda value: "99999999"),
    "wnid": ("1 rows have a class that is not that of their wnid", lambda value: "n9"),
}


@pytest.mark.parametrize("column", EDITS)
def test_an_edited_manifest_is_found(copy, column):
    message, edit = EDITS[column]
    path = copy / "manifest" / "train.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[3][column] = edit(rows[3][column])
    write_table(path, type(table).from_pylist(rows, schema=table.schema))
    assert any("was changed since it was written" in problem for problem in _problems(copy))
    _rehash(copy, "manifest/train.parquet")
    assert any(message in problem for problem in _problems(copy))


def test_a_removed_row_is_found(copy):
    path = copy / "manifest" / "val.parquet"
    write_table(path, pq.read_table(path).slice(1))
    _rehash(copy, "manifest/val.parquet")
    assert "manifest/val.parquet: has 9 rows, dataset.json counts 10" in _problems(copy)


def test_a_picture_that_no_decoder_reads_is_found(copy):
    """Its hashes are made to fit, so that only decoding finds it."""
    path = copy / "manifest" / "train.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    row = rows[0]
    shard = copy / row["shard"]
    content = bytearray(shard.read_bytes())
    rubbish = bytes(row["num_bytes"])
    content[row["offset"] : row["offset"] + row["num_bytes"]] = rubbish
    shard.write_bytes(content)
    row["hash"] = xxhash.xxh3_64_intdigest(rubbish)
    write_table(path, type(table).from_pylist(rows, schema=table.schema))
    for name in (row["shard"], "manifest/train.parquet"):
        _rehash(copy, name)
    problems = [problem for problem in _problems(copy) if "color.json" not in problem]
    assert len(problems) == 1 and f"sample {row['key']}: can't be decoded (undecodable" in problems[0]
