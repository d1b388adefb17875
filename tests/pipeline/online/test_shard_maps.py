"""Datasets of more shards than a process may keep open, mapped or in its address space."""

import contextlib
import errno
import gc
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from coded_source import CodedSource, coded_pixels

from cluster.run.checkpoint import CheckpointStore
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.loader import EvalLoader, TrainLoader
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.online import shard_maps, shard_reader
from pipeline.online.shard_maps import ShardMaps, num_mappable
from pipeline.online.shard_reader import ShardReader
from pipeline.online.stream_order import StreamConfig
from pipeline.pictures.encode import EncodingConfig
from pipeline.system.os_errors import mending

NUM_SHARDS = 40  # of each split, a sample each
READ_ALL = """
import os, resource, sys
import numpy as np
from pipeline.command import run_command
from pipeline.dataset import Dataset
from pipeline.online.shard_reader import ShardReader
def main(argv):
    kind, num_others, num_more = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    dataset, others = Dataset.open(sys.argv[1]), [os.dup(0) for _ in range(num_others)]
    limit = len(os.listdir("/proc/self/fd")) + num_more
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if kind == "soft" else limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    kept = []
    for reader in [ShardReader(dataset, split, "skip-and-count") for split in ("train", "val")]:
        for _ in range(2):
            reader.prefetch(np.arange(reader.num_samples))
            kept += map(reader.read, range(reader.num_samples))
    print(sum(picture.nbytes for picture in kept))
    return 0
run_command(main)
"""

FORK = """
import os, sys, threading
from pipeline.dataset import Dataset
from pipeline.online.shard_maps import SHARD_MAPS
from pipeline.online.shard_reader import ShardReader
reader, held, ended = ShardReader(Dataset.open(sys.argv[1]), "train"), threading.Event(), threading.Event()
def hold():
    with SHARD_MAPS._lock:
        held.set()
        ended.wait()
threading.Thread(target=hold).start()
held.wait()
if child := os.fork():
    ended.set()
    sys.exit(os.waitpid(child, 0)[1])
reader.read(0)
os._exit(0)
"""


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("many_shards")
    config = ShardingConfig(encoding=EncodingConfig(encoding="raw", size=None), samples_per_shard=1)
    shard_dataset(CodedSource(folder, NUM_SHARDS, NUM_SHARDS), folder / "d", config, num_workers=1)
    return Dataset.open(folder / "d")


@pytest.fixture
def maps(monkeypatch) -> ShardMaps:
    """The maps of this process, as if there were no others; room for three shards."""
    maps = ShardMaps()
    monkeypatch.setattr(shard_reader, "SHARD_MAPS", maps)
    monkeypatch.setattr(shard_maps, "_LEAST", 1)
    monkeypatch.setattr(shard_maps, "num_mappable", lambda *_, **__: 3)
    return maps


@pytest.mark.parametrize("num_others", [0, 30, 1000])
@pytest.mark.parametrize(("kind", "num_more"), [("soft", 20), ("hard", 3), ("hard", 20), ("hard", 60), ("hard", 200)])
def test_two_readers_read_more_shards_than_may_be_open(many_shards, kind, num_others, num_more):
    command = [sys.executable, "-c", READ_ALL, str(many_shards.path), kind, str(num_others), str(num_more)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, f"{4 * NUM_SHARDS * 16 * 16 * 3}\n"), answer.stderr


def test_a_forked_process_reads_although_a_thread_of_its_parent_was_mapping(many_shards):
    command = [sys.executable, "-c", FORK, str(many_shards.path)]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            assert process.wait(60) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):  # the child would wait for ever
                os.killpg(process.pid, signal.SIGKILL)


