"""Three hosts train, one is cut off and joins again: the run goes on, is proven, and nothing is left of the lab."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from needs import makes_hosts

from cluster.lab import cpu_quota, keeper
from cluster.lab.cpu_quota import remove_orphaned_quotas
from cluster.lab.drill import DrillConfig, _recipe, _train_alone, judge
from cluster.lab.hosts import end_orphans
from cluster.lab.local_ray import environment
from cluster.lab.ray_node import is_alive
from cluster.lab.worker_limits import _TITLE
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import (
    LAUNCHES_JSONL,
    METRICS_JSONL,
    Line,
    Lost,
    Started,
    Steps,
    only,
    read_launches,
    read_metrics,
)
from pipeline.paths import CHECKOUT

pytestmark = [pytest.mark.multinode, pytest.mark.slow, makes_hosts, pytest.mark.timeout(600)]

_HOSTS, _NUM_STEPS, _CPUS = 3, 130, 0.2  # enough steps, and slow ones, for the host to join before the last
_NOTICED_SECONDS = 60.0


class _Commands:
    """Commands for one lab."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str) -> str:
        answer = subprocess.run(self._line(*words), cwd=CHECKOUT, env=environment(), capture_output=True, text=True)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    def refused(self, *words: str) -> str:
        answer = subprocess.run(self._line(*words), cwd=CHECKOUT, env=environment(), capture_output=True, text=True)
        assert answer.returncode == 2 and "Traceback" not in answer.stderr, answer.stdout + answer.stderr
        return answer.stderr

    def submit(self, *command: str, log: Path) -> subprocess.Popen:
        with open(log, "wb") as output:
            words = self._line("submit", "--", *command)
            return subprocess.Popen(words, cwd=CHECKOUT, env=environment(), stdout=output, stderr=subprocess.STDOUT)

    def _line(self, name: str, *words: str) -> list[str]:
        return [sys.executable, "-m", "cluster.lab", name, "--lab", str(self.folder), *words]


def _wait(condition: Callable[[], object], what: str, seconds: float, job: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"waited in vain until {what}: {log.read_text()}"
        time.sleep(0.2)


def _networks(folder: Path) -> list[str]:
    """Return the paths of the hosts' networks, as the keeper has them."""
    return [keeper.ask(folder, "entrance", str(number))["network"] for number in range(1, _HOSTS + 1)]


def _on_hosts(folder: Path) -> dict[psutil.Process, int]:
    """Return the processes on the hosts of a lab, and the numbers of their hosts."""
    networks = {os.stat(path).st_ino: number for number, path in enumerate(_networks(folder), 1)}
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            number = networks.get(os.stat(f"/proc/{process.pid}/ns/net").st_ino)
            if number is not None:
                found[process] = number
    return found


def _to_be_cut(folder: Path, log: Path) -> str:
    """Return the host of the first worker, which writes the run's log, or another if that is the head."""
    (number,) = (n for p, n in _on_hosts(folder).items() if str(log) in {file.path for file in p.open_files()})
    return str(max(2, number))


def _limited() -> list[int]:
    """Return the processes in the groups of all labs."""
    parent, _ = cpu_quota._parent()
    files = parent.glob(f"{cpu_quota._PREFIX}*/cgroup.procs")
    return [int(line) for file in files for line in file.read_text().split()]


def test_a_run_outlives_a_cut_and_a_killed_keeper_leaves_nothing(raw_dataset, tmp_path):
    commands, run, log = _Commands(tmp_path / "lab"), tmp_path / "run", tmp_path / "job.log"
    recipe = _recipe(DrillConfig(checkpoint_interval=5), raw_dataset, _NUM_STEPS)
    train = ["python", str(CHECKOUT / "jobs" / "train.py"), "--data", str(raw_dataset.path), "--run", str(run)]
    reference = tmp_path / "undisturbed"
    options = ["--data", str(raw_dataset.path), "--run", str(reference), *recipe]
    alone = options, tmp_path / "undisturbed.log", time.monotonic() + 480
    assert "3 hosts are up" in commands(
        "up", "--hosts", "3", "--cpus", str(_CPUS), "--bandwidth", "1gbit", "--no-check"
    )
    with contextlib.ExitStack() as stack:
        stack.callback(commands, "down")
        assert "host 1 is Ray's head" in commands.refused("cut", "1")
        assert "there is no host 4; the lab has the hosts 1 to 3" in commands.refused("kill", "4")
        assert "a lab is up already" in commands.refused("up")
        job = commands.submit(*train, "--workers", "1:3", "--exchange", "allreduce", *recipe, log=log)

        def metrics() -> list[Line]:
            return read_metrics(run / METRICS_JSONL)

        def world_sizes() -> list[int]:
            return [start.world_size for start in only(Started, metrics())]

        def has_stepped(world_size: int) -> bool:
            starts, steps = only(Started, metrics()), only(Steps, metrics())
            return bool(starts and steps) and starts[-1].world_size == world_size and steps[-1].time > starts[-1].time

        _wait(lambda: has_stepped(_HOSTS), "three workers train", 120, job, log)
        _wait(lambda: "0.0 s" not in commands("status"), "the limits hold", 30, job, log)
        titles = {process.pid: " ".join(process.cmdline()) for process in _on_hosts(commands.folder)}
        workers = {process_id for process_id, title in titles.items() if _TITLE in title}
        assert len(workers) == _HOSTS and workers <= set(_limited())
        assert not any("raylet" in titles.get(process_id, "") for process_id in _limited())

        threads = stack.enter_context(ThreadPoolExecutor())
        undisturbed = threads.submit(_train_alone, *alone)  # while the cut one waits
        other = _to_be_cut(commands.folder, run / METRICS_JSONL)
        assert commands("cut", other) == f"host {other} is cut off\n"
        cut = time.time()
        assert "is cut off already" in commands.refused("cut", other)
        _wait(lambda: only(Lost, read_launches(run / LAUNCHES_JSONL)), "the cut is noticed", 90, job, log)
        noticed = only(Lost, read_launches(run / LAUNCHES_JSONL))[0].time - cut
        assert noticed < _NOTICED_SECONDS
        _wait(lambda: has_stepped(_HOSTS - 1), "two workers train", 120, job, log)
        assert "cut off, missed" in commands("status")
        assert commands("join", other) == f"host {other} has joined\n"
        assert commands("join", other) == f"host {other} is part of the cluster already\n"
        _wait(lambda: has_stepped(_HOSTS), "three workers train again", 120, job, log)
        assert job.wait(180) == 0, log.read_text()
        assert world_sizes() == [3, 2, 3]

        assert commands.submit(sys.executable, "-c", "import sys; sys.exit(7)", log=log).wait(60) == 7, log.read_text()
        assert commands("kill", "3") == "host 3 has lost its power\n"
        assert "no Ray" in commands("status").splitlines()[2]
        left = _on_hosts(commands.folder)
        assert set(left.values()) == {1, 2}
        os.kill(int(Path(_networks(commands.folder)[0]).parts[2]), signal.SIGKILL)  # /proc/KEEPER/fd/...
        assert "no lab is up" in commands.refused("status")
        undisturbed.result()
    assert [process for process in left if is_alive(process)] == []
    assert remove_orphaned_quotas() == [] and end_orphans() == []

    proof, findings = judge(RunFolder.open(reference), RunFolder.open(run))
    assert findings == [] and "without gap" in proof["ledger"]
