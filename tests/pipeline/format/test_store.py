"""A second store fits: one that fetches whole files from another place, when they are asked for."""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import ALONE, CONFIG, losses

from cluster.run.run_folder import RunFolder
from cluster.worker.training import train
from pipeline import dataset as dataset_module
from pipeline import verify
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.format.manifest import CLASSES_PARQUET, COLOR_JSON, DATASET_JSON, MEAN_IMAGE_NPY, manifest_path
from pipeline.format.store import Store, StoredFile
from pipeline.loader import Batch, EvalLoader, LoaderConfig, TrainLoader
from pipeline.online.augmentation import AugmentationConfig
from pipeline.online.stream_order import StreamConfig
from pipeline.system.files import renamed_at_end, sha256_file

MEAN_IMAGE = AugmentationConfig(crop_size=28, subtract="mean_image")
SHARD = "train-000001.tar"


@dataclass(frozen=True)
class FetchingStore(Store):
    """Copies a file into a cache when it is first asked for, under its hash; `path` stands for a place elsewhere."""

    cache: Path

    def read_description(self) -> bytes:
        return (self.path / DATASET_JSON).read_bytes()

    def local_path(self, file: StoredFile) -> Path:
        local = self.cache / file.sha256
        if not local.exists():
            with renamed_at_end(local) as aside:
                shutil.copyfile(self.path / file.name, aside)
                if (aside.stat().st_size, sha256_file(aside)) != (file.num_bytes, file.sha256):
                    raise InputError(f"{self.path / file.name} has changed since it was written; restore it")
        return local

    def names(self) -> set[str]:
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()}


@pytest.fixture(params=["raw_dataset", "jpeg_dataset"])
def whole(request) -> Dataset:
    return request.getfixturevalue(request.param)


@pytest.fixture
def fetched(whole, tmp_path) -> Dataset:
    shutil.copytree(whole.path, tmp_path / "elsewhere")
    return Dataset.open(FetchingStore(tmp_path / "elsewhere", tmp_path / "cache"))


def _cached(dataset: Dataset) -> set[str]:
    """The names of the files that were fetched."""
    hashes = {path.name for path in dataset.store.cache.glob("*")}
    return {name for name, file in dataset.files.items() if file.sha256 in hashes}


def _training(dataset: Dataset, count: int, **options) -> list[Batch]:
    config = LoaderConfig(num_threads=1, **options)
    loader = TrainLoader(dataset, global_batch_size=10, seed=3, augmentation=MEAN_IMAGE, config=config)
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return batches


def _evaluation(dataset: Dataset) -> list[Batch]:
    config = LoaderConfig(num_threads=1)
    return list(EvalLoader(dataset, "val", batch_size=4, augmentation=MEAN_IMAGE, config=config))


def _equal(left: list[Batch], right: list[Batch]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(getattr(one, name), getattr(other, name)) for one, other in pairs for name in vars(one))


def test_both_loaders_give_the_same_batches_from_a_store_that_fetches(whole, fetched):
    assert _equal(_training(fetched, 9), _training(whole, 9))  # 90 positions: three epochs of 41 samples
    assert _equal(_evaluation(fetched), _evaluation(whole))
    assert (fetched.sha256, fetched.wnids) == (whole.sha256, whole.wnids)


def test_a_file_is_fetched_once_and_when_it_is_asked_for(whole, fetched):
    assert _cached(fetched) == set()
    assert fetched.num_samples("train") == 41
    assert _cached(fetched) == set()
    evaluated = _evaluation(fetched)
    of_val = {name for name in whole.files if name.startswith("val-") and name.endswith(".tar")}
    color = {COLOR_JSON, MEAN_IMAGE_NPY}
    sizes = {manifest_path("train")} if whole.document["encoding"]["size"] is None else set()
    assert _cached(fetched) == of_val | color | sizes | {manifest_path("val")}
    assert fetched.class_names == whole.class_names
    trained = _training(fetched, 5)
    documents = {CLASSES_PARQUET, manifest_path("train"), manifest_path("val")}
    assert _cached(fetched) == color | documents | {name for name in whole.files if name.endswith(".tar")}
    for path in fetched.path.rglob("*"):
        if path.name != DATASET_JSON and path.is_file():
            path.unlink()
    again = Dataset.open(fetched.store)
    assert _equal(_training(again, 5), trained) and _equal(_evaluation(again), evaluated)


