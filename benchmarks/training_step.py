"""Time a training step of every variant on two cores: memory layout, dtype, compilation; cost of LRN and dropout.

Each figure comes from a separate process (`benchmarks.step_process`), started with the same allocator settings as the
commands, except one process without them that shows their effect. Batches of 64, noise as pictures, 1,000 classes, SGD
with momentum; torchvision's `alexnet` runs in the same rounds. On a processor that emulates bfloat16, float32 is timed
instead.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
import tyro

from benchmarks.record import ROOT, Comparison, publish, record_document, run_rounds
from benchmarks.step_process import TORCHVISION, Case
from cluster.worker.allocator import ALLOCATOR_ENVIRONMENT
from cluster.worker.precision import bfloat16_emulation
from model.variants import VARIANTS
from pipeline.command import run_command

_QUANTITY, _MEMORY = "milliseconds_per_step", "peak_megabytes"
_QUANTITIES = {
    _QUANTITY: "forward, loss, backward and update of one batch; median of the timed steps of a process",
    _MEMORY: "largest resident memory of the process, libraries and weights included",
}
_MODES = {
    "float32": {"precision": "float32", "channels_last": False},
    "float32, channels last": {"precision": "float32"},
    "bfloat16, channels last": {},
    "bfloat16, channels last, compiled": {"compiled": True},
}
_MODELS = (*VARIANTS, TORCHVISION)
_BEST, _BEST_WITHOUT = "bfloat16, channels last", "float32, channels last"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.training_step`."""

    rounds: int = 3
    """Runs of each alternative."""
    batch_size: int = 64
    """Samples per step."""
    steps: int = 3
    """Timed steps per process."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    emulates = bfloat16_emulation(torch.device("cpu")) is not None
    modes = {name: fields for name, fields in _MODES.items() if not (emulates and name.startswith("bfloat16"))}
    best = _BEST_WITHOUT if emulates else _BEST
    base = Case(model="alexnet_2012", **modes[best], batch_size=arguments.batch_size, num_steps=arguments.steps)
    cases = {
        f"{model}, {mode}": replace(base, **{"model": model, "precision": "bfloat16"} | fields)
        for model in _MODELS
        for mode, fields in modes.items()
    }
    no_lrn, torch_lrn = f"alexnet_2012 without LRN, {best}", f"alexnet_2012 with PyTorch's LRN, {best}"
    dropout = {name: f"dropout of {name} alone" for name in ("alexnet_2012", "alexnet_owt")}
    cases |= {
        no_lrn: replace(base, switches={"normalization": "none"}),
        torch_lrn: replace(base, torch_lrn=True),
        **{label: replace(base, model=name, dropout_alone=True) for name, label in dropout.items()},
    }
    untuned = f"alexnet_2012, {best}, glibc's own settings"
    alternatives: dict[str, Callable[[], Mapping[str, float]]] = {
        **{name: partial(_run, case, ALLOCATOR_ENVIRONMENT) for name, case in cases.items()},
        untuned: partial(_run, base, {}),
    }
    own = f"alexnet_2012, {best}"
    publish(
        record_document(
            name="training_step",
            command=f"python -m benchmarks.training_step --rounds {arguments.rounds} --batch-size "
            f"{arguments.batch_size} --steps {arguments.steps}",
            corpus="noise",
            quantities=_QUANTITIES,
            values=run_rounds(alternatives, arguments.rounds),
            comparisons=[
                Comparison(of=own, quantity=_QUANTITY, to=no_lrn, at_most=1.15),
                Comparison(of=torch_lrn, quantity=_QUANTITY, to=no_lrn),
                Comparison(of=own, quantity=_MEMORY, to=torch_lrn, at_most=1.0),
                *(
                    Comparison(of=label, quantity=_QUANTITY, to=f"{name}, {best}", at_most=0.02)
                    for name, label in dropout.items()
                ),
                Comparison(of=untuned, quantity=_QUANTITY, to=own),
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
            packages=["torch", "torchvision", "numba"],
        )
    )
    return 0


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
