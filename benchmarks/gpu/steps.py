"""Checks of the training step on noise: its speed in many forms, compiled, and by kernel."""

import functools
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu import aims
from benchmarks.gpu.timing import seconds_per_step, synchronize
from benchmarks.gpu.trial import Measure, Trial
from benchmarks.step_process import TORCHVISION, Case, dropout_step, training_step

_OWT, _2012 = (
    Case(model=name, optimizer="sgd_paper", batch_size=aims.BATCH_SIZE) for name in ("alexnet_owt", "alexnet_2012")
)
_TORCHVISION = Case(model=TORCHVISION, plain_optimizer=True, batch_size=aims.BATCH_SIZE)
_WITHOUT_LRN = replace(_2012, switches={"normalization": "none"})
_ALTERNATIVES = {  # measured in interleaved rounds
    aims.STEP: _2012,
    aims.STEP_WITHOUT_LRN: _WITHOUT_LRN,
    aims.STEP_TORCH_LRN: replace(_2012, torch_lrn=True),
    aims.DROPOUT: replace(_2012, dropout_alone=True, cuda_graph=True),
    aims.DROPOUT_LAUNCHED: replace(_2012, dropout_alone=True),
    aims.OWT_STEP: _OWT,
    aims.TORCHVISION_STEP: _TORCHVISION,
}
_CASES = {  # measured once, the most valuable first
    "2012 128, the recipe": replace(_2012, batch_size=128),
    "owt 1024": replace(_OWT, batch_size=1024),
    "2012 1024": replace(_2012, batch_size=1024),
    "torchvision 1024": replace(_TORCHVISION, batch_size=1024),
    "2012 1024 without LRN": replace(_WITHOUT_LRN, batch_size=1024),
    "2012 1024, torch's LRN": replace(_2012, batch_size=1024, torch_lrn=True),
    "owt 256, torch's dropout": replace(_OWT, torch_dropout=True),
    "owt 1024, torch's dropout": replace(_OWT, batch_size=1024, torch_dropout=True),
    "owt 128": replace(_OWT, batch_size=128),
    "owt 4096": replace(_OWT, batch_size=4096),
    "2012 4096 without LRN": replace(_WITHOUT_LRN, batch_size=4096),
    "owt 256 NCHW": replace(_OWT, channels_last=False),
    "owt 128, CUDA graph": replace(_OWT, batch_size=128, cuda_graph=True),
    "owt 1024, CUDA graph": replace(_OWT, batch_size=1024, cuda_graph=True),
    "2012 128, CUDA graph": replace(_2012, batch_size=128, cuda_graph=True),
    "bn 1024": Case(model="alexnet_bn", optimizer="lars", batch_size=1024),
    "owt 256 float32": replace(_OWT, precision="float32"),
}
# Cases repeated while cuDNN tries all its kernels at the first step and keeps the fastest.
_WITH_CUDNN_BENCHMARK = {"2012 256": _2012, "owt 256": _OWT, "owt 1024": _CASES["owt 1024"]}
_COMPILED = {name: _CASES[name] for name in ("owt 1024", "2012 1024")}
_PROFILED = {"2012 256": _2012, "owt 256": _OWT}
_OF_A_DRY_RUN = ("owt 256, torch's dropout",)
_DRY_BATCH_SIZE = 4
_SECONDS_OF_A_CASE = 4
_NUM_PROFILED_STEPS, _NUM_LONGEST = 3, 6


def check_step(trial: Trial) -> None:
    """Note images/s of a step of several networks beside torchvision's and torch's, and what LRN and dropout cost."""
    trial.note_rounds({name: functools.partial(_prepared, trial, case) for name, case in _ALTERNATIVES.items()})
    names = _OF_A_DRY_RUN if trial.is_dry else tuple(_CASES)
    cases = {name: functools.partial(_pace, trial, _CASES[name]) for name in names}
    if not trial.is_dry:
        cases |= {
            f"{name}, cuDNN benchmark": functools.partial(_pace, trial, case, tries_kernels=True)
            for name, case in _WITH_CUDNN_BENCHMARK.items()
        }
    trial.note_cases(cases, _SECONDS_OF_A_CASE)


def check_compile(trial: Trial) -> None:
    """Note the seconds to the first compiled step of two networks, and their images/s after it."""
    names = [*_COMPILED][:1] if trial.is_dry else [*_COMPILED]
    cases = {name: functools.partial(_compiled_pace, trial, _COMPILED[name]) for name in names}
    trial.note_cases(cases, _SECONDS_OF_A_CASE)


def check_profile(trial: Trial) -> None:
    """Note the number of kernels in a step of two networks, and the longest ones; profile.txt has the tables."""
    num_steps = 1 if trial.is_dry else _NUM_PROFILED_STEPS
    activities = [torch.profiler.ProfilerActivity.CPU]
    if not trial.is_dry:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    tables = []
    for name in [*_PROFILED][:1] if trial.is_dry else _PROFILED:
        case = _case(trial, _PROFILED[name])
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


def _case(trial: Trial, case: Case) -> Case:
    case = replace(case, device=str(trial.device))
    return replace(case, batch_size=_DRY_BATCH_SIZE, cuda_graph=False) if trial.is_dry else case


def _prepared(trial: Trial, case: Case) -> Measure:
    """Prepare a step; return the function that measures it for a while."""
    case = _case(trial, case)
    step = dropout_step(case) if case.dropout_alone else training_step(case)

    def measure() -> dict[str, float]:
        seconds = seconds_per_step(step, 0.6 * trial.seconds)
        return {aims.IMAGES: case.batch_size / seconds, aims.MILLISECONDS: 1000 * seconds}

    return measure


def _pace(trial: Trial, case: Case, tries_kernels: bool = False) -> dict[str, float]:
    torch.backends.cudnn.benchmark = tries_kernels
    if not trial.is_dry:
        torch.cuda.init()  # else there are no statistics yet
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    figures = dict(_prepared(trial, case)())
    if not trial.is_dry:
        figures["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def _compiled_pace(trial: Trial, case: Case) -> dict[str, Any]:
    """Time a compiled step. A dry run does not compile, because that takes a minute on a CPU."""
    torch.compiler.reset()
    began = time.perf_counter()
    measure = _prepared(trial, replace(case, compiled=not trial.is_dry))
    measure()
    return {"seconds with the start": time.perf_counter() - began, **measure()}
