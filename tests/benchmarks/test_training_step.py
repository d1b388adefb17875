"""What `benchmarks.training_step` measures on a CPU and on a GPU."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import training_step
from benchmarks.step_process import TORCHVISION, Case, run
from benchmarks.training_step import main, plan
from pipeline.command import InputError
from pipeline.paths import CHECKOUT

BASE = Case(model="alexnet_2012", batch_size=64, num_steps=3)
SMALL = Case(model="alexnet_small", precision="float32", batch_size=2, num_steps=1)
LIMITED = "alexnet_2012, bfloat16, channels last, glibc's own settings"


def _gpu(case):
    return replace(case, device="cuda", batch_size=256, num_steps=50)


@pytest.mark.parametrize("base", [BASE, _gpu(BASE)], ids=["cpu", "cuda"])
@pytest.mark.parametrize("emulates", [False, True])
def test_all_cases_run_on_the_device_and_each_comparison_has_its_cases(base, emulates):
    planned = plan(base, emulates)
    for case in planned.cases.values():
        assert (case.device, case.batch_size, case.num_steps) == (base.device, base.batch_size, base.num_steps)
        assert not (emulates and case.precision == "bfloat16")
    for comparison in planned.comparisons:
        assert {comparison.of, comparison.to} <= planned.cases.keys()


def test_a_cpu_is_measured_without_the_allocators_settings_too_and_a_gpu_as_a_graph():
    on_cpu, on_gpu = plan(BASE, emulates=False), plan(_gpu(BASE), emulates=False)
    assert on_cpu.untuned == {LIMITED} and on_gpu.untuned == frozenset()
    (only_there,) = on_gpu.cases.keys() - on_cpu.cases.keys()
    graphs = [name for name, case in on_gpu.cases.items() if case.cuda_graph]
    assert graphs == [*(name for name, case in on_gpu.cases.items() if case.dropout_alone), only_there]
    assert on_cpu.cases.keys() - on_gpu.cases.keys() == {LIMITED}
    assert not any(case.cuda_graph or case.plain_optimizer for case in on_cpu.cases.values())


def test_on_a_gpu_torchvisions_net_has_torchs_own_choice_of_optimiser_kernels():
    cases = plan(_gpu(BASE), emulates=False).cases.values()
    assert {case.plain_optimizer for case in cases if case.model == TORCHVISION} == {True}
    assert {case.plain_optimizer for case in cases if case.model != TORCHVISION} == {False}


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(training_step, "run_rounds", lambda *_: pytest.fail("it began"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"--device cuda: this machine has no GPU .*; leave it out"):
        main(["--device", "cuda"])


@pytest.mark.slow  # 4 s
def test_a_step_is_timed_in_a_process_of_its_own():
    case = json.dumps({"model": SMALL.model, "precision": SMALL.precision, "batch_size": 2, "num_steps": 1})
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.step_process", case]
    answer = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert {name: value > 0 for name, value in json.loads(answer.stdout).items()} == {
        "milliseconds_per_step": True,
        "peak_megabytes": True,
    }


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [{}, {"cuda_graph": True}, {"dropout_alone": True, "cuda_graph": True}, {"plain_optimizer": True}],
    ids=str,
)
def test_a_step_is_timed_on_a_gpu(changes):
    figures = run(replace(SMALL, device="cuda", **changes))
    assert figures["milliseconds_per_step"] > 0 and figures["peak_megabytes"] > 0
