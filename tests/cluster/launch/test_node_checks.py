"""What a node needs for a run: looked at on this machine, and judged from reports of nodes that differ in one thing."""

import contextlib
import dataclasses
import errno
import importlib.metadata
import io
import json
import os
import resource
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.launch.footprint import num_checkpoint_bytes, training_requirements
from cluster.launch.node_checks import (
    Finding,
    Node,
    NodeReport,
    Requirements,
    _code_digest,
    _read_dataset,
    inspect_node,
    judge,
    messages,
    written_probe,
)
from cluster.run.config import TrainingConfig
from jobs import train
from jobs.recipes import get_recipe
from model.alexnet import build_model
from model.optim import build_optimizer
from pipeline.command import InputError, run_command
from pipeline.online import shard_maps
from pipeline.paths import CHECKOUT

REQUIREMENTS = Requirements(
    dataset_path=Path("/data"),
    dataset_sha256="d1",
    folder=Path("/runs/mine"),
    num_bytes=10**9,
    worker_bytes=10**9,
    num_shards=1332,
)
GOOD = NodeReport(
    node=Node("node a", num_cpus=8, num_workers=2, num_gpus=2),
    executable="/usr/bin/python",
    versions={"Python": "3.12.1", "torch": "2.9.0+cu130", "DALI": "2.0.1", "nvImageCodec": "0.9.0", "numpy": "2.3.0"},
    code_digest="c1",
    dataset_sha256="d1",
    dataset_error="",
    sees_probe=True,
    write_error="",
    free_disk_bytes=10**12,
    free_shared_memory_bytes=2**30,
    free_temp_bytes=10**11,
    num_cpus=8,
    available_memory_bytes=10**11,
)


def _with(**changes) -> NodeReport:
    return dataclasses.replace(GOOD, node=dataclasses.replace(GOOD.node, name="node b"), **changes)


def _judged(*reports: NodeReport) -> list[Finding]:
    return [finding for report in reports for finding in judge(report, GOOD, REQUIREMENTS)]


def _versions(**changes: str | None) -> dict[str, str]:
    return {name: version for name, version in {**GOOD.versions, **changes}.items() if version}


@pytest.mark.parametrize(
    ("changes", "severity", "said"),
    [
        ({"dataset_sha256": None, "dataset_error": "is gone"}, "error", "dataset /data is gone; mount the shared"),
        ({"dataset_sha256": "d2"}, "error", "another dataset lies at /data"),
        ({"dataset_error": "is incomplete there"}, "error", "dataset /data is incomplete there; mount"),
        ({"sees_probe": False}, "error", "/runs/mine is not the folder that the driver sees under this path; mount"),
        ({"write_error": "Permission denied"}, "error", "can't write to /runs/mine (Permission denied); let its user"),
        ({"versions": _versions(torch="2.9.1+cu130")}, "error", "torch is 2.9.1+cu130, the driver's 2.9.0+cu130; inst"),
        ({"versions": _versions(DALI="2.1.0")}, "error", "DALI is 2.1.0, the driver's 2.0.1; install"),
        ({"versions": _versions(nvImageCodec="0.8.0")}, "error", "nvImageCodec is 0.8.0"),
        ({"versions": _versions(DALI=None)}, "error", "/usr/bin/python lacks DALI, the driver has 2.0.1; install"),
        ({"versions": _versions(numpy="2.4.0")}, "warning", "numpy is 2.4.0, the driver's 2.3.0; install"),
        ({"versions": _versions(Python="3.12.2")}, "warning", "Python is 3.12.2"),
        ({"code_digest": "c2"}, "error", "this project's code differs from the driver's; submit with"),
        (
            {"free_disk_bytes": 10**8},
            "error",
            "0.1 GB are free for /runs/mine, the run's checkpoints need 1.0 GB; free",
        ),
        (
            {"max_open_files": 1024},
            "warning",
            "a process may open 1024 files, so that 1332 shards are opened again and again; should that be slow, start "
            "its Ray after `ulimit -n 1716`",
        ),
        ({"free_shared_memory_bytes": 2**26}, "warning", "0.1 GB are free in /dev/shm"),
        ({"free_temp_bytes": 10**8}, "warning", "0.1 GB are free for Ray's temporary folder; free some"),
        (
            {"available_memory_bytes": 10**9},
            "warning",
            "1.0 GB of memory are available, 2 worker(s) take more than 2.0",
        ),
        ({"num_cpus": 4}, "warning", "offers 8 CPUs to Ray and has 4; threads"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_thing_that_differs_is_one_line_that_names_node_cause_and_next_step(changes, severity, said):
    findings = _judged(GOOD, _with(**changes))
    (line,) = messages(findings, severity)
    assert line.startswith(f"node b: {said}")
    assert len(findings) == 1 and "\n" not in line and "; " in line


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"versions": _versions(torch="2.9.0+cpu")},  # a head without GPUs
        {"versions": GOOD.versions | {"pyarrow": "25.0"}},
        {"free_shared_memory_bytes": None},
        {"max_open_files": 4096},
        {"max_open_files": None},
        {"free_temp_bytes": None},  # this Ray does not tell where its folder is
    ],
)
def test_what_does_no_harm_is_not_said(changes):
    assert _judged(GOOD, _with(**changes)) == []


