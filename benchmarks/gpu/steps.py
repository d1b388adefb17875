"""Checks of the training step on noise: its speed in many forms, compiled, and by kernel."""

import functools
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.timing import seconds_per_step, synchronize
from benchmarks.gpu.trial import Trial
from benchmarks.step_process import TORCHVISION, Case, training_step

_OWT, _2012 = (Case(model=name, optimizer="sgd_paper") for name in ("alexnet_owt", "alexnet_2012"))
_TORCHVISION = Case(model=TORCHVISION)
_WITHOUT_LRN = replace(_2012, switches={"normalization": "none"})
_CASES = {  # the most valuable first
    "owt 256": replace(_OWT, batch_size=256),
    "2012 256": replace(_2012, batch_size=256),
    "torchvision 256": replace(_TORCHVISION, batch_size=256),
    "2012 128, the recipe": replace(_2012, batch_size=128),
    "owt 1024": replace(_OWT, batch_size=1024),
    "2012 1024": replace(_2012, batch_size=1024),
    "torchvision 1024": replace(_TORCHVISION, batch_size=1024),
    "2012 256 without LRN": replace(_WITHOUT_LRN, batch_size=256),
    "2012 1024 without LRN": replace(_WITHOUT_LRN, batch_size=1024),
    "2012 256, torch's LRN": replace(_2012, batch_size=256, torch_lrn=True),
    "2012 1024, torch's LRN": replace(_2012, batch_size=1024, torch_lrn=True),
    "owt 256, torch's dropout": replace(_OWT, batch_size=256, torch_dropout=True),
    "owt 1024, torch's dropout": replace(_OWT, batch_size=1024, torch_dropout=True),
    "owt 128": replace(_OWT, batch_size=128),
    "owt 4096": replace(_OWT, batch_size=4096),
    "2012 4096 without LRN": replace(_WITHOUT_LRN, batch_size=4096),
    "owt 256 NCHW": replace(_OWT, batch_size=256, channels_last=False),
    "owt 128, CUDA graph": replace(_OWT, batch_size=128, cuda_graph=True),
    "owt 1024, CUDA graph": replace(_OWT, batch_size=1024, cuda_graph=True),
    "2012 128, CUDA graph": replace(_2012, batch_size=128, cuda_graph=True),
    "bn 1024": Case(model="alexnet_bn", optimizer="lars", batch_size=1024),
    "owt 256 float32": replace(_OWT, batch_size=256, precision="float32"),
}
# Cases repeated while cuDNN tries all its kernels at the first step and keeps the fastest.
_WITH_CUDNN_BENCHMARK = ("owt 256", "2012 256", "owt 1024")
_COMPILED = ("owt 1024", "2012 1024", "owt 256")
_PROFILED = ("2012 256", "owt 256")
_OF_A_DRY_RUN = (
    "owt 256",
    "2012 256",
    "torchvision 256",
    "2012 256, torch's LRN",
    "owt 256, torch's dropout",
    "bn 1024",
)
_DRY_BATCH_SIZES = {"bn 1024": 32}  # one whole group
_SECONDS_OF_A_CASE = 8
_NUM_PROFILED_STEPS, _NUM_LONGEST = 3, 6


def check_step(trial: Trial) -> None:
    """Note images/s of a step of several networks, and what LRN, dropout and memory layout cost."""
    names = _OF_A_DRY_RUN if trial.is_dry else tuple(_CASES)
    cases = {name: functools.partial(_pace, trial, name) for name in names}
    if not trial.is_dry:
        cases |= {
            f"{name}, cuDNN benchmark": functools.partial(_pace, trial, name, tries_kernels=True)
            for name in _WITH_CUDNN_BENCHMARK
        }
    trial.note_cases(cases, _SECONDS_OF_A_CASE)


def check_compile(trial: Trial) -> None:
    """Note the seconds to the first compiled step of two networks, and their images/s after it."""
    names = _COMPILED[:1] if trial.is_dry else _COMPILED
    trial.note_cases({name: functools.partial(_compiled_pace, trial, name) for name in names}, _SECONDS_OF_A_CASE)


def check_profile(trial: Trial) -> None:
    """Note the number of kernels in a step of two networks, and the longest ones; profile.txt has the tables."""
    num_steps = 1 if trial.is_dry else _NUM_PROFILED_STEPS
    activities = [torch.profiler.ProfilerActivity.CPU]
    if not trial.is_dry:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    tables = []
    for name in _PROFILED:
        case = _case(trial, name)
        step = training_step(case)
        for _ in range(num_steps):
            step()
        synchronize()
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(num_steps):
                step()
            synchronize()
        averages = profile.key_averages()
        order = "self_cpu_time_total" if trial.is_dry else "self_device_time_total"
        table = averages.table(sort_by=order, row_limit=35, max_name_column_width=90)
        tables.append(f"{case.model}, batches of {case.batch_size}, {num_steps} steps\n{table}\n")
        (trial.out / "profile.txt").write_text("\n".join(tables))
        kernels = [event for event in averages if event.device_type == torch.autograd.DeviceType.CUDA]
        kernels.sort(key=lambda event: -event.self_device_time_total)
        trial.note(
            name,
            {
                "kernels per step": sum(event.count for event in kernels) / num_steps,
                "milliseconds of the longest kernels": {
                    event.key[:60]: event.self_device_time_total / 1000 / num_steps for event in kernels[:_NUM_LONGEST]
                },
            },
        )


def _case(trial: Trial, name: str) -> Case:
    batch_size = _DRY_BATCH_SIZES.get(name, 4) if trial.is_dry else _CASES[name].batch_size
    return replace(_CASES[name], device=str(trial.device), batch_size=batch_size)


def _pace(trial: Trial, name: str, tries_kernels: bool = False) -> dict[str, float]:
    case = _case(trial, name)
    torch.backends.cudnn.benchmark = tries_kernels
    if not trial.is_dry:
        torch.cuda.init()  # else there are no statistics yet
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_per_step(training_step(case), 0.6 * trial.seconds)
    figures = {"images/s": case.batch_size / seconds, "milliseconds": 1000 * seconds}
    if not trial.is_dry:
        figures["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def _compiled_pace(trial: Trial, name: str) -> dict[str, Any]:
    """Time a compiled step. A dry run does not compile, because that takes a minute on a CPU."""
    case = replace(_case(trial, name), compiled=not trial.is_dry)
    torch.compiler.reset()
    began = time.perf_counter()
    step = training_step(case)
    step()
    synchronize()
    first_step_seconds = time.perf_counter() - began
    seconds = seconds_per_step(step, 0.6 * trial.seconds)
    return {
        "images/s": case.batch_size / seconds,
        "milliseconds": 1000 * seconds,
        "seconds to the first step": first_step_seconds,
    }
