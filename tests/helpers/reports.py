"""Runs to report on: one that is trained and evaluated, and ones whose logs are written by hand."""

import json
import re
from html import unescape
from pathlib import Path

from runs import ALONE, CONFIG

from cluster.run.config import TrainingConfig
from cluster.run.run_folder import RunFolder
from cluster.worker.evaluation_files import evaluate_run
from cluster.worker.training import Trainer
from pipeline.dataset import Dataset

BEGIN = 1_800_000_000.0  # time of a run's first line


def trained_run(path: Path, dataset: Dataset, config: TrainingConfig = CONFIG) -> RunFolder:
    """Train a run and evaluate it on `val`."""
    run = RunFolder.create(path, config, dataset)
    trainer = Trainer(dataset, run, ALONE)
    trainer.run()
    trainer.close()
    evaluate_run(dataset.path, run.path, "val", "centre", run.evaluations_path / "val-centre", ALONE)
    return run


def logged_run(
    path: Path, dataset: Dataset, metrics: list[str], launches: list[str] = (), config: TrainingConfig = CONFIG
) -> RunFolder:
    """Make a run of which there are only logs."""
    run = RunFolder.create(path, config, dataset)
    run.metrics_path.write_text("\n".join(metrics) + "\n")
    run.launches_path.write_text("\n".join(launches) + "\n")
    return run


def line(kind: str, seconds: float, **values: object) -> str:
    """Return a line of a log."""
    return json.dumps({"kind": kind, **values, "time": BEGIN + seconds})


def step_line(step: int, seconds: float, losses: list[float] = (1.5,), **values: object) -> str:
    """Return a line of training steps, 12 samples each, of 41 in an epoch."""
    seen = step * 12
    speed = {"images_per_second": 120.0, "data_wait_fraction": 0.25, "eta_seconds": 1.0}
    usual = {"loss": sum(losses) / len(losses), "top1": 0.5, "learning_rate": 0.1, "losses": list(losses), **speed}
    return line("step", seconds, step=step, samples_seen=seen, epoch=seen / 41, **usual | values)


def evaluation_line(step: int, seconds: float, top1: float, loss: float = 1.0) -> str:
    """Return a line of an evaluation on `val`."""
    return line("evaluation", seconds, step=step, split="val", num_samples=10, loss=loss, top1=top1, top5=1.0)


def section_of(page: str, name: str) -> str:
    """Return the part of the page below a heading."""
    return re.search(rf'<h\d id="run1-{name}">(.*?)</section>', page, flags=re.DOTALL)[1]


def text_of(html: str) -> str:
    """Return the text of a part of a page."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html.replace("<wbr>", ""))).split())
