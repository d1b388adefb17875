"""The offline stage: the same bytes for any number of workers, and after any interruption."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from coded_source import NUM_CLASSES, CodedSource, coded_pixels

from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.offline import sharding
from pipeline.offline.shard_plan import ShardingConfig, plan_shards, plan_splits
from pipeline.offline.shard_task import write_shard
from pipeline.offline.sharding import shard_dataset
from pipeline.online.shard_reader import ShardReader
from pipeline.paths import CHECKOUT
from pipeline.pictures.encode import EncodingConfig

RAW = ShardingConfig(encoding=EncodingConfig(encoding="raw", size=None), samples_per_shard=8)


def digest(folder: Path) -> dict[str, str]:
    """Relative path -> hash of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    shard_dataset(CodedSource(out), out, RAW, num_workers=1)
    return out


@pytest.mark.parametrize("num_workers", [2, 5])
def test_the_bytes_do_not_depend_on_the_number_of_workers(undisturbed, tmp_path, num_workers):
    shard_dataset(CodedSource(tmp_path), tmp_path, RAW, num_workers)
    assert digest(tmp_path) == digest(undisturbed)


def test_the_manifest_leads_to_every_sample(undisturbed):
    dataset = Dataset.open(undisturbed)
    for split, first in (("train", 0), ("val", 1_000_000)):
        reader, manifest = ShardReader(dataset, split), dataset.manifest(split)
        numbers = [int(source.split("/")[1]) for source in manifest["source"].to_pylist()]
        assert sorted(numbers) == list(range(manifest.num_rows))
        assert numbers != sorted(numbers), "the samples are not shuffled"
        for sample_id, number in enumerate(numbers):
            assert np.array_equal(reader.read(sample_id), coded_pixels(first + number, 16))
            assert reader.class_indices[sample_id] == number % NUM_CLASSES


def test_the_hashes_in_dataset_json_are_those_of_all_files(undisturbed):
    document = json.loads((undisturbed / "dataset.json").read_text())
    found = digest(undisturbed)
    del found["dataset.json"], found["inventory.json"]
    assert {name: entry["sha256"] for name, entry in document["files"].items()} == found
    sizes = {name: (undisturbed / name).stat().st_size for name in found}
    assert {name: entry["num_bytes"] for name, entry in document["files"].items()} == sizes


def test_another_seed_shuffles_otherwise(undisturbed, tmp_path):
    other = ShardingConfig(encoding=RAW.encoding, samples_per_shard=8, seed=1)
    shard_dataset(CodedSource(tmp_path), tmp_path, other, num_workers=1)
    assert (
        Dataset.open(tmp_path).manifest("train")["source"].to_pylist()
        != Dataset.open(undisturbed).manifest("train")["source"].to_pylist()
    )


SLOW_RUN = """
import sys
from pathlib import Path
from pipeline.command import run_command
from pipeline.offline.sharding import shard_dataset
from tests.pipeline.offline.test_sharding import RAW, SlowSource
def main(argv):
    shard_dataset(SlowSource(Path(".")), Path(sys.argv[1]), RAW, num_workers=2)
    return 0
if __name__ == "__main__":
    run_command(main)
"""


class SlowSource(CodedSource):
    """Takes 20 ms a picture, so that a run can be killed in the middle."""

    def read(self, file, offset, num_bytes):
        time.sleep(0.02)
        return super().read(file, offset, num_bytes)


def _start(out: Path, tmp_path: Path) -> subprocess.Popen:
    script = tmp_path / "run.py"
    script.write_text(SLOW_RUN)
    return subprocess.Popen(
        [sys.executable, str(script), str(out)],
        env=os.environ | {"PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests' / 'helpers'}"},
        stderr=subprocess.DEVNULL,
    )