def test_a_limit_that_leaves_nothing_is_told_with_the_way_out(many_shards):
    command = [sys.executable, "-c", READ_ALL, str(many_shards.path), "hard", "5", "0"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 2 and len(answer.stderr.splitlines()) == 1
    assert answer.stderr.endswith("Too many open files; raise the limit of open files (ulimit -n)\n")


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("num_possible", [1, 7])
def test_limits_that_nobody_foresaw_are_kept_to(many_shards, maps, monkeypatch, code, num_possible):
    monkeypatch.setattr(shard_maps, "num_mappable", lambda *_, **__: 1000)
    real, alive = mmap.mmap, weakref.WeakSet()

    def limited(*arguments, **options):
        if len(alive) >= num_possible:
            raise OSError(code, os.strerror(code))
        alive.add(mapped := real(*arguments, **options))
        return mapped

    monkeypatch.setattr(mmap, "mmap", limited)
    reader = ShardReader(many_shards, "train")
    for number in range(NUM_SHARDS):
        assert _number(reader, number) in range(NUM_SHARDS)
    assert 1 <= len(alive) <= num_possible


def _number(reader: ShardReader, sample_id: int) -> int:
    """Return which picture of the source a sample is."""
    picture = reader.read(sample_id)
    return next(number for number in range(NUM_SHARDS) if np.array_equal(picture, coded_pixels(number, 16)))


@pytest.mark.parametrize(
    ("code", "told"), [(errno.EMFILE, "ulimit -n"), (errno.ENOMEM, "vm.max_map_count"), (errno.EACCES, "give the user")]
)
def test_no_limit_or_permission_is_called_damage(many_shards, monkeypatch, code, told):
    def fails(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(mmap, "mmap", fails)
    with pytest.raises(InputError, match=told) as caught:
        ShardReader(many_shards, "train", "skip-and-count").read(0)
    assert "shard again" not in str(caught.value) and os.strerror(code) in str(caught.value)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_checkpoint_that_a_limit_hides_is_not_passed_over(tmp_path, monkeypatch, code):
    store = CheckpointStore(tmp_path, 3)
    store.save({"step": 1}, 1)

    def fails(path):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(OSError, match=os.strerror(code)):
        store.load_latest()


def test_a_document_that_a_limit_hides_is_not_called_damaged(many_shards, monkeypatch):
    dataset = Dataset.open(many_shards.path)

    def fails(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(OSError, match="Too many open files"):
        dataset.manifest("train")
    assert mending(PermissionError(errno.EACCES, "")).startswith("give the user")


def test_the_shard_that_was_mapped_first_gives_way(many_shards, maps):
    reader, other = ShardReader(many_shards, "train"), ShardReader(many_shards, "val")
    held = [reader.read(0), reader.read(1), other.read(0)]
    assert list(reader._maps) == [0, 1] and list(other._maps) == [0]
    held.append(other.read(1))
    assert list(reader._maps) == [1] and list(other._maps) == [0, 1]
    mapped = weakref.ref(reader._maps[1].mapped)
    held.append(other.read(2))
    gc.collect()
    assert mapped() is None and reader._maps == {}  # though pictures of it are still held


def test_views_are_given_where_all_shards_fit(many_shards, maps, monkeypatch):
    monkeypatch.setattr(shard_maps, "num_mappable", lambda *_, **__: 2 * NUM_SHARDS)
    reader = ShardReader(many_shards, "train")
    assert np.shares_memory(reader.read(0), reader._maps[0].content)
    others = [ShardReader(many_shards, "val") for _ in range(2)]
    assert maps.gives_way and not np.shares_memory(reader.read(0), reader._maps[0].content)
    del others
    gc.collect()
    assert not maps.gives_way and len(maps._kept) == 1


def test_the_soft_limit_is_raised_once_for_any_number_of_readers(many_shards, monkeypatch):
    seen, maps = [], ShardMaps()
    monkeypatch.setattr(shard_reader, "SHARD_MAPS", maps)
    monkeypatch.setattr(resource, "getrlimit", lambda _: seen[-1] if seen else (1024, 100_000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: seen.append(limits))
    for _ in range(3):
        ShardReader(many_shards, "val")
        gc.collect()
    assert {soft for soft, _ in seen} == {1024 + NUM_SHARDS}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"files": 10_000}, 10_000 - 256),
        ({"files": 400}, 400 - 100),
        ({"files": -1}, 65_530 - 256),
        ({"files": 10_000, "bytes": 10**9}, 10**9 // 2 // 100_000),
    ],
)
def test_what_can_be_mapped_follows_from_all_limits(monkeypatch, limits, expected):
    def getrlimit(kind):
        name = {resource.RLIMIT_NOFILE: "files", resource.RLIMIT_AS: "bytes"}[kind]
        return limits.get(name, -1), -1

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    real = Path.read_text
    fixed = {"/proc/sys/vm/max_map_count": "65530", "/proc/self/statm": "0 0"}
    monkeypatch.setattr(Path, "read_text", lambda path: fixed.get(str(path)) or real(path))
    num_used = 3000  # of files and maps together, at most
    assert expected - num_used < num_mappable([100_000] * 10) <= expected


@pytest.mark.parametrize("streams", [None, StreamConfig(num_streams=2, window_size=10)])
def test_batches_are_the_same_however_few_shards_are_mapped(raw_dataset, maps, monkeypatch, streams):
    def images(num_mapped: int) -> list[torch.Tensor]:
        monkeypatch.setattr(shard_maps, "num_mappable", lambda *_, **__: num_mapped)
        loader = TrainLoader(raw_dataset, global_batch_size=20, streams=streams)
        evaluation = EvalLoader(raw_dataset, "val", batch_size=4)
        batches = [next(loader).images for _ in range(5)] + [batch.images for batch in evaluation]
        loader.close()
        return batches

    few, all_of_them = images(1), images(1000)
    assert len(few) == 8 and all(map(torch.equal, few, all_of_them))


def test_readers_in_several_threads_share_the_room(many_shards, maps):
    reader, wrong = ShardReader(many_shards, "train"), []
    expected = [reader.read(sample_id) for sample_id in range(NUM_SHARDS)]

    def read(seed: int) -> None:
        own = ShardReader(many_shards, "train")
        for sample_id in np.random.default_rng(seed).integers(0, NUM_SHARDS, 400).tolist():
            pictures = (each.read(sample_id) for each in (reader, own))
            wrong.extend(sample_id for picture in pictures if not np.array_equal(picture, expected[sample_id]))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(maps._kept) <= 3
