"""What a run's folder tells about it: the lines of its logs that count, its evaluations, and the figures above all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.run.curves import Curves, read_curves
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Evaluated, Finished, Line, Resumed, Steps, only, read_launches, read_metrics
from cluster.run.verdict import BINDING_WAIT
from jobs.reporting.timeline import Timeline, read_timeline
from pipeline.command import InputError

MAX_RUNS = 8  # more than eight colours can't be told apart
_FEWEST_STEPS = 3  # of a median: the first step waits for the loader and for compilations to start


@dataclass(frozen=True)
class RunRecord:
    """A run as a report sees it.

    Attributes:
        label: Name of the run on the page; no two runs have the same.
        run: Folder of the run.
        metrics: Lines of `metrics.jsonl`.
        steps: Lines of training steps that count: those that no resume rolled back.
        evaluations: Evaluations during training that count, by ascending step.
        curves: Curves, or None if no step is logged yet.
        timeline: Workers over time.
        is_finished: Whether the run has reached its end.
    """

    label: str
    run: RunFolder
    metrics: Sequence[Line]
    steps: Sequence[Steps]
    evaluations: Sequence[Evaluated]
    curves: Curves | None
    timeline: Timeline
    is_finished: bool

    @property
    def num_steps(self) -> int:
        """Number of steps made."""
        return self.steps[-1].step if self.steps else 0

    @property
    def total_steps(self) -> int:
        """Length of the run in steps, if nothing ends it early."""
        return self.run.config.total_steps(self.num_samples) if self.num_samples else 0

    @property
    def num_samples(self) -> int | None:
        """Number of samples of the training set; None if neither the run nor its log says so."""
        described = self.run.document["dataset"].get("num_samples")
        if described is None and self.curves is not None:
            return self.curves.num_samples
        return described

    @property
    def best(self) -> Evaluated | None:
        """Evaluation with the highest top-1, the first of several; None if there is none."""
        return max(self.evaluations, key=lambda line: line.top1, default=None)

    @property
    def last(self) -> Evaluated | None:
        """Latest evaluation; None if there is none."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def images_per_second(self) -> float | None:
        """Median throughput over the steps, which leaves out the slow first ones; None before the third step."""
        return self._median("images_per_second")

    @property
    def data_wait_fraction(self) -> float | None:
        """Median fraction of a step that waits for data; None before the third step."""
        return self._median("data_wait_fraction")

    @property
    def is_input_bound(self) -> bool | None:
        """Whether waits for data hold up the step; None before the third step."""
        return None if self.data_wait_fraction is None else self.data_wait_fraction > BINDING_WAIT

    @property
    def step_seconds(self) -> float | None:
        """Time of a step at the median throughput; None before the third step."""
        rate = self.images_per_second
        return self.run.config.global_batch_size / rate if rate else None

    def _median(self, field: str) -> float | None:
        """Return the median over the steps of a field of their lines; None while the slow first step decides it."""
        values = np.repeat([getattr(line, field) for line in self.steps], [len(line.losses) for line in self.steps])
        return float(np.median(values)) if len(values) >= _FEWEST_STEPS else None


def read_records(paths: Sequence[Path]) -> list[RunRecord]:
    """Read runs, each once.

    Raises:
        InputError: A folder holds no readable run, is named twice, or there are too many.
    """
    folders = [path.absolute() for path in paths]
    if not folders:
        raise InputError("no run is named: jobs/report.py RUN... -o report.html")
    if len(folders) > MAX_RUNS:
        raise InputError(f"{len(folders)} runs are named, but a report tells at most {MAX_RUNS} apart; name fewer")
    resolved = [folder.resolve() for folder in folders]
    if twice := [str(path) for path, real in zip(paths, resolved, strict=True) if resolved.count(real) > 1]:
        raise InputError(f"{twice[0]} is named twice; name each run once")
    return [read_record(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]


def read_record(path: Path, label: str) -> RunRecord:
    """Read a run.

    Raises:
        InputError: The folder holds no readable run.
    """
    run = RunFolder.open(path)
    metrics, launches = read_metrics(run.metrics_path), read_launches(run.launches_path)
    steps, evaluations = _lines_that_count(metrics)
    return RunRecord(
        label=label,
        run=run,
        metrics=metrics,
        steps=steps,
        evaluations=evaluations,
        curves=read_curves(run) if only(Steps, metrics) and steps else None,
        timeline=read_timeline(metrics, launches),
        is_finished=run.result is not None or bool(only(Finished, launches)),
    )


def _lines_that_count(metrics: Sequence[Line]) -> tuple[list[Steps], list[Evaluated]]:
    steps: list[Steps] = []
    evaluations: dict[int, Evaluated] = {}
    for line in metrics:
        match line:
            case Steps():
                steps.append(line)
            case Evaluated():
                evaluations[line.step] = line
            case Resumed():
                steps = [step for step in steps if step.step <= line.step]
                evaluations = {step: one for step, one in evaluations.items() if step <= line.step}
    return steps, [evaluations[step] for step in sorted(evaluations)]


def _labels(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        labels = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]