def _wait_until(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, "the run ended before it could be disturbed"
        time.sleep(0.005)


def _one_done_one_under_way(out: Path):
    return lambda: list(out.glob(".partial/*-??????.npz")) and list(out.glob(".*.tar.*.tmp"))


def _records(out: Path) -> dict[str, int]:
    """Name -> time of the records of finished shards."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob(".partial/*-??????.npz")}


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def test_a_killed_run_is_finished_by_the_same_command(undisturbed, tmp_path):
    out = tmp_path / "out"
    process = _start(out, tmp_path)
    _wait_until(_one_done_one_under_way(out), process)
    workers = _children(process.pid)
    process.kill()
    process.wait()
    assert not (out / "dataset.json").exists()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.05)
    finished = {path.name: path.stat().st_mtime_ns for path in (out / ".partial").glob("*-??????.npz")}
    shard_dataset(SlowSource(out), out, RAW, num_workers=2)
    assert digest(out) == digest(undisturbed)
    assert finished
    for name in finished:
        tar = out / name.replace(".npz", ".tar")
        assert tar.stat().st_mtime_ns <= finished[name], "a finished shard was written again"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_runs_killed_at_random_moments_lose_nothing(undisturbed, tmp_path, seed):
    """Several kills in a row, of the command or of one of its workers; never a shard done twice, never another byte."""
    rng, out = random.Random(seed), tmp_path / "out"
    finished: dict[str, int] = {}
    for _ in range(2):
        process, num_before = _start(out, tmp_path), len(finished)
        while len(_records(out)) <= num_before or not _one_done_one_under_way(out)():
            assert process.poll() is None, "the run ended before it could be disturbed"
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        workers = _children(process.pid)
        os.kill(rng.choice([process.pid, *workers]), signal.SIGKILL)
        if process.wait(timeout=30) == 0:
            break  # what was killed is a process of Python's own, which a run can do without
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            time.sleep(0.01)
        records = _records(out)
        assert finished.items() <= records.items(), "a finished shard was written again"
        finished = records
    else:
        shard_dataset(CodedSource(out), out, RAW, num_workers=2)
    assert digest(out) == digest(undisturbed)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing_half_written(tmp_path, signum):
    out = tmp_path / "out"
    process = _start(out, tmp_path)
    _wait_until(_one_done_one_under_way(out), process)
    process.send_signal(signum)
    assert process.wait(timeout=10) == 128 + signum
    assert not list(out.rglob(".*.tmp"))
    assert not (out / "dataset.json").exists()


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path):
    source = CodedSource(tmp_path)
    listing = source.list_samples()
    task = plan_shards(listing, listing.splits, RAW)[0]
    with pytest.raises(InputError, match=r"does not see .*; write to a file system that all nodes share"):
        write_shard(task, source, RAW.encoding, tmp_path / "out", tmp_path / "out" / ".partial")
    assert not (tmp_path / "out").exists()


def test_two_runs_into_one_folder_are_refused(tmp_path):
    out = tmp_path / "out"
    process = _start(out, tmp_path)
    try:
        _wait_until(_one_done_one_under_way(out), process)
        with pytest.raises(InputError, match="another run is writing"):
            shard_dataset(SlowSource(out), out, RAW, num_workers=1)
    finally:
        process.kill()
        process.wait()


def test_an_interrupted_run_is_not_mixed_with_another_plan(tmp_path):
    out = tmp_path / "out"
    process = _start(out, tmp_path)
    _wait_until(_one_done_one_under_way(out), process)
    process.kill()
    process.wait()
    other = ShardingConfig(encoding=RAW.encoding, samples_per_shard=8, seed=1)
    with pytest.raises(InputError, match="interrupted run with other seed"):
        shard_dataset(SlowSource(out), out, other, num_workers=1)


def test_a_run_killed_as_it_tidied_up_is_finished_by_the_same_command(undisturbed, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sharding, "_remove", killed)
        shard_dataset(CodedSource(out), out, RAW, num_workers=1)
    assert (out / "dataset.json").exists() and (out / ".partial").exists()
    other = ShardingConfig(encoding=RAW.encoding, samples_per_shard=8, seed=1)
    with pytest.raises(InputError, match="interrupted run with other seed"):
        shard_dataset(CodedSource(out), out, other, num_workers=1)
    document = shard_dataset(CodedSource(out), out, RAW, num_workers=1)
    assert document == Dataset.open(out).document
    assert digest(out) == digest(undisturbed)


def test_a_finished_dataset_and_a_foreign_folder_are_left_alone(undisturbed, tmp_path):
    with pytest.raises(InputError, match="already holds a finished dataset"):
        shard_dataset(CodedSource(undisturbed), undisturbed, RAW, num_workers=1)
    (tmp_path / "thesis.tex").write_text("dear reader")
    with pytest.raises(InputError, match="is not empty"):
        shard_dataset(CodedSource(tmp_path), tmp_path, RAW, num_workers=1)
    assert os.listdir(tmp_path) == ["thesis.tex"]


class BrokenSource(CodedSource):
    """Every tenth training picture is not a picture."""

    def read(self, file, offset, num_bytes):
        return b"rubbish" if offset % 10 == 0 and offset < 1_000_000 else super().read(file, offset, num_bytes)


def test_rejects_are_listed_counted_and_limited(tmp_path):
    config = ShardingConfig(encoding=RAW.encoding, samples_per_shard=8, max_rejects=0.1)
    document = shard_dataset(BrokenSource(tmp_path), tmp_path / "tolerant", config, num_workers=1)
    assert document["num_rejects"] == 4
    assert document["splits"]["train"]["num_samples"] == 36
    rejects = pq.read_table(tmp_path / "tolerant" / "rejects.parquet").to_pylist()
    assert sorted(row["source"] for row in rejects) == ["train/0", "train/10", "train/20", "train/30"]
    assert {row["reason"] for row in rejects} == {"undecodable"}
    with pytest.raises(InputError, match=r"4 of 50 pictures were rejected \(4 undecodable"):
        shard_dataset(BrokenSource(tmp_path), tmp_path / "strict", RAW, num_workers=1)
    assert not (tmp_path / "strict" / "dataset.json").exists()


def test_a_shard_without_a_single_picture_gets_no_file(tmp_path):
    config = ShardingConfig(encoding=RAW.encoding, samples_per_shard=1, max_rejects=0.1)
    document = shard_dataset(BrokenSource(tmp_path), tmp_path / "out", config, num_workers=1)
    assert document["splits"]["train"] == {"num_samples": 36, "num_shards": 36}
    assert len(list((tmp_path / "out").glob("train-*.tar"))) == len(list((tmp_path / "out").glob("train-*.idx"))) == 36


def test_a_finished_shard_that_has_vanished_is_written_again(undisturbed, tmp_path):
    out = tmp_path / "out"
    process = _start(out, tmp_path)
    _wait_until(_one_done_one_under_way(out), process)
    process.kill()
    process.wait()
    next(out.glob("*.tar")).unlink()
    shard_dataset(CodedSource(out), out, RAW, num_workers=1)
    assert digest(out) == digest(undisturbed)


def test_val_never_takes_all_of_a_class_nor_stands_empty(tmp_path):
    config = ShardingConfig(encoding=RAW.encoding, val_fraction=0.9)
    splits = plan_splits(CodedSource(tmp_path, num_train=8, num_val=0).list_samples(), config)
    assert (splits["train"].num_rows, splits["val"].num_rows) == (4, 4)
    assert list(plan_splits(CodedSource(tmp_path, num_train=4, num_val=0).list_samples(), config)) == ["train"]


def test_a_source_without_val_gives_a_stratified_part_of_train(tmp_path):
    listing = CodedSource(tmp_path, num_train=200, num_val=0).list_samples()
    splits = plan_splits(listing, ShardingConfig(encoding=RAW.encoding, val_fraction=0.1))
    assert splits["train"].num_rows == 180
    assert np.bincount(splits["val"]["class_index"]).tolist() == [5] * NUM_CLASSES
    sources = splits["train"]["source"].to_pylist() + splits["val"]["source"].to_pylist()
    assert sorted(sources) == sorted(listing.splits["train"]["source"].to_pylist())
