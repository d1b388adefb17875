"""Checks of training: the speed of the whole job, what makes the CPU wait for the GPU, and evaluation."""

import functools
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.aims import WAITS, WATCHED_TRAINING
from benchmarks.gpu.timing import synchronize
from benchmarks.gpu.trainers import ENDLESS, Enough, make_run, open_trainer, train_until
from benchmarks.gpu.trial import Failed, Trial
from cluster.run.run_log import METRICS_JSONL, Steps, only, read_metrics
from cluster.worker.evaluation import Crops, Evaluation, evaluate
from cluster.worker.precision import place
from cluster.worker.world import World
from model.registry import build_network
from pipeline.dataset import Dataset
from pipeline.paths import CHECKOUT

# name -> recipe, encoding, batch size, further options; the most valuable first
_JOBS: dict[str, tuple[str, str, int, list[str]]] = {
    "2012 256, jpeg, decode auto, no cache": (
        "krizhevsky_2012",
        "jpeg",
        256,
        ["--decode", "auto", "--cache", "none"],
    ),
    "2012 256, jpeg, defaults": ("krizhevsky_2012", "jpeg", 256, []),
    "owt 1024, raw, no cache": ("torchvision_owt", "raw", 1024, ["--cache", "none"]),
}
_DRY_JOBS = {"small 8, jpeg": ("small_demo", "jpeg", 8, ["--augmentation.crop-size", "32"])}
_SECONDS_OF_A_JOB, _SECONDS_TO_STOP = 14, 20
_NUM_LARGE_STEPS = 2
_WATCHED_STEPS = (11, 19)  # between two lines of the log, because writing a line waits for the GPU
_LARGEST_LOSS_DIFFERENCE = 0.01


def check_train(trial: Trial) -> None:
    """Run jobs/train.py; note its images/s and the fraction of the time that it waits for data."""
    jobs = _DRY_JOBS if trial.is_dry else _JOBS
    cases = {name: functools.partial(_run_job, trial, *job) for name, job in jobs.items()}
    trial.note_cases(cases, _SECONDS_OF_A_JOB)


