"""The doctor's checks of machine, folders and Ray: what they say where all is well, and where it is not."""

import os
import resource
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doctor_findings import Answered, only, verdicts_of

from cluster.run.run_log import LAUNCHES_JSONL
from jobs.checks import machine, places, ray_access
from jobs.checks.findings import findings_of
from jobs.checks.probes import Probe, ProbeError
from pipeline.paths import CHECKOUT
from pipeline.system.clock import ClockState
from pipeline.system.control_group import MemoryLimit
from pipeline.system.file_systems import FileSystem


def test_the_precision_is_that_of_the_trial():
    answer = Answered(precision="float32", reason="this machine's CPU emulates bfloat16")
    found = only(machine.check_precision(answer)).found
    assert "auto is float32 here, since this machine's CPU emulates bfloat16" in found
    assert only(machine.check_processor()).found


def test_a_limit_of_cpu_time_below_the_cpus_is_told(monkeypatch):
    num_cpus = len(os.sched_getaffinity(0))
    monkeypatch.setattr(machine, "cpu_limit", lambda: None)
    assert only(machine.check_cpus()).verdict == "ok"
    monkeypatch.setattr(machine, "cpu_limit", lambda: num_cpus - 0.5)
    finding = only(machine.check_cpus())
    assert finding.verdict == "warning" and f"OMP_NUM_THREADS={max(1, num_cpus - 1)}" in finding.advice


def test_little_memory_is_told(monkeypatch):
    monkeypatch.setattr(machine, "memory_limit", lambda: None)
    monkeypatch.setattr(machine, "_host_memory", lambda: {"MemTotal": 64 * 10**9, "MemAvailable": 60 * 10**9})
    assert "60 GB available of this machine's 64 GB" in only(machine.check_memory()).found
    monkeypatch.setattr(machine, "memory_limit", lambda: MemoryLimit(4 * 10**9, 3 * 10**9))
    finding = only(machine.check_memory())
    assert finding.verdict == "warning" and "1 GB available of the control group's 4 GB" in finding.found


@pytest.mark.skipif(os.geteuid() != 0, reason="root mounts")
def test_little_shared_memory_is_told(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this root may not mount")
    try:
        finding = only(machine.check_shared_memory(0, tmp_path))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert finding.verdict == "warning" and "--shm-size" in finding.advice


def test_absent_shared_memory_is_a_problem(tmp_path):
    assert only(machine.check_shared_memory(0, tmp_path / "shm")).verdict == "problem"
    assert only(machine.check_shared_memory(10**6, tmp_path)).verdict == "warning"


def test_a_limit_of_the_address_space_is_told(monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (3 * 10**9, 3 * 10**9))
    assert "limited to 3 GB" in only(machine.check_address_space()).found
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert list(machine.check_address_space()) == []


def test_a_job_server_that_does_not_answer_is_one_problem(home, monkeypatch):
    def refuse(probe):
        raise ProbeError("no job server answers; start it")

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setattr(Probe, "answer", refuse)
    assert verdicts_of(ray_access.check_ray()) == [("Ray's job server", "problem")]


@pytest.mark.parametrize(
    ("hard", "num_shards", "verdict"), [(500, None, "problem"), (2000, None, "ok"), (2000, 4000, "warning")]
)
def test_few_open_files_are_told(hard, num_shards, verdict):
    script = f"from jobs.checks.machine import check_open_files; print(*check_open_files({num_shards}))"
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard)),
    )
    assert answer.stdout.startswith(verdict), answer
    assert f"{hard:,} files" in answer.stdout


@pytest.mark.parametrize(
    ("state", "verdict"), [(ClockState(True, 0.01), "ok"), (ClockState(False, 16.0), "warning"), (None, "ok")]
)
def test_the_clock_is_as_linux_says(state, verdict, monkeypatch):
    monkeypatch.setattr(machine, "clock_state", lambda: state)
    assert only(machine.check_clock()).verdict == verdict


def test_a_clock_behind_its_own_files_is_a_problem(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 10**9)
    assert only(machine.check_clock()).verdict == "problem"


def test_folders_tell_room_and_permission(tmp_path, monkeypatch):
    finding = only(places.check_folder("here", tmp_path / "not" / "yet"))
    assert finding.verdict == "ok" and "free of" in finding.found
    monkeypatch.setattr(places.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100 * 10**9, 99.9e9, 10**8))
    assert only(places.check_folder("here", tmp_path)).verdict == "warning"
    assert only(places.check_folder("here", tmp_path, is_written=False)).verdict == "ok"
    assert ("temporary folder", "warning") in verdicts_of(places.check_folders())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert only(places.check_folder("here", tmp_path)).verdict == "problem"


def test_a_dataset_is_complete_or_not(jpeg_dataset, tmp_path):
    complete, disk = places.check_data(jpeg_dataset.path)
    assert complete.verdict == disk.verdict == "ok" and jpeg_dataset.sha256 in complete.found
    copy = tmp_path / "copy"
    shutil.copytree(jpeg_dataset.path, copy)
    os.truncate(copy / "train-000000.tar", 100)
    finding = only(places.check_data(copy))
    assert finding.verdict == "problem" and "train-000000.tar" in finding.found
    assert only(findings_of("dataset", lambda: places.check_data(tmp_path / "nowhere"))).verdict == "problem"


