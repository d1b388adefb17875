"""What a node has of what a run needs, looked at on this machine."""

import contextlib
import dataclasses
import errno
import importlib.metadata
import io
import json
import os
import re
import resource
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cluster.launch.footprint import (
    num_checkpoint_bytes,
    num_weight_bytes,
    num_worker_bytes,
    training_requirements,
)
from cluster.launch.node_checks import (
    Node,
    NodeReport,
    Requirements,
    code_digest,
    inspect_node,
    read_dataset,
    written_probe,
)
from cluster.launch.node_findings import judge
from cluster.run.config import TrainingConfig
from jobs import train
from jobs.recipes import get_recipe
from model.alexnet import build_model
from model.optim import build_optimizer
from pipeline.command import InputError
from pipeline.online import shard_maps
from pipeline.paths import CHECKOUT


def _inspect(dataset_path: Path | None, folder: Path, dataset_sha256: str | None = "") -> NodeReport:
    requirements = Requirements(dataset_path=dataset_path, dataset_sha256=dataset_sha256, folder=folder)
    with written_probe(folder) as probe:
        return inspect_node(Node("here"), requirements, probe, Path("/tmp"))


def test_this_machine_has_what_it_has(raw_dataset, tmp_path):
    report = _inspect(raw_dataset.path, tmp_path / "deep" / "run")
    assert (report.dataset_sha256, report.dataset_error) == (raw_dataset.sha256, "")
    assert report.sees_probe and report.write_error == ""
    assert report.versions["torch"] == importlib.metadata.version("torch")
    assert report.versions["Python"].split(".") == [str(part) for part in sys.version_info[:3]]
    assert {"DALI", "nvImageCodec", "ray", "numpy", "numba", "pyarrow"} < set(report.versions)
    assert report.free_disk_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert report.num_cpus == len(os.sched_getaffinity(0))
    assert 0 < report.available_memory_bytes < 2**50
    assert list(tmp_path.rglob("*")) == []  # neither probe nor folder remains
    assert judge(report, report, Requirements(dataset_path=raw_dataset.path, dataset_sha256=raw_dataset.sha256,
                                                folder=tmp_path)) == []  # fmt: skip


def test_where_no_dataset_is_needed_none_is_missed(tmp_path):
    report = _inspect(None, tmp_path, None)
    assert (report.dataset_sha256, report.dataset_error) == (None, "")
    assert judge(report, report, Requirements(dataset_path=None, dataset_sha256=None, folder=tmp_path)) == []


def test_a_dataset_that_is_not_there_or_not_whole_is_noticed(raw_dataset, tmp_path):
    assert "No such file" in _inspect(tmp_path / "absent", tmp_path).dataset_error
    copy = Path(shutil.copytree(raw_dataset.path, tmp_path / "copy"))
    shard = copy / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    (copy / "val-000000.tar").unlink()
    report = _inspect(copy, tmp_path)
    assert report.dataset_sha256 == raw_dataset.sha256
    assert report.dataset_error == (
        "is incomplete there (train-000001.tar and 1 more files missing, unreadable or of another size)"
    )
    document = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps(document | {"seed": 1}))
    assert _inspect(copy, tmp_path).dataset_sha256 not in (None, raw_dataset.sha256)
    (copy / "dataset.json").write_text("{")
    assert _inspect(copy, tmp_path).dataset_error == "can't be read there (dataset.json is broken)"


def test_a_node_with_another_folder_under_the_same_path_does_not_see_the_probe(raw_dataset, tmp_path):
    requirements = Requirements(dataset_path=raw_dataset.path, dataset_sha256="", folder=tmp_path / "run")
    with written_probe(tmp_path / "run") as probe:
        tmp_path.rename(tmp_path.with_name("elsewhere"))
        absent = inspect_node(Node("b"), requirements, probe, Path("/tmp"))
        tmp_path.mkdir()
        empty = inspect_node(Node("b"), requirements, probe, Path("/tmp"))
    assert (absent.sees_probe, absent.free_disk_bytes) == (False, None) and absent.write_error
    assert (empty.sees_probe, empty.write_error) == (False, "")


