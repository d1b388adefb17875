"""Train Fashion-MNIST by each lossy exchange, and set its top-1 on `test` beside the bytes that it sends.

Each run is `small_demo`, shortened, on the same samples in the same order for each exchange; only the seed differs
between rounds. The pictures are evaluated once, by the best model on `val`. Bytes are those of the formulas
(`cluster/exchange/lossy_cost.py`), as a mean over the run, with its beginning by exact gradients. Speed is not
measured, since the workers share one machine.
"""

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import nn

from benchmarks.record import Comparison, publish, record_document, run_rounds
from benchmarks.training_runs import run_training
from cluster.exchange.cost import Workload
from cluster.exchange.lossy_cost import bf16_bytes, local_sgd_bytes, powersgd_bytes
from cluster.run.config import TrainingConfig
from cluster.run.run_folder import RunFolder
from cluster.worker.evaluation_files import RESULT_JSON, evaluate_run
from cluster.worker.world import World
from model.registry import outline_network
from pipeline.command import run_command
from pipeline.dataset import Dataset

_EXACT = "allreduce"
OPTIONS: dict[str, tuple[str, ...]] = {
    _EXACT: (),
    "bf16": ("--gradient-compression", "bf16"),
    "powersgd rank 4": ("--gradient-compression", "powersgd"),
    "powersgd rank 1": ("--gradient-compression", "powersgd", "--powersgd-rank", "1"),
    "local SGD 4": ("--local-sgd-steps", "4"),
    "local SGD 16": ("--local-sgd-steps", "16"),
    "local SGD 16 from half-way": ("--local-sgd-steps", "16", "--local-sgd-start", "0.5"),
}
_QUANTITIES = {
    "test_top1_percent": "of the split `test`, by the best model on `val`; a round is a seed",
    "megabytes_per_step": "that a worker sends, by formula, as a mean over the run",
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.lossy_exchange`."""

    data: Annotated[Path, tyro.conf.Positional]
    """Dataset folder of Fashion-MNIST, with `val` and `test`."""
    workers: tuple[int, ...] = (2,)
    """Numbers of workers."""
    epochs: float = 3
    """Epochs per run."""
    rounds: int = 3
    """Number of seeds."""
    exchanges: tuple[str, ...] = tuple(OPTIONS)
    """Exchanges to compare with all-reduce, by their names."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    names = dict.fromkeys((_EXACT, *arguments.exchanges))
    folder = Path(tempfile.mkdtemp(prefix="lossy-exchange-"))
    try:
        alternatives = {
            _label(name, num_workers): partial(_measure, name, num_workers, itertools.count(), arguments, folder)
            for num_workers in arguments.workers
            for name in names
        }
        values = run_rounds(alternatives, arguments.rounds)
    finally:
        shutil.rmtree(folder)
    cases = itertools.product(arguments.workers, (name for name in names if name != _EXACT), _QUANTITIES)
    publish(
        record_document(
            name="lossy_exchange",
            command=f"python -m benchmarks.lossy_exchange DATASET --epochs {arguments.epochs:g} --rounds "
            f"{arguments.rounds} --workers {' '.join(map(str, arguments.workers))}",
            corpus=f"DATASET: Fashion-MNIST, {Dataset.open(arguments.data).num_samples('train'):,} training pictures",
            quantities=_QUANTITIES,
            values=values,
            comparisons=[
                Comparison(of=_label(name, workers), quantity=quantity, to=_label(_EXACT, workers))
                for workers, name, quantity in cases
            ],
            packages=["torch", "numpy"],
        )
    )
    return 0


def _measure(name: str, num_workers: int, seeds: Iterator[int], arguments: Arguments, folder: Path) -> dict[str, float]:
    options = ["--recipe", "small_demo", "--data", str(arguments.data), "--num-epochs", str(arguments.epochs)]
    options += ["--seed", str(next(seeds)), "--exchange", _EXACT, *OPTIONS[name]]
    path = folder / "run"
    run = run_training("torchrun", num_workers, path, options)
    out = path / "evaluations" / "test"
    evaluate_run(arguments.data, path, "test", "centre", out, World(0, 1, torch.device("cpu")))
    top1 = json.loads((out / RESULT_JSON).read_text())["top1"]
    num_bytes = mean_bytes(run, num_workers, Dataset.open(arguments.data))
    shutil.rmtree(path)
    return {"test_top1_percent": top1 * 100, "megabytes_per_step": num_bytes / 1e6}


def mean_bytes(run: RunFolder, num_workers: int, dataset: Dataset) -> float:
    """Return the bytes that a worker sends per step of a run, as a mean over its steps."""
    config = run.config
    model = outline_network(config.model, num_classes=dataset.num_classes)
    total = config.total_steps(dataset.num_samples("train"))
    num_exact = config.num_exact_steps(total)
    exact, later = _allreduce_bytes(model, num_workers), _later_bytes(config, model, num_workers)
    return (num_exact * exact + (total - num_exact) * later) / total


def _later_bytes(config: TrainingConfig, model: nn.Module, num_workers: int) -> float:
    if config.local_sgd_steps is not None:
        return local_sgd_bytes(model, num_workers, config.local_sgd_steps)
    match config.gradient_compression:
        case "powersgd":
            return powersgd_bytes(model, num_workers, config.powersgd_rank)
        case "bf16":
            return bf16_bytes(model, num_workers)
        case "none":
            return _allreduce_bytes(model, num_workers)


def _allreduce_bytes(model: nn.Module, num_workers: int) -> float:
    return Workload.of(model, global_batch_size=1).num_bytes("allreduce", num_workers)


def _label(name: str, num_workers: int) -> str:
    return f"{name}, {num_workers} workers"


if __name__ == "__main__":
    run_command(main)
