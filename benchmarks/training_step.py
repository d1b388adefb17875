"""Time a training step of every variant: memory layout, dtype, compilation; cost of LRN and dropout.

Each figure comes from a separate process (`benchmarks.step_process`). Noise serves as pictures of 1,000 classes; the
update is SGD with momentum. Torchvision's `alexnet` runs in the same rounds. By default the steps run on two cores,
started with the same allocator settings as the commands, except one process without them that shows their effect. With
`--device cuda` they run on a GPU, also as a CUDA graph. A device that emulates bfloat16 is timed in float32 instead.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import torch
import tyro

from benchmarks.gpu.card import describe_card
from benchmarks.record import ROOT, Comparison, publish, record_document, run_rounds
from benchmarks.step_process import TORCHVISION, Case
from cluster.worker.allocator import ALLOCATOR_ENVIRONMENT
from cluster.worker.precision import bfloat16_emulation
from model.variants import VARIANTS
from pipeline.command import InputError, run_command

_QUANTITY, _MEMORY = "milliseconds_per_step", "peak_megabytes"
_STEP = "forward, loss, backward and update of one batch; median of the timed steps of a process"
_MEMORIES = {
    "cpu": "largest resident memory of the process, libraries and weights included",
    "cuda": "largest memory of the tensors on the GPU",
}
_MODES = {
    "float32": {"precision": "float32", "channels_last": False},
    "float32, channels last": {"precision": "float32"},
    "bfloat16, channels last": {},
    "bfloat16, channels last, compiled": {"compiled": True},
}
_MODELS = (*VARIANTS, TORCHVISION)
_BEST, _BEST_WITHOUT = "bfloat16, channels last", "float32, channels last"
_BATCH_SIZES, _STEPS = {"cpu": 64, "cuda": 256}, {"cpu": 3, "cuda": 50}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.training_step`."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Device to measure: two cores, or the first GPU."""
    rounds: int = 3
    """Runs of each alternative."""
    batch_size: int | None = None
    """Samples per step. Default: 64, on a GPU 256."""
    steps: int | None = None
    """Timed steps per process. Default: 3, on a GPU 50."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        cases: Name of an alternative -> its step.
        untuned: Those alternatives that run without the allocator's settings of the commands.
        comparisons: Comparisons of the alternatives.
    """

    cases: Mapping[str, Case]
    untuned: frozenset[str]
    comparisons: Sequence[Comparison]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    on_gpu = arguments.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no GPU that can be used; leave it out to measure the CPU")
    batch_size = arguments.batch_size or _BATCH_SIZES[arguments.device]
    num_steps = arguments.steps or _STEPS[arguments.device]
    emulates = bfloat16_emulation(torch.device(arguments.device)) is not None
    base = Case(model="alexnet_2012", device=arguments.device, batch_size=batch_size, num_steps=num_steps)
    planned = plan(base, emulates)
    alternatives: dict[str, Callable[[], Mapping[str, float]]] = {
        name: partial(_run, case, {} if name in planned.untuned else ALLOCATOR_ENVIRONMENT)
        for name, case in planned.cases.items()
    }
    document = record_document(
        name="training_step_gpu" if on_gpu else "training_step",
        command=f"python -m benchmarks.training_step {'--device cuda ' * on_gpu}--rounds {arguments.rounds} "
        f"--batch-size {batch_size} --steps {num_steps}",
        corpus="noise",
        quantities={_QUANTITY: _STEP, _MEMORY: _MEMORIES[arguments.device]},
        values=run_rounds(alternatives, arguments.rounds),
        comparisons=planned.comparisons,
        packages=["torch", "torchvision", "triton" if on_gpu else "numba"],
    )
    publish(document | ({"card": describe_card()} if on_gpu else {}))
    return 0


def plan(base: Case, emulates: bool) -> Plan:
    """Return what is measured on the device of a case.

    Args:
        base: Case whose device, batch size and number of steps all cases have.
        emulates: True if the device emulates bfloat16, which is left out then.
    """
    on_gpu = base.device == "cuda"
    modes = {name: fields for name, fields in _MODES.items() if not (emulates and name.startswith("bfloat16"))}
    best = _BEST_WITHOUT if emulates else _BEST
    own = replace(base, model="alexnet_2012", **modes[best])
    cases = {
        f"{model}, {mode}": replace(base, model=model, plain_optimizer=on_gpu and model == TORCHVISION, **fields)
        for model in _MODELS
        for mode, fields in modes.items()
    }
    own_name = f"alexnet_2012, {best}"
    no_lrn, torch_lrn = f"alexnet_2012 without LRN, {best}", f"alexnet_2012 with PyTorch's LRN, {best}"
    dropout = {name: f"dropout of {name} alone" for name in ("alexnet_2012", "alexnet_owt")}
    cases |= {
        no_lrn: replace(own, switches={"normalization": "none"}),
        torch_lrn: replace(own, torch_lrn=True),
        # On a GPU, its kernels alone take less time than their launch, which in a step is hidden behind other kernels.
        **{label: replace(own, model=name, dropout_alone=True, cuda_graph=on_gpu) for name, label in dropout.items()},
    }
    # The allocator's settings concern memory of the CPU, a graph one of the GPU's launches.
    other = f"{own_name}, CUDA graph" if on_gpu else f"{own_name}, glibc's own settings"
    cases[other] = replace(own, cuda_graph=on_gpu)
    return Plan(
        cases,
        frozenset() if on_gpu else frozenset([other]),
        [
            Comparison(of=own_name, quantity=_QUANTITY, to=no_lrn, at_most=1.15),
            Comparison(of=torch_lrn, quantity=_QUANTITY, to=no_lrn),
            Comparison(of=own_name, quantity=_MEMORY, to=torch_lrn, at_most=1.0),
            *(
                Comparison(of=label, quantity=_QUANTITY, to=f"{name}, {best}", at_most=0.02)
                for name, label in dropout.items()
            ),
            Comparison(of=other, quantity=_QUANTITY, to=own_name),
            *(
                Comparison(of=f"{model}, {mode}", quantity=_QUANTITY, to=f"{model}, {best}")
                for model in _MODELS
                for mode in modes
                if mode != best
            ),
            *(
                Comparison(of=f"{model}, {best}", quantity=_QUANTITY, to=f"{TORCHVISION}, {best}")
                for model in _MODELS
                if model != TORCHVISION
            ),
        ],
    )


def _run(case: Case, environment: Mapping[str, str]) -> Mapping[str, float]:
    inherited = {name: value for name, value in os.environ.items() if name not in ALLOCATOR_ENVIRONMENT}
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.step_process", json.dumps(asdict(case))],
        env=inherited | environment | {"OMP_NUM_THREADS": str(case.num_threads)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(answer.stdout)
    return figures


if __name__ == "__main__":
    run_command(main)