def test_room_that_cannot_be_told_does_not_keep_a_node_from_answering(raw_dataset, tmp_path, monkeypatch):
    def stale(*arguments):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(shutil, "disk_usage", stale)
    report = _inspect(raw_dataset.path, tmp_path)
    assert report.free_disk_bytes is report.free_shared_memory_bytes is report.free_temp_bytes is None


def test_a_folder_that_takes_no_file_is_told(tmp_path):
    with (
        pytest.raises(InputError, match=r"can't write to /proc \(.+\); choose a folder"),
        written_probe(Path("/proc/run")),
    ):
        pass


def test_the_code_of_another_checkout_has_another_digest(tmp_path):
    for folder in ("pipeline", "model", "cluster"):
        shutil.copytree(CHECKOUT / folder, tmp_path / folder)
    assert code_digest(tmp_path) == code_digest()
    with open(tmp_path / "model" / "lrn.py", "a") as file:
        file.write("\n")
    assert code_digest(tmp_path) != code_digest()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_checkpoint_is_as_large_as_foretold(optimizer):
    name = {"sgd": "small_demo", "adam": "cifar_tutorial"}[optimizer]
    config: TrainingConfig = dataclasses.replace(get_recipe("small_demo"), optimizer=get_recipe(name).optimizer)
    assert config.optimizer.name == optimizer
    model = build_model(config.model.name, num_classes=10)
    update = build_optimizer(model, config.optimizer)
    model(torch.zeros(2, 3, 28, 28)).sum().backward()
    update.step()
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": update.state_dict()}, buffer)
    assert num_checkpoint_bytes(config, 10) == pytest.approx(buffer.tell(), rel=0.01)


def test_checkpoints_of_lossy_exchanges_have_a_part_for_each_worker():
    config = get_recipe("krizhevsky_2012")
    exact, weights = num_checkpoint_bytes(config, 1000), num_weight_bytes(config, 1000)
    powersgd = dataclasses.replace(config, gradient_compression="powersgd")
    local_sgd = dataclasses.replace(config, local_sgd_steps=8)
    assert num_checkpoint_bytes(config, 1000, 8) == exact == 2 * weights
    assert num_checkpoint_bytes(powersgd, 1000, 8) == exact + 8 * weights
    assert num_checkpoint_bytes(local_sgd, 1000, 8) == exact + 7 * weights
    assert num_checkpoint_bytes(powersgd, 1000) == num_checkpoint_bytes(local_sgd, 1000) == exact


@pytest.mark.parametrize(
    ("changes", "num_workers", "expected"),
    [
        ({"gradient_compression": "bf16"}, 8, 5),
        ({"gradient_compression": "powersgd"}, 1, 5),
        ({"gradient_compression": "powersgd"}, 8, 5 + 4 + 2 * 8),  # its copies; what is gathered, twice
        ({"local_sgd_steps": 8}, 1, 5),
        ({"local_sgd_steps": 8}, 8, 5 + 2 * 7),
    ],
)
def test_a_worker_has_room_for_what_is_gathered_for_a_lossy_exchange(changes, num_workers, expected):
    config = dataclasses.replace(get_recipe("krizhevsky_2012"), **changes)
    assert num_worker_bytes(config, 1000, "auto", num_workers) == expected * num_weight_bytes(config, 1000)


def test_a_run_that_goes_on_needs_room_for_what_is_still_to_be_written(raw_dataset, tmp_path):
    config = get_recipe("small_demo")
    checkpoint = num_checkpoint_bytes(config, raw_dataset.num_classes)
    assert training_requirements(config, raw_dataset, tmp_path).num_bytes == (config.num_checkpoints + 2) * checkpoint
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000001.pt").write_bytes(bytes(checkpoint))
    assert training_requirements(config, raw_dataset, tmp_path).num_bytes == (config.num_checkpoints + 1) * checkpoint


