"""Limits of CPU time: held by the kernel, written in both versions, and removed after a kill."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.lab import cpu_quota as cpu_quota_module
from cluster.lab.cpu_quota import CpuQuota, cpu_quota, remove_orphaned_quotas
from cluster.lab.ray_lab import LabConfig
from cluster.scaling.experiment import Experiment
from pipeline.command import InputError
from pipeline.paths import CHECKOUT

_BUSY = [sys.executable, "-c", "while True: pass"]


def _missing() -> str | None:
    try:
        CpuQuota("probe", 0.5).close()
    except InputError as error:
        return str(error)
    return None


_MISSING = _missing()
limits_cpus = pytest.mark.skipif(_MISSING is not None, reason=_MISSING or "")


def _cpu_seconds(process: subprocess.Popen) -> float:
    words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@limits_cpus
def test_a_busy_process_is_held_up_and_free_afterwards():
    busy = subprocess.Popen(_BUSY)
    try:
        with cpu_quota("busy", 0.1) as quota:
            quota.add(busy.pid)
            assert quota.process_ids() == [busy.pid]
            before, throttled, began = _cpu_seconds(busy), quota.throttled_seconds(), time.monotonic()
            while quota.throttled_seconds() < throttled + 0.5:
                assert time.monotonic() < began + 30
                time.sleep(0.05)
            assert _cpu_seconds(busy) - before < 0.1 * (time.monotonic() - began) + 0.05
            quota.limit(1.0)
        assert not quota._folder.exists() and busy.poll() is None
    finally:
        busy.kill()
        busy.wait()


@limits_cpus
def test_a_process_that_has_ended_is_passed_over():
    ended = subprocess.Popen(["true"])
    ended.wait()
    with cpu_quota("ended", 0.5) as quota:
        quota.add(ended.pid)
        assert quota.process_ids() == []


_OWNER = """
import subprocess, sys, time
from cluster.lab.cpu_quota import CpuQuota
quota = CpuQuota("killed", 0.5)
sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.DEVNULL)
quota.add(sleeper.pid)
print(quota._folder, sleeper.pid, flush=True)
time.sleep(600)
"""


@limits_cpus
def test_a_group_whose_owner_was_killed_is_removed_and_its_processes_are_free():
    owner = subprocess.Popen([sys.executable, "-c", _OWNER], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    folder, sleeper = owner.stdout.readline().split()
    owner.stdout.close()
    try:
        with cpu_quota("of another owner", 0.5):
            assert Path(folder).exists()  # its owner lives
        owner.kill()
        owner.wait()
        assert Path(folder).exists()
        assert Path(folder).name in remove_orphaned_quotas()
        assert not Path(folder).exists()
        assert Path(f"/proc/{sleeper}").exists()
    finally:
        owner.kill()
        owner.wait()
        os.kill(int(sleeper), 9)


def _pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str) -> Path:
    root = tmp_path / "cgroup"
    root.mkdir()
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(cpu_quota_module, "_ROOT", root)
    monkeypatch.setattr(cpu_quota_module, "_OWN", tmp_path / "own")
    return root


def test_version_2_is_written_as_the_kernel_reads_it(tmp_path, monkeypatch):
    root = _pretend(tmp_path, monkeypatch, "0::/user.slice\n")
    (root / "cgroup.controllers").write_text("cpuset cpu io\n")
    quota = CpuQuota("v2", 0.4)
    (folder,) = (path for path in root.iterdir() if path.is_dir())
    assert (root / "cgroup.subtree_control").read_text() == "+cpu"
    assert (folder / "cpu.max").read_text() == "4000 10000"
    quota.add(7)
    assert (folder / "cgroup.procs").read_text() == "7"
    (folder / "cpu.stat").write_text("usage_usec 9\nnr_throttled 2\nthrottled_usec 1500000\n")
    assert quota.throttled_seconds() == 1.5
    quota.limit(None)
    assert (folder / "cpu.max").read_text() == "max 10000"


@pytest.mark.parametrize(
    ("path", "folder"), [("/", "cpu"), ("/mine", "cpu/mine"), ("/docker/0123456789", "cpu")], ids=lambda path: path
)
def test_version_1_is_written_beside_this_process_or_in_the_containers_part(path, folder, tmp_path, monkeypatch):
    root = _pretend(tmp_path, monkeypatch, f"4:memory:/other\n1:cpu:{path}\n0::/\n")
    (root / "cpu" / "mine").mkdir(parents=True)
    for parent in (root / "cpu", root / "cpu" / "mine"):
        (parent / "cgroup.procs").touch()
    quota = CpuQuota("v1", 1.5)
    assert quota._folder.parent == root / folder
    assert (quota._folder / "cpu.cfs_period_us").read_text() == "10000"
    assert (quota._folder / "cpu.cfs_quota_us").read_text() == "15000"
    (quota._folder / "cpu.stat").write_text("nr_periods 3\nnr_throttled 2\nthrottled_time 2500000000\n")
    assert quota.throttled_seconds() == 2.5
    quota.limit(None)  # a container's limit may be below the number of CPUs, so no number is right
    assert (quota._folder / "cpu.cfs_quota_us").read_text() == "-1"


@pytest.mark.parametrize("cpus", [0.05, 0.0, -1.0, math.nan, math.inf])
def test_a_limit_that_the_kernel_can_t_hold_is_refused(cpus, tmp_path, monkeypatch):
    root = _pretend(tmp_path, monkeypatch, "0::/\n")
    (root / "cgroup.controllers").write_text("cpu\n")
    for make in (
        lambda: CpuQuota("refused", cpus),
        lambda: LabConfig(cpus=cpus),
        lambda: Experiment(cpus_per_worker=cpus, batch_sizes_per_worker=(1,)),
    ):
        with pytest.raises(ValueError, match=rf"cpus(_per_worker)?={cpus}: must be at least 0.1, the kernel's least"):
            make()
    assert not [path for path in root.iterdir() if path.is_dir()]
    quota = CpuQuota("least", 0.1)
    assert (quota._folder / "cpu.max").read_text() == "1000 10000"


def test_without_control_groups_it_is_said_what_to_do(tmp_path, monkeypatch):
    _pretend(tmp_path, monkeypatch, "0::/\n")
    with pytest.raises(InputError, match=r"can't be limited here: no control group .*; leave out the limit"):
        CpuQuota("none", 1.0)
    assert remove_orphaned_quotas() == []


def test_groups_that_may_not_be_made_are_told_and_none_is_left(tmp_path, monkeypatch):
    root = _pretend(tmp_path, monkeypatch, "1:cpu:/\n")
    (root / "cpu").mkdir()
    (root / "cpu" / "cgroup.procs").touch()

    def refuse(quota, cpus):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(CpuQuota, "limit", refuse)
    with pytest.raises(InputError, match=r"may not limit CPUs \(.*Permission denied\); run it as root"):
        CpuQuota("refused", 1.0)
    assert [path.name for path in (root / "cpu").iterdir()] == ["cgroup.procs"]