@pytest.mark.parametrize(
    ("kind", "verdict"), [("nfs4", "ok"), ("ext4", "ok"), ("tmpfs", "warning"), ("overlay", "warning")]
)
def test_the_file_system_of_a_run_is_told(kind, verdict, tmp_path, monkeypatch):
    monkeypatch.setattr(places, "file_system_of", lambda path: FileSystem(kind, Path("/")))
    begins, _, finding = places.check_run(tmp_path / "run")
    assert "a run would begin there" in begins.found
    assert (finding.verdict, kind in finding.found) == (verdict, True)


def test_what_a_killed_start_leaves_is_room_for_a_run(tmp_path):
    (tmp_path / LAUNCHES_JSONL).touch()
    begins, *_ = places.check_run(tmp_path)
    assert begins.verdict == "ok" and "a run would begin there" in begins.found


def test_what_is_no_run_is_a_problem(tmp_path):
    (tmp_path / "file").touch()
    assert only(places.check_run(tmp_path / "file")).verdict == "problem"
    finding = only(places.check_run(tmp_path))
    assert finding.verdict == "problem" and "holds no run" in finding.found and "empty one" in finding.advice


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder in which no Ray was ever used."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def _token(home: Path, mode: int = 0o600, text: str = "secret") -> None:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize(
    ("mode", "token", "verdict", "said"),
    [
        ("token", (0o600, "secret"), "ok", "only this user can read"),
        ("token", (0o644, "secret"), "warning", "only a folder above"),
        ("token", (0o600, ""), "problem", "is empty"),
        ("token", None, "problem", "does not exist"),
        ("disabled", None, "warning", "can run code on it"),
        ("maybe", None, "warning", "RAY_AUTH_MODE is maybe"),
        (None, (0o600, "secret"), "warning", "RAY_AUTH_MODE is not set"),
        (None, None, "ok", "none is set up"),
    ],
)
def test_ray_s_token_is_looked_at(mode, token, verdict, said, home, monkeypatch):
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if token is not None:
        _token(home, *token)
    finding = only(ray_access.check_authentication())
    assert finding.verdict == verdict and said in finding.found and "secret" not in str(finding)


def test_a_token_that_others_reach_is_a_problem(home, monkeypatch):
    _token(home, 0o644)
    monkeypatch.setattr(ray_access, "_PASSABLE_TO_OTHERS", 0o700)  # as if the folders above were open to all
    finding = only(ray_access.check_authentication())
    assert finding.verdict == "problem" and "other users of this machine can read" in finding.found


def _answer_as(monkeypatch, is_open: bool, **answers: dict | None) -> None:
    """Let the job server's default port be open or not, and probes answer by their names; None: it fails."""

    class Asked:
        def __init__(self, name, *words):
            self.name = name.replace("-", "_")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def answer(self):
            if answers[self.name] is None:
                raise ProbeError("nobody answers; start it")
            return answers[self.name]

    monkeypatch.setattr(ray_access, "_is_open", lambda address: is_open)
    monkeypatch.setattr(ray_access, "Probe", Asked)


@pytest.mark.parametrize(
    ("address", "expected"),
    [(None, ("Ray", "ok")), ("local", ("Ray", "ok")), ("auto", ("Ray cluster", "problem"))],
)
def test_without_a_ray_only_a_named_one_is_missed(address, expected, home, monkeypatch):
    _answer_as(monkeypatch, is_open=False, cluster=None)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert verdicts_of(ray_access.check_ray()) == [expected]


@pytest.mark.parametrize(
    ("is_open", "versions", "of_server"),
    [
        (False, None, []),  # a worker node, or a head without a dashboard or with another port
        (True, {"server": "2.60.0", "here": "2.60.0"}, [("Ray's job server", "ok")]),
        (True, None, [("Ray's job server", "warning")]),  # another program has the port
    ],
)
def test_a_ray_of_this_machine_is_found_by_joining_it(is_open, versions, of_server, home, monkeypatch):
    _answer_as(monkeypatch, is_open, cluster={"clocks": []}, job_server=versions)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert verdicts_of(ray_access.check_ray()) == [*of_server, ("Ray cluster", "ok")]


def _clock(offset: float | None, uncertainty: float = 0.01) -> dict:
    return {"node": "b (10.0.0.2)", "offset_seconds": offset, "uncertainty_seconds": uncertainty}


@pytest.mark.parametrize(
    ("clocks", "expected"),
    [
        ([_clock(0.2), _clock(-0.3)], [("Ray cluster", "ok"), ("clocks", "ok")]),
        ([_clock(0.0), _clock(-90.0)], [("Ray cluster", "ok"), ("clocks", "warning")]),
        ([_clock(2.0, 3.0)], [("Ray cluster", "ok")]),  # the answer took so long that nothing is known
        ([_clock(None), _clock(0.0)], [("Ray cluster", "ok"), ("Ray cluster", "problem"), ("clocks", "ok")]),
    ],
)
def test_the_clocks_of_a_cluster_are_compared(clocks, expected):
    assert verdicts_of(ray_access._check_cluster("10.0.0.1:6379", Answered(clocks=clocks))) == expected


@pytest.mark.parametrize(
    ("there", "verdict"), [("2.60.0", "ok"), ("2.60.9", "ok"), ("2.59.0", "warning"), (None, "ok")]
)
def test_another_ray_at_the_job_server_is_told(there, verdict):
    answer = Answered(server=there, here="2.60.0")
    assert only(ray_access._check_job_server("http://head:8265", answer, is_named=True)).verdict == verdict