@pytest.mark.parametrize(
    ("exchange", "num_workers", "expected"),
    [
        ("allreduce", 8, 5),  # weights, gradient, momentum, and a checkpoint of weights and momentum
        ("auto", 8, 5),
        ("hybrid", 1, 5),
        ("hybrid", 2, 3 * (0.038 + 0.962 / 2) + 2),  # 3.8 % of the parameters are not in dense layers
        ("hybrid", 8, 3),  # at the start: the whole network, and a checkpoint
    ],
)
def test_hybrid_workers_keep_only_a_part_of_the_dense_layers(exchange, num_workers, expected):
    config = get_recipe("krizhevsky_2012")
    weights = num_weight_bytes(config, 1000)
    assert num_worker_bytes(config, 1000, exchange, num_workers) / weights == pytest.approx(expected, abs=0.01)


@pytest.fixture
def one_local_node(monkeypatch):
    """`jobs.train` up to the launch, without the seconds that a Ray takes to start."""
    node = {"Alive": True, "Resources": {"CPU": 1.0}, "NodeID": "1", "NodeName": "n", "NodeManagerAddress": "n",
            "NodeManagerHostname": "h"}  # fmt: skip
    monkeypatch.setattr("cluster.launch.ray_nodes.ray", SimpleNamespace(nodes=lambda: [node]))
    monkeypatch.setattr("cluster.launch.ray_nodes._answers", lambda node: True)
    monkeypatch.setattr("cluster.launch.ray_launch.ray_session", lambda address: contextlib.nullcontext())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_dry_run_says_what_it_would_do_and_leaves_nothing(one_local_node, raw_dataset, tmp_path, capsys):
    arguments = ["--data", str(raw_dataset.path), "--run", str(tmp_path / "run"), "--dry-run"]
    assert train.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("would train small_demo (alexnet_small) in ")
    assert "1 worker of 1 CPU on a local Ray" in captured.out
    assert captured.err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_exchange_and_the_numbers_of_workers_reach_the_checks(one_local_node, raw_dataset, tmp_path, monkeypatch):
    def stop(*arguments: object) -> None:
        raise InputError(str(arguments[3:]))

    monkeypatch.setattr("jobs.training.on_ray.training_requirements", stop)
    command = ["--data", str(raw_dataset.path), "--run", str(tmp_path / "run"), "--dry-run"]
    for options, asked in (
        ([], "('auto', (1, 1))"),
        (["--exchange", "hybrid", "--workers", "2:3"], "('hybrid', (2, 3))"),
    ):
        with pytest.raises(InputError, match=re.escape(asked)):
            train.main([*command, *options])


def test_a_full_disk_stops_a_run_before_it_begins(one_local_node, raw_dataset, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"this machine: 10 MB are free for .+; free some, choose another --run"):
        train.main(["--data", str(raw_dataset.path), "--run", str(tmp_path / "run")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("replaces", [False, True])
def test_a_missing_shard_is_an_error_unless_its_samples_are_replaced(replaces, jpeg_dataset, tmp_path):
    copy = tmp_path / "dataset"
    shutil.copytree(jpeg_dataset.path, copy)
    assert read_dataset(copy, replaces) == (jpeg_dataset.sha256, "")
    (copy / "train-000001.tar").unlink()
    assert bool(read_dataset(copy, replaces)[1]) == (not replaces)
    (copy / "manifest" / "train.parquet").unlink()
    assert "manifest/train.parquet" in read_dataset(copy, True)[1]


def test_shards_and_open_files_are_looked_at(raw_dataset, tmp_path, monkeypatch):
    assert training_requirements(get_recipe("small_demo"), raw_dataset, tmp_path).num_shards == 4
    for hard, told in ((4096, 4096), (resource.RLIM_INFINITY, None)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, hard=hard: (1024, hard))
        assert _inspect(raw_dataset.path, tmp_path).max_open_files == told


@pytest.mark.parametrize("num_shards", [4, 100, 640, 641, 1332])
def test_open_files_are_enough_for_all_shards_and_no_more(monkeypatch, num_shards):
    def num_kept(limit: int) -> int:
        monkeypatch.setattr(resource, "getrlimit", lambda which: (limit if which == resource.RLIMIT_NOFILE else -1, -1))
        return shard_maps.num_mappable([1])

    monkeypatch.setattr(os, "listdir", lambda _: range(128))
    needed = shard_maps.open_files_for(num_shards)
    assert num_kept(needed - 1) < num_shards <= num_kept(needed)