def test_shared_memory_matters_to_several_gpus_of_a_node_alone():
    for num_gpus in (0, 1):
        report = _with(free_shared_memory_bytes=0)
        report = dataclasses.replace(report, node=dataclasses.replace(report.node, num_gpus=num_gpus))
        assert _judged(report) == []


def test_an_unshared_folder_is_one_finding_whatever_else_is_wrong_with_it():
    report = _with(sees_probe=False, write_error="No such file or directory", free_disk_bytes=None)
    assert [finding.node for finding in _judged(GOOD, report)] == ["node b"]


def test_all_errors_are_told_at_once_and_nodes_alike_share_a_line():
    missing = {"dataset_sha256": None, "dataset_error": "is gone"}
    reports = [
        dataclasses.replace(GOOD, node=Node(f"node {name}"), **missing, num_cpus=1, **changes)
        for name, changes in [("a", {}), ("b", {}), ("c", {"sees_probe": False}), ("d", {}), ("e", {})]
    ]
    data, folder = messages(_judged(*reports), "error")
    assert data.startswith("node a, node b, node c and 2 more: dataset /data is gone; ")
    assert folder.startswith("node c: /runs/mine is not")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.sampled_from(["error", "warning"]))))
def test_no_finding_is_lost_between_the_lines(drawn):
    findings = [Finding(severity, node, cause, "do") for cause, node, severity in drawn]
    lines = messages(findings, "error") + messages(findings, "warning")
    assert len(lines) == len({(cause, severity) for cause, _, severity in drawn})
    assert all(any(finding.cause in line for line in lines) for finding in findings)


def test_a_command_says_each_cause_as_an_error_of_its_own(capsys):
    def main(argv):
        raise InputError("one; do this\ntwo; do that")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: one; do this\nerror: two; do that\n"


def _inspect(dataset_path: Path, folder: Path, dataset_sha256: str = "") -> NodeReport:
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
    assert _code_digest(tmp_path) == _code_digest()
    with open(tmp_path / "model" / "lrn.py", "a") as file:
        file.write("\n")
    assert _code_digest(tmp_path) != _code_digest()


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


def test_a_run_that_goes_on_needs_room_for_what_is_still_to_be_written(raw_dataset, tmp_path):
    config = get_recipe("small_demo")
    checkpoint = num_checkpoint_bytes(config, raw_dataset.num_classes)
    assert training_requirements(config, raw_dataset, tmp_path).num_bytes == (config.num_checkpoints + 2) * checkpoint
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000001.pt").write_bytes(bytes(checkpoint))
    assert training_requirements(config, raw_dataset, tmp_path).num_bytes == (config.num_checkpoints + 1) * checkpoint


@pytest.fixture
def one_local_node(monkeypatch):
    """`jobs.train` up to the launch, without the seconds that a Ray takes to start."""
    node = {"Alive": True, "Resources": {"CPU": 1.0}, "NodeID": "1", "NodeName": "n", "NodeManagerAddress": "n",
            "NodeManagerHostname": "h"}  # fmt: skip
    monkeypatch.setattr("cluster.launch.ray_node_checks.ray", SimpleNamespace(nodes=lambda: [node]))
    monkeypatch.setattr("cluster.launch.ray_node_checks._answers", lambda node: True)
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


def test_a_full_disk_stops_a_run_before_it_begins(one_local_node, raw_dataset, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"this machine: 0\.0 GB are free for .+; free some, choose another --run"):
        train.main(["--data", str(raw_dataset.path), "--run", str(tmp_path / "run")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("replaces", [False, True])
def test_a_missing_shard_is_an_error_unless_its_samples_are_replaced(replaces, jpeg_dataset, tmp_path):
    copy = tmp_path / "dataset"
    shutil.copytree(jpeg_dataset.path, copy)
    assert _read_dataset(copy, replaces) == (jpeg_dataset.sha256, "")
    (copy / "train-000001.tar").unlink()
    assert bool(_read_dataset(copy, replaces)[1]) == (not replaces)
    (copy / "manifest" / "train.parquet").unlink()
    assert "manifest/train.parquet" in _read_dataset(copy, True)[1]


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
