"""Runs of the main job for benchmarks, in separate processes: alone, under torchrun, or on Ray."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from benchmarks.record import ROOT
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Steps, only, read_metrics

Launcher = Literal["alone", "torchrun", "Ray"]
_NUM_CORES = len(os.sched_getaffinity(0))


def run_training(launcher: Launcher, num_workers: int, run: Path, options: Sequence[str]) -> RunFolder:
    """Train a run to its end, with the cores of this machine divided evenly; return its folder."""
    options = ["--run", str(run), *options]
    command = [sys.executable, "jobs/train.py", *options, "--launcher", "alone"]
    if launcher == "torchrun":
        torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone"]
        command = [*torchrun, "--nproc-per-node", str(num_workers), "--", "jobs/train.py", *options]
    elif launcher == "Ray":
        share = str(max(1, _NUM_CORES // num_workers) if num_workers <= _NUM_CORES else _NUM_CORES / num_workers)
        command = [*command[:-2], "--workers", str(num_workers), "--cpus-per-worker", share]
    threads = {"OMP_NUM_THREADS": str(max(1, _NUM_CORES // num_workers))}
    subprocess.run(command, cwd=ROOT, env=os.environ | threads, stdout=subprocess.DEVNULL, check=True)
    return RunFolder.open(run)


def losses(run: RunFolder) -> list[float]:
    """Return the loss of each step."""
    return [loss for line in only(Steps, read_metrics(run.metrics_path)) for loss in line.losses]


def images_per_second(run: RunFolder, first_step: int) -> float:
    """Return the speed between the log's line of `first_step` and its last line of steps."""
    lines = only(Steps, read_metrics(run.metrics_path))
    begin = next(line for line in lines if line.step == first_step)
    return (lines[-1].samples_seen - begin.samples_seen) / (lines[-1].time - begin.time)
