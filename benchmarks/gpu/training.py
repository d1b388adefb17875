"""Checks of training: the speed of the whole job, what makes the CPU wait for the GPU, and evaluation."""

import dataclasses
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.gpu.trial import Failed, Trial
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import METRICS_JSONL, Steps, only, read_metrics
from cluster.worker.evaluation import Crops, Evaluation, evaluate
from cluster.worker.training import Trainer
from cluster.worker.world import World
from jobs.recipes import get_recipe
from model.alexnet import build_model
from pipeline.dataset import Dataset
from pipeline.paths import CHECKOUT

# A run that only trains: it is never evaluated, saved or given up.
_ENDLESS = {
    "num_epochs": 100_000.0,
    "stuck_after_epochs": 1e6,
    "evaluations_per_epoch": 1e-5,
    "checkpoint_interval": 1_000_000,
}
# name -> recipe, encoding, batch size, further options; the most valuable first
_JOBS: dict[str, tuple[str, str, int, list[str]]] = {
    "owt 256, jpeg mixed": ("torchvision_owt", "jpeg", 256, []),
    "owt 256, jpeg decoded by the CPU": ("torchvision_owt", "jpeg", 256, ["--decode", "cpu"]),
    "2012 128, jpeg mixed, the recipe": ("krizhevsky_2012", "jpeg", 128, []),
    "owt 1024, raw": ("torchvision_owt", "raw", 1024, []),
    "owt 1024, jpeg decoded by the CPU": ("torchvision_owt", "jpeg", 1024, ["--decode", "cpu"]),
    "owt 1024, no data": ("torchvision_owt", "jpeg", 1024, ["--synthetic-data"]),
}
_WITH_EARLY_SWITCH = "owt 1024, raw"
# By default Python's lock passes from the loader's thread to the one that launches kernels after 5 ms, which is as
# long as some steps.
_EARLY_SWITCH = "import sys; sys.setswitchinterval(0.0002)\n"
_DRY_JOBS = {"small 8, jpeg": ("small_demo", "jpeg", 8, ["--augmentation.crop-size", "32"])}
_SECONDS_OF_A_JOB, _SECONDS_TO_STOP = 16, 20
_WATCHED_STEPS = (11, 19)  # between two lines of the log, because writing a line waits for the GPU
_LARGEST_LOSS_DIFFERENCE = 0.01


def check_train(trial: Trial) -> None:
    """Run jobs/train.py; note its images/s and the fraction of the time that it waits for data."""
    jobs = _DRY_JOBS if trial.is_dry else _JOBS
    cases = {name: functools.partial(_run_job, trial, *job) for name, job in jobs.items()}
    early = next(iter(jobs)) if trial.is_dry else _WITH_EARLY_SWITCH
    cases[f"{early}, Python's lock passed early"] = functools.partial(
        _run_job, trial, *jobs[early], environment=_with_early_switch(trial)
    )
    trial.note_cases(cases, _SECONDS_OF_A_JOB + _SECONDS_TO_STOP / 2)


def _with_early_switch(trial: Trial) -> dict[str, str]:
    """Return environment variables that make a Python process pass its lock on early."""
    folder = trial.scratch / "early-switch"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_EARLY_SWITCH)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def _run_job(
    trial: Trial,
    recipe: str,
    encoding: str,
    batch_size: int,
    options: list[str],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Train for a while and stop by SIGTERM; return the medians of the later lines of the log."""
    run = Path(tempfile.mkdtemp(dir=trial.scratch))
    endless = [word for name, value in _ENDLESS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "jobs/train.py", "--launcher", "alone", "--data", str(trial.data / encoding)]
    command += ["--run", str(run / "run"), "--recipe", recipe, "--global-batch-size", str(batch_size)]
    process = subprocess.Popen([*command, *endless, *options], cwd=CHECKOUT, env=os.environ | environment)
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


class _Enough(Exception):
    """All steps to watch are done."""


def check_sync(trial: Trial) -> None:
    """Note which lines of a training step make the CPU wait for the GPU, by torch's warnings."""
    dataset = trial.dataset("jpeg")
    batch_size = 4 if trial.is_dry else 64
    run = _make_run(trial, dataset, "krizhevsky_2012", global_batch_size=batch_size, **_ENDLESS)
    first, last = (1, 2) if trial.is_dry else _WATCHED_STEPS
    num_steps = 0

    def watch(*_: object) -> None:
        nonlocal num_steps
        num_steps += 1
        if not trial.is_dry and num_steps in (first, last):
            torch.cuda.set_sync_debug_mode("warn" if num_steps == first else "default")
        if num_steps == last:
            raise _Enough

    trainer = Trainer(dataset, run, World(0, 1, trial.device))
    hook = register_optimizer_step_post_hook(watch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.run()
        except _Enough:
            pass
        finally:
            hook.remove()
            trainer.close()
    waits = [warning for warning in caught if "synchroniz" in str(warning.message)]
    lines = Counter("/".join(Path(warning.filename).parts[-2:]) + f":{warning.lineno}" for warning in waits)
    trial.note("waits per step", len(waits) / (last - first))
    trial.note("waits per step, by line", {line: count / (last - first) for line, count in lines.most_common(12)})
    trial.note("loss", _lines(run.metrics_path)[-1].loss)


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
    run = _make_run(trial, dataset, "krizhevsky_2012", precision=precision, decode="cpu")
    model = build_model(**dataclasses.asdict(run.config.model), num_classes=dataset.num_classes, seed=0)
    model.to(device).to(memory_format=torch.channels_last)
    began = time.perf_counter()
    result = evaluate(model, dataset, "val", World(0, 1, device), run, crops)
    assert result is not None  # it was not asked to stop
    figures = {
        "pictures/s with the start": result.num_samples / (time.perf_counter() - began),
        "loss": float(result.losses_N.mean()),
    }
    trial.note(f"{'CPU' if device.type == 'cpu' else 'GPU'} {precision}, {crops}", figures)
    return result


def _make_run(trial: Trial, dataset: Dataset, recipe: str, **changes: Any) -> RunFolder:
    config = dataclasses.replace(get_recipe(recipe), **changes)
    if config.precision == "auto":
        config = dataclasses.replace(config, precision="float32" if trial.is_dry else "bfloat16")
    return RunFolder.create(Path(tempfile.mkdtemp(dir=trial.scratch)), config, dataset)