def test_streams_fetch_the_shards_that_they_read_and_no_others(fetched):
    streams = StreamConfig(num_streams=1, window_size=1)
    config = LoaderConfig(num_threads=1, prefetch_batches=1)
    loader = TrainLoader(fetched, global_batch_size=1, seed=3, streams=streams, augmentation=MEAN_IMAGE, config=config)
    first = next(loader)
    loader.close()
    shards = fetched.manifest("train", ["shard"])["shard"].to_pylist()
    assert {name for name in _cached(fetched) if name.endswith(".tar")} == {shards[first.sample_ids.item()]}


@pytest.mark.parametrize("workers", [1, 2])
def test_verification_reads_through_the_store(fetched, workers):
    assert list(verify.verify(fetched, workers)) == []
    assert _cached(fetched) == set(fetched.files)


def test_verification_tells_what_can_not_be_fetched(fetched):
    content = bytearray((fetched.path / SHARD).read_bytes())
    content[700] ^= 1
    (fetched.path / SHARD).write_bytes(content)
    (fetched.path / "train-000000.idx").unlink()
    (fetched.path / CLASSES_PARQUET).unlink()
    (fetched.path / "more").touch()
    assert set(verify.verify(fetched, 1)) == {
        f"{fetched.path / CLASSES_PARQUET} can't be read (No such file or directory); restore it, or shard again",
        f"{CLASSES_PARQUET}: is missing",
        "more: is not listed in dataset.json",
        "train-000000.idx: is missing",
        f"{SHARD}: {fetched.path / SHARD} has changed since it was written; restore it",
    }


def test_a_shard_that_is_gone_elsewhere_is_named_or_replaced(fetched):
    (fetched.path / SHARD).unlink()
    with pytest.raises(InputError, match=f"^shard {fetched.path / SHARD} can't be read: No such file or directory"):
        _training(fetched, 5)
    ids = np.concatenate([batch.sample_ids for batch in _training(fetched, 5, on_bad_sample="skip-and-count")])
    shards = np.array(fetched.manifest("train", ["shard"])["shard"].to_pylist())
    assert SHARD not in shards[ids] and len(ids) == 50


def test_a_sample_that_changes_in_the_cache_is_named_as_one_of_the_dataset(fetched):
    _training(fetched, 5)
    row = fetched.manifest("train").to_pylist()[0]
    local = fetched.store.local_path(fetched.listed(row["shard"]))
    content = bytearray(local.read_bytes())
    content[row["offset"] + 200] ^= 1
    local.write_bytes(content)
    named = f"^sample {row['key']} of {fetched.path / row['shard']} has changed"
    with pytest.raises(InputError, match=named):
        _training(Dataset.open(fetched.store), 5)


def test_what_is_no_finished_dataset_is_refused_wherever_it_is(tmp_path):
    with pytest.raises(InputError, match=f"^{tmp_path} has no dataset.json: it is not a finished dataset; run"):
        Dataset.open(FetchingStore(tmp_path, tmp_path / "cache"))


@pytest.mark.parametrize("subtract", ["mean", "mean_image"])
def test_a_run_trains_from_another_store_where_one_function_chooses_it(raw_dataset, tmp_path, monkeypatch, subtract):
    config = dataclasses.replace(CONFIG, augmentation=AugmentationConfig(crop_size=28, subtract=subtract), num_epochs=1)
    curves = []
    for name in ("folder", "fetched"):
        if name == "fetched":
            monkeypatch.setattr(dataset_module, "store_at", lambda path: FetchingStore(path, tmp_path / "cache"))
        run = RunFolder.create(tmp_path / name, config, Dataset.open(raw_dataset.path))
        train(raw_dataset.path, run.path, ALONE)
        curves.append(losses(run))
    assert len(curves[0]) > 2 and curves[0] == curves[1]
    assert {file.sha256 for name, file in raw_dataset.files.items() if name.endswith(".tar")} <= {
        path.name for path in (tmp_path / "cache").iterdir()
    }
