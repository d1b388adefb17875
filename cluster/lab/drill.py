"""The kill drill: a run that is hit, the same run undisturbed, and the proof that both are one.

What `python -m cluster.drill` does; see there.
"""

import dataclasses
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.exchange.names import Strategy
from cluster.lab.drill_report import (
    Kind,
    Outage,
    format_outage,
    format_table,
    judge_restarts,
    judge_weights,
    plan,
    weight_difference,
)
from cluster.lab.drill_run import DrilledRun, DrillFailed
from cluster.lab.local_ray import environment, local_ray
from cluster.run.ledger_parts import LedgerError
from cluster.run.ledger_proof import compare, prove
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import read_metrics
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.paths import CHECKOUT
from pipeline.system.files import write_json

_TRAIN = CHECKOUT / "jobs" / "train.py"
_MOST_STEPS = 10**9  # the run goes on until it is stopped, however fast the machine is
_EVALUATION_STEPS = 150
_CROP_SIZE = 24  # the smallest that the model takes: a step of 12 samples takes about 0.2 s on one core


@dataclass(frozen=True, kw_only=True)
class DrillConfig:
    """What is done to a run, and how long it may take."""

    seed: int = 0
    """Of the moments, and of who is hit."""
    events: tuple[Kind, ...] = ("worker", "node", "driver", "raylet", "worker", "replaced-node")
    """What is killed, in this order. `node` is not replaced: the run goes on with one worker, until another node joins
    later; `replaced-node` and `raylet` are, at once."""
    exchange: Strategy = "allreduce"
    """How the workers of the run that is hit combine their gradients; a single worker has nothing to combine."""
    global_batch_size: int = 12
    """Samples of a step."""
    checkpoint_interval: int = 10
    """Steps between checkpoints: what a restart may undo at most."""
    recovery_seconds: float = 120.0
    """Longest time that the run may take to recover from an event."""
    minutes: float = 10.0
    """Longest time of the whole drill."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: Names the field, its value and what would be right.
        """
        if not self.events:
            raise ValueError("events=(): must be at least one")
        for field in ("global_batch_size", "checkpoint_interval"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: must be at least 1")


def run_drill(config: DrillConfig, dataset: Dataset, out: Path) -> list[str]:
    """Make both runs, say what happens, and write `drill.json`.

    Args:
        config: Events and limits of the drill.
        dataset: Dataset to train on.
        out: An empty folder for both runs and the report.

    Returns:
        What is not as it should be, one line per cause.
    """
    began = time.monotonic()
    deadline, data = began + config.minutes * 60, str(dataset.path)
    reference_path, run_path = out / "undisturbed", out / "run"
    _say(f"the run that is hit, at moments of seed {config.seed}: {run_path}")
    outages: list[Outage] = []
    findings: list[str] = []
    with local_ray(num_cpus=0, working_directory=CHECKOUT) as cluster:
        recipe = _recipe(config, dataset, _MOST_STEPS)
        command = ["python", str(_TRAIN), "--data", data, "--run", str(run_path), "--workers", "1:2"]
        command += ["--exchange", config.exchange, *recipe]
        run = DrilledRun(cluster, command, run_path, deadline, config.recovery_seconds)
        try:
            with run.submitted():
                for planned in plan(config.events, config.seed):
                    outages.append(run.hit(planned))
                    _say(f"  {format_outage(outages[-1])}")
                num_steps = run.stop()
        except DrillFailed as error:
            findings.append(str(error))
    findings += run.left_running()
    proof: dict[str, Any] = {}
    if not findings:
        _say(f"{time.monotonic() - began:.0f} s; now an undisturbed run of its {num_steps} steps: {reference_path}")
        options = ["--data", data, "--run", str(reference_path), *_recipe(config, dataset, num_steps)]
        _train_alone(options, out / "undisturbed.log", deadline)
        proof, findings = judge(RunFolder.open(reference_path), RunFolder.open(run_path))
    seconds = time.monotonic() - began
    report = {
        "seed": config.seed,
        "exchange": config.exchange,
        "seconds": seconds,
        "events": [dataclasses.asdict(outage) for outage in outages],
        "proof": proof,
        "findings": findings,
    }
    write_json(out / "drill.json", report)
    _say(f"\n{format_table(outages)}\n")
    for finding in findings:
        _say(f"finding: {finding}")
    if not findings:
        _say(f"proven in {seconds:.0f} s: {proof['ledger']}")
        _say(f"  final weights: largest difference from the undisturbed run's {proof['largest_weight_difference']:.1e}")
    return findings


def _recipe(config: DrillConfig, dataset: Dataset, num_steps: int) -> list[str]:
    """Return the recipe's options: small, exact to float64, augmented; each step the same at any length of the run."""
    epochs_per_step = config.global_batch_size / dataset.num_samples("train")
    options = {
        "recipe": "small_demo",
        "precision": "float64",
        "augmentation.crop-size": _CROP_SIZE,
        "optimizer.learning-rate": 0.01,
        "optimizer.warmup": 0,
        "optimizer.schedule": "constant",
        "stuck-after-epochs": 1e9,  # the weights count, not what is learnt
        "evaluations-per-epoch": 1 / (_EVALUATION_STEPS * epochs_per_step),
        "num-epochs": num_steps * epochs_per_step,
        "global-batch-size": config.global_batch_size,
        "checkpoint-interval": config.checkpoint_interval,
        "checkpoint-seconds": 0,  # the steps count
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def _train_alone(options: list[str], log: Path, deadline: float) -> None:
    with open(log, "wb") as output:
        command = [sys.executable, str(_TRAIN), "--launcher", "alone", *options]
        try:
            answer = subprocess.run(
                command,
                env=environment(),
                cwd=CHECKOUT,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=max(0, deadline - time.monotonic()),
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"the undisturbed run did not end in time; give it more --minutes (see {log})") from None
    if answer.returncode != 0:
        raise InputError(f"the undisturbed run failed; see {log}")


def judge(reference: RunFolder, run: RunFolder) -> tuple[dict[str, Any], list[str]]:
    """Return what is proven of a finished run beside an undisturbed one, and what is not, a line each."""
    findings = judge_restarts(read_metrics(run.metrics_path), run.config.checkpoint_interval)
    proof: dict[str, Any] = {}
    try:
        consumed = [prove(folder) for folder in (reference, run)]
        num_positions = compare(reference, run)
        if len({consumption.sha256 for consumption in consumed}) > 1:
            findings.append(f"the two ledgers agree at {num_positions} positions alone: one run is longer")
        proof["ledger"] = str(consumed[1])
    except LedgerError as error:
        findings.append(str(error))
    states = [folder.checkpoints.load_latest() for folder in (reference, run)]
    if states[0] is None or states[1] is None:
        return proof, [*findings, "a run has no checkpoint to compare the weights of"]
    difference = weight_difference(states[0]["model"], states[1]["model"])
    proof["largest_weight_difference"] = difference if math.isfinite(difference) else None
    findings += judge_weights(difference)
    return proof, findings


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