def _run_job(
    trial: Trial,
    recipe: str,
    encoding: str,
    batch_size: int,
    options: list[str],
) -> dict[str, Any]:
    """Train for a while and stop by SIGTERM; return the medians of the later lines of the log."""
    run = Path(tempfile.mkdtemp(dir=trial.scratch))
    endless = [word for name, value in ENDLESS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "jobs/train.py", "--launcher", "alone", "--data", str(trial.data / encoding)]
    command += ["--run", str(run / "run"), "--recipe", recipe, "--global-batch-size", str(batch_size)]
    process = subprocess.Popen([*command, *endless, *options], cwd=CHECKOUT)
    log, ending = run / "run" / METRICS_JSONL, time.monotonic() + _SECONDS_OF_A_JOB
    while process.poll() is None and (not _lines(log) if trial.is_dry else time.monotonic() < ending):
        time.sleep(0.2)
    if process.poll() is not None:
        raise Failed(f"it ended by itself with status {process.returncode}; see log.txt")
    began = time.monotonic()
    process.terminate()
    try:
        status: int | str = process.wait(_SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        status = "did not stop"
    seconds_to_stop, lines = time.monotonic() - began, _lines(log)
    shutil.rmtree(run)  # its last checkpoint is large
    if not lines:
        raise Failed(f"no step was made in {_SECONDS_OF_A_JOB} s; see log.txt")
    later = lines[len(lines) // 3 :]
    return {
        "images/s": statistics.median(line.images_per_second for line in later),
        "data wait fraction": statistics.median(line.data_wait_fraction for line in later),
        "loss": later[-1].loss,
        "steps": lines[-1].step,
        "status": status,
        "seconds to stop": seconds_to_stop,
    }


def _lines(log: Path) -> list[Steps]:
    return only(Steps, read_metrics(log))


def check_sync(trial: Trial) -> None:
    """Note which lines of a training step make the CPU wait for the GPU, by torch's warnings."""
    dataset = trial.dataset("jpeg")
    run = make_run(trial, dataset, "krizhevsky_2012", global_batch_size=4 if trial.is_dry else 64, **ENDLESS)
    first, last = (1, 2) if trial.is_dry else _WATCHED_STEPS

    def watch(num_steps: int) -> None:
        if not trial.is_dry and num_steps in (first, last):
            torch.cuda.set_sync_debug_mode("warn" if num_steps == first else "default")
        if num_steps == last:
            raise Enough

    with warnings.catch_warnings(record=True) as caught, open_trainer(trial, dataset, run) as trainer:
        warnings.simplefilter("always")
        train_until(trainer, watch)
    waits = [warning for warning in caught if "synchroniz" in str(warning.message)]
    lines = Counter("/".join(Path(warning.filename).parts[-2:]) + f":{warning.lineno}" for warning in waits)
    trial.add_rounds({WATCHED_TRAINING: {WAITS: [len(waits) / (last - first)]}})
    trial.note("waits per step, by line", {line: count / (last - first) for line, count in lines.most_common(12)})
    trial.note("loss", _lines(run.metrics_path)[-1].loss)


def check_memory(trial: Trial) -> None:
    """Train with batches of 32,768 in micro-batches; note the memory on the device and the images/s."""
    batch_size, micro_batch_size = (64, 32) if trial.is_dry else (32_768, 1024)
    dataset = trial.dataset("jpeg")
    run = make_run(trial, dataset, "bn_lars_32k", global_batch_size=batch_size, **ENDLESS)
    num_steps, moments = _NUM_LARGE_STEPS, []

    def watch(done: int) -> None:
        synchronize()
        moments.append(time.perf_counter())
        if done == num_steps:
            if not trial.is_dry:
                free, total = torch.cuda.mem_get_info()
                trial.note("peak GiB of torch's tensors", torch.cuda.max_memory_allocated() / 2**30)
                trial.note("GiB in use on the card, DALI's included", (total - free) / 2**30)
                trial.note("GiB of the card", total / 2**30)
            raise Enough

    with open_trainer(trial, dataset, run, micro_batch_size=micro_batch_size) as trainer:
        train_until(trainer, watch)
    trial.note("images/s", batch_size * (num_steps - 1) / (moments[-1] - moments[0]))


def check_evaluate(trial: Trial) -> None:
    """Compare a model's losses on the GPU with the CPU's; note pictures/s with one crop and with ten."""
    dataset = trial.dataset("jpeg")
    cpu = torch.device("cpu")
    expected = _evaluate(trial, dataset, cpu, "float32", "centre")
    found = _evaluate(trial, dataset, trial.device, "float32", "centre")
    apart = float(np.abs(found.losses_N - expected.losses_N).max())
    trial.note("largest difference of a loss", apart)
    trial.note("fraction of equal predictions", float((found.predicted_N == expected.predicted_N).mean()))
    if not trial.is_dry:
        _evaluate(trial, dataset, trial.device, "float32", "ten")
        _evaluate(trial, dataset, trial.device, "bfloat16", "centre")
        _evaluate(trial, dataset, trial.device, "bfloat16", "ten")
    if not apart < _LARGEST_LOSS_DIFFERENCE:
        raise Failed(f"a loss on the GPU differs from the CPU's by {apart:.3g}, not below {_LARGEST_LOSS_DIFFERENCE}")


def _evaluate(trial: Trial, dataset: Dataset, device: torch.device, precision: str, crops: Crops) -> Evaluation:
    run = make_run(trial, dataset, "krizhevsky_2012", precision=precision, decode="cpu")
    network = build_network(run.config.model, num_classes=dataset.num_classes, seed=0)
    model = place(network, run.config.precision, device)
    began = time.perf_counter()
    result = evaluate(model, dataset, "val", World(0, 1, device), run, crops)
    assert result is not None  # it was not asked to stop
    figures = {
        "pictures/s with the start": result.num_samples / (time.perf_counter() - began),
        "loss": float(result.losses_N.mean()),
    }
    trial.note(f"{'CPU' if device.type == 'cpu' else 'GPU'} {precision}, {crops}", figures)
    return result
