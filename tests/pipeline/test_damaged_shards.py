"""Shards that are gone, cut short, empty or too long, and documents that name files outside of their folder."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.launch.node_checks import read_dataset
from pipeline import bench, preview, verify
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.loader import LoaderConfig, TrainLoader
from pipeline.online.augmentation import AugmentationConfig
from pipeline.online.shard_reader import ShardReader
from pipeline.paths import lies_inside
from pipeline.sources.detect import open_source
from pipeline.system.files import sha256_file, write_table

SHARD = "train-000001.tar"
OUTSIDE = ["../x.tar", "/etc/passwd", "a/../../x.tar", "..\\x.tar", "", ".", "a//b.tar", "a\0b.tar"]


@pytest.fixture(params=["raw_dataset", "jpeg_dataset"])
def dataset(request, tmp_path) -> Dataset:
    shutil.copytree(request.getfixturevalue(request.param).path, tmp_path / "copy")
    return Dataset.open(tmp_path / "copy")


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _lengthen(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(bytes(5000))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": _empty,
    "cut short": _cut,
    "too long": _lengthen,
}


def _loader(dataset: Dataset, **options) -> TrainLoader:
    config = LoaderConfig(num_threads=1, **options)
    return TrainLoader(dataset, global_batch_size=41, augmentation=AugmentationConfig(crop_size=28), config=config)


def _message(dataset: Dataset) -> str:
    """What a reader says of the damaged shard: its path, and both lengths where it is there."""
    path, written = dataset.path / SHARD, dataset.document["files"][SHARD]["num_bytes"]
    if not path.exists():
        return rf"^shard {path} can't be read: No such file or directory; restore it, or shard again$"
    return rf"^shard {path} has {path.stat().st_size} bytes, {written} when it was written; restore it, or shard again$"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_every_reader_names_the_shard_and_both_lengths(dataset, tmp_path, damage):
    damage(dataset.path / SHARD)
    with pytest.raises(InputError, match=_message(dataset)):
        next(_loader(dataset))
    with pytest.raises(InputError, match=_message(dataset)):
        bench.main([str(dataset.path), "--batch-size", "41", "--seconds", "0.01", "--json", str(tmp_path / "b.json")])
    with pytest.raises(InputError, match=_message(dataset)):
        preview.main([str(dataset.path), str(tmp_path / "sheet.png"), "--samples", "41"])
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_verification_names_the_shard_and_both_lengths(dataset, damage, capsys):
    written = dataset.document["files"][SHARD]["num_bytes"]
    path = dataset.path / SHARD
    DAMAGES[damage](path)
    assert verify.main([str(dataset.path), "--workers", "1"]) == 1
    of_shard = [line for line in capsys.readouterr().out.splitlines() if line.startswith(SHARD)]
    if damage == "missing":
        assert of_shard == [f"{SHARD}: is missing"]
    else:
        assert of_shard[0] == f"{SHARD}: has {path.stat().st_size} bytes, dataset.json says {written}"
        assert len(of_shard) == (1 if damage == "too long" else 2)


@pytest.mark.parametrize("damage", DAMAGES)
def test_samples_that_are_gone_are_replaced_and_counted_on_request_and_the_whole_ones_used(dataset, damage):
    rows = dataset.manifest("train").to_pylist()
    DAMAGES[damage](dataset.path / SHARD)
    left = (dataset.path / SHARD).stat().st_size if damage != "missing" else 0
    gone = {i for i, row in enumerate(rows) if row["shard"] == SHARD and row["offset"] + row["num_bytes"] > left}
    in_shard = sum(row["shard"] == SHARD for row in rows)
    assert 0 < len(gone) < in_shard if damage == "cut short" else len(gone) == (in_shard if left == 0 else 0)
    loader = _loader(dataset, on_bad_sample="skip-and-count")
    batch = next(loader)
    loader.close()
    ids = batch.sample_ids.tolist()
    next_whole = min(set(range(max(gone, default=0), len(rows))) - gone)
    assert set(ids) == set(range(len(rows))) - gone
    assert ids.count(next_whole) == 1 + len(gone)
    assert loader.num_replaced_samples >= len(gone)  # more, where the thread has read ahead
    assert (loader.num_replaced_samples == 0) == (not gone)


def test_shards_that_are_gone_are_passed_over_in_one_step_each(raw_dataset, tmp_path, monkeypatch):
    shutil.copytree(raw_dataset.path, tmp_path / "copy")
    for name in ("train-000001.tar", "train-000002.tar"):
        (tmp_path / "copy" / name).unlink()
    in_batches, tried, read = set(), [], ShardReader.read_batch

    def recorded(reader, sample_ids):
        in_batches.update(sample_ids.tolist())
        if len(sample_ids) == 1:  # a search for a replacement
            tried.append(int(sample_ids[0]))
        return read(reader, sample_ids)

    monkeypatch.setattr(ShardReader, "read_batch", recorded)
    loader = _loader(Dataset.open(tmp_path / "copy"), on_bad_sample="skip-and-count")
    ids = next(loader).sample_ids.tolist()
    loader.close()
    shards = [row["shard"] for row in raw_dataset.manifest("train", ["shard"]).to_pylist()]
    first_of = {name: shards.index(name) for name in shards}
    assert ids.count(0) == 1 + sum(name != "train-000000.tar" for name in shards)
    assert in_batches == set(range(41))
    second = [tried[place + 1] for place, number in enumerate(tried[:-1]) if shards[number] == "train-000001.tar"]
    assert set(second) == {first_of["train-000002.tar"]}


def test_an_unreadable_shard_is_not_skipped(dataset):
    (dataset.path / SHARD).unlink()
    (dataset.path / SHARD).mkdir()
    with pytest.raises(InputError, match=f"{SHARD} can't be read: Is a directory"):
        next(_loader(dataset, on_bad_sample="skip-and-count"))


def test_a_shard_that_is_not_listed_is_refused(dataset):
    document = json.loads((dataset.path / "dataset.json").read_text())
    del document["files"][SHARD]
    (dataset.path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"dataset.json does not list {SHARD}"):
        next(_loader(Dataset.open(dataset.path)))


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_that_leaves_its_folder_is_refused_wherever_it_is_read(jpeg_dataset, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(jpeg_dataset.path, folder)
    path = folder / "manifest" / "train.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows[-2:]:
        row["shard"] = name
    write_table(path, type(table).from_pylist(rows, schema=table.schema))
    document, color_path = json.loads((folder / "dataset.json").read_text()), folder / "statistics" / "color.json"
    color = json.loads(color_path.read_text()) | {"manifest_sha256": sha256_file(path)}
    color_path.write_text(json.dumps(color))
    for changed in (path, color_path):
        described = {"num_bytes": changed.stat().st_size, "sha256": sha256_file(changed)}
        document["files"][str(changed.relative_to(folder))] = described
    (folder / "dataset.json").write_text(json.dumps(document))
    refused = f"{path} names the file {name!r}, which is not a path inside the dataset's folder; use a dataset that"
    dataset = Dataset.open(folder)
    for read in (
        lambda: dataset.manifest("train"),
        lambda: ShardReader(dataset, "train"),
        lambda: _loader(dataset),
        lambda: preview.main([str(folder), str(tmp_path / "sheet.png")]),
        lambda: bench.main([str(folder)]),
        lambda: open_source(folder).list_samples(),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert str(caught.value).startswith(refused)
    assert sum(problem.startswith(refused) for problem in verify.verify(dataset, num_workers=1)) == 1


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_dataset_that_lists_files_outside_of_its_folder_is_refused(jpeg_dataset, tmp_path, name):
    document = json.loads((jpeg_dataset.path / "dataset.json").read_text())
    document["files"][name] = {"num_bytes": 1, "sha256": "0" * 64}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        Dataset.open(tmp_path)
    assert f"names the file {name!r}, which is not a path inside the dataset's folder" in str(caught.value)
    sha256, error = read_dataset(tmp_path)
    assert sha256 is None
    assert error == f"can't be used there (dataset.json names the file {name!r}, which is not inside its folder)"


@pytest.mark.parametrize("files", [None, [], ["a.tar"], {"a.tar": 3}, {"a.tar": {"num_bytes": 3}}])
def test_a_dataset_that_does_not_list_its_files_is_refused(jpeg_dataset, tmp_path, files):
    document = json.loads((jpeg_dataset.path / "dataset.json").read_text()) | {"files": files}
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"dataset\.json does not list the dataset's files; shard again"):
        Dataset.open(tmp_path)
    sha256, error = read_dataset(tmp_path)
    assert (sha256 is None and "broken" in error) or "incomplete" in error


def test_names_inside_of_a_folder():
    assert lies_inside("train-000000.tar") and lies_inside("manifest/train.parquet") and lies_inside("..x/...")
    assert not any(map(lies_inside, [*OUTSIDE, None, 3]))
