"""Measure the stages of the loader on a dataset, each alone and all together, and name the slowest one.

    python -m pipeline.bench DATASET
    python -m pipeline.bench DATASET --seconds 2 --json figures.json

The stages are `read` (bytes, checked against their hash, in the order of training), `parameters` (drawing order and
augmentation), `decode` (JPEG to pixels, and resizing of whole pictures; raw pixels are copied) and `augment` (crop,
mirror and normalisation of decoded pixels). `full` is the training loader. Two upper bounds are measured as well: the
JPEG library alone at its fastest settings, and copying the pixels of the crops into a float32 batch. `read` and
`parameters` use one core, the others as many as there are threads.

With `--device gpu`, the batches are made on the GPU, which decodes too. Instead of the two upper bounds, `decode cpu`
lets the CPU alone decode and copies the pixels to the GPU, and `PCIe copy` copies pixels that are ready in the host's
pinned memory.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from pipeline.bench_stages import FULL, OF_ONE_CORE, OF_THE_GPU, STAGES, Stages, Step
from pipeline.command import InputError, run_command
from pipeline.dataset import Dataset
from pipeline.json_answer import JsonTarget, completed, json_answer
from pipeline.online.batch import Device
from pipeline.system.processor import this_processor

_WARM_UP_STEPS = 4  # the batches that DALI works on at once, and a few more


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m pipeline.bench`."""

    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Dataset folder; its training pictures are read."""
    device: Device = "cpu"
    """Device that makes the batches: `cpu`, or the first `gpu`."""
    batch_size: int = 128
    """Pictures per batch."""
    threads: int = len(os.sched_getaffinity(0))
    """Number of DALI's threads, and of threads that measure the upper bounds."""
    seconds: float = 5.0
    """Duration of one measurement."""
    json: JsonTarget = None
    """File to write the figures to as JSON; without a file, standard output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=completed(argv), description=__doc__)
    _check(arguments)
    wait = _gpu_wait() if arguments.device == "gpu" else _no_wait
    dataset = Dataset.open(arguments.dataset)
    rates = {}
    with json_answer(arguments.json, dataset.path) as answer:
        for stage, step in Stages(dataset, arguments.batch_size, arguments.threads, arguments.device).steps():
            rates[stage] = _images_per_second(step, arguments.batch_size, arguments.seconds, wait)
            sys.stderr.write(f"{stage}: {rates[stage]:,.0f} images/s\n")
        document = figures(dataset, arguments, rates)
        answer(document)
        sys.stdout.write(table(document))
    return 0


def binding_stage(rates: Mapping[str, float]) -> str:
    """Return the slowest of the single stages; other measurements do not count."""
    return min(STAGES, key=lambda stage: rates[stage])


def figures(dataset: Dataset, arguments: Arguments, rates: Mapping[str, float]) -> dict[str, Any]:
    """Return all figures, in images per second, as the document that `--json` writes."""
    cores = min(arguments.threads, len(os.sched_getaffinity(0)))
    binding, on_gpu = binding_stage(rates), arguments.device == "gpu"
    return {
        "processor": f"{_gpu_name()}, {this_processor()}" if on_gpu else str(this_processor()),
        "dataset_sha256": dataset.sha256,
        "encoding": dataset.encoding,
        "batch_size": arguments.batch_size,
        "threads": arguments.threads,
        "stages": {
            stage: {
                "images_per_second": rate,
                "cores": 1 if stage in OF_ONE_CORE else 0 if on_gpu and stage in OF_THE_GPU else cores,
            }
            for stage, rate in rates.items()
        },
        "binding_stage": binding,
        "full_of_binding_stage": rates[FULL] / rates[binding],
    }


def table(document: Mapping[str, Any]) -> str:
    """Return the processor, the figures as aligned text, and which stage binds."""
    rows = [("", "images/s", "cores", "per core")]
    for stage, measured in document["stages"].items():
        rate, cores = measured["images_per_second"], measured["cores"]
        rows.append((stage, f"{rate:,.0f}", str(cores or "-"), f"{rate / cores:,.0f}" if cores else "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    binding = document["binding_stage"]
    alone = document["stages"][binding]["images_per_second"]
    lines.append(
        f"{binding} binds: alone it reaches {alone:,.0f} images/s, the full loader "
        f"{document['full_of_binding_stage']:.0%} of that"
    )
    return "\n".join([document["processor"], *lines]) + "\n"


def _check(arguments: Arguments) -> None:
    """Raise InputError for arguments that allow no measurement."""
    for name in ("batch_size", "threads"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be at least 1")
    if not 0 < arguments.seconds < float("inf"):
        raise InputError(f"--seconds is {arguments.seconds}; it must be above 0")


def _no_wait() -> None:
    """Return at once: a CPU's step is done when it returns."""


def _gpu_wait() -> Callable[[], None]:
    """Return the function that waits for all work queued on the GPU.

    Raises:
        InputError: There is no GPU.
    """
    import torch  # here: measurements on a CPU do without it

    if not torch.cuda.is_available():
        raise InputError("--device gpu: this machine has no GPU that can be used; leave it out to measure the CPU")
    return torch.cuda.synchronize


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name(0)


def _images_per_second(step: Step, batch_size: int, seconds: float, wait: Callable[[], None] = _no_wait) -> float:
    """Return the speed of a step that makes a batch, by the wall clock after a warm-up.

    Args:
        step: Step to repeat.
        batch_size: Pictures that it makes.
        seconds: Least duration of the measurement.
        wait: Function that waits for what the steps have queued.
    """
    for _ in range(_WARM_UP_STEPS):
        step()
    wait()
    num_images, elapsed, began = 0, 0.0, time.perf_counter()
    while elapsed < seconds:
        step()
        num_images += batch_size
        elapsed = time.perf_counter() - began
    wait()
    return num_images / (time.perf_counter() - began)


if __name__ == "__main__":
    run_command(main)
