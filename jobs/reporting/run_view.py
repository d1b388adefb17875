"""One run on the page: its figures, charts, pictures and proofs, each with the reason where it is absent."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from cluster.run.overfitting import overfitting
from cluster.run.run_folder import RunFolder
from cluster.worker.prediction import Classifier
from cluster.worker.trained_model import default_device
from jobs.reporting.charts import Chart, curve_charts, workers_chart
from jobs.reporting.comparison import flattened, short_commit
from jobs.reporting.dataset_view import Component, DatasetView, components, view_dataset
from jobs.reporting.evaluations import FinalEvaluation, Looks, choose_looks, latest_evaluation
from jobs.reporting.pictures import Filters, SheetRow, draw_filters, sheet_rows
from jobs.reporting.proof import Proof, prove_run
from jobs.reporting.reading import RunRecord
from jobs.reporting.step_time import StepPart, step_parts, step_time_chart
from jobs.reporting.timeline import most_workers, rolled_back
from jobs.reporting.words import NONE, count, duration, millions, percent, plural
from model.registry import num_parameters
from pipeline.command import InputError
from pipeline.dataset import Dataset

T = TypeVar("T")


@dataclass(frozen=True)
class Part(Generic[T]):
    """A part of the page.

    Attributes:
        content: Its content, or None.
        reason: If there is none, why, in one line.
    """

    content: T | None = None
    reason: str = ""


@dataclass(frozen=True)
class Tile:
    """A figure of the headline.

    Attributes:
        label: What it is.
        value: The figure.
        detail: What belongs to it.
    """

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class RunView:
    """One run on the page; the parts are in the page's order.

    Attributes:
        record: What its folder tells.
        anchor: Prefix of the ids of its parts.
        data_name: Name of its dataset.
        data: Folder of its dataset: where the run says that it is, or `--data`.
        model_reason: Why the run's model can't be loaded; empty if it can.
        status: Its state in a word or two.
        tiles: Headline.
        charts: Curves.
        workers: Workers over time.
        filters: The first layer's filters.
        looks: Predictions to look at.
        evaluation: Latest evaluation.
        sheet: What training reads.
        dataset: The dataset.
        components: Principal components of its colours.
        recipe: Fields of the recipe.
        versions: Versions and commit.
        proof: Verdict of the ledger.
    """

    record: RunRecord
    anchor: str
    data_name: str
    data: Path
    model_reason: str
    status: str
    tiles: Sequence[Tile]
    charts: Sequence[Chart]
    workers: Part[Chart]
    filters: Part[Filters]
    looks: Part[Looks]
    evaluation: FinalEvaluation | None
    sheet: Part[list[SheetRow]]
    dataset: Part[DatasetView]
    components: Sequence[Component]
    recipe: dict[str, Any]
    versions: dict[str, Any]
    proof: Proof

    @property
    def evaluate_command(self) -> str:
        """Command that evaluates the run."""
        return shlex.join(["python", "jobs/evaluate.py", "--data", str(self.data), "--run", str(self.record.run.path)])

    @property
    def bench_command(self) -> str:
        """Command that says which stage of the loader is the slowest."""
        return shlex.join(["python", "-m", "pipeline.bench", str(self.data)])

    @property
    def step_parts(self) -> list[StepPart]:
        """What the run's median step consists of."""
        return step_parts(self.record)

    @property
    def overfitting(self) -> list[str]:
        """Signs that the run has learnt its pictures by heart, and what helps; empty if there are none."""
        curves, last = self.record.curves, self.record.last
        return [] if curves is None or last is None else overfitting(curves, last.num_samples)

    @property
    def rolled_back(self) -> int:
        """Number of logged steps that resumes undid."""
        return rolled_back(self.record.metrics)


def view_run(record: RunRecord, anchor: str, data: Path | None) -> RunView:
    """Return what the page shows of a run.

    Args:
        record: What its folder tells.
        anchor: Prefix of the ids of its parts; letters, digits and `-`.
        data: Its dataset folder; None: where the run says that it is.
    """
    run, document = record.run, record.run.document
    dataset = part(lambda: _open_dataset(run, data))
    classifier = part(lambda: _load_model(run))
    evaluation = latest_evaluation(run)
    basis, commit = run.color_basis, short_commit(document)
    return RunView(
        record=record,
        anchor=anchor,
        data_name=Path(document["dataset"]["path"]).name,
        data=data or Path(document["dataset"]["path"]),
        model_reason=classifier.reason,
        status=_status(record),
        tiles=_tiles(record, evaluation),
        charts=_charts(record, anchor),
        workers=part(lambda: _workers(record, anchor)),
        filters=part(lambda: _filters(needed(classifier), run)),
        looks=part(lambda: choose_looks(needed(dataset), needed(classifier), evaluation)),
        evaluation=evaluation,
        sheet=part(lambda: list(sheet_rows(needed(dataset), run))),
        dataset=part(lambda: view_dataset(needed(dataset), anchor)),
        components=components(basis),
        recipe=flattened(run.config.to_json()),
        versions={**document.get("versions", {}), **({"commit": commit} if commit else {})},
        proof=prove_run(run),
    )


def part(make: Callable[[], T]) -> Part[T]:
    """Make a part of the page; what can't be used or read becomes the reason for its absence."""
    try:
        return Part(make())
    except InputError as error:
        return Part(reason=str(error).partition("\n")[0])
    except OSError as error:
        return Part(reason=f"{error.filename or 'a file'} can't be read: {error.strerror or error}")


def needed(of: Part[T]) -> T:
    """Return a part's content.

    Raises:
        InputError: There is none; with its reason.
    """
    if of.content is None:
        raise InputError(of.reason)
    return of.content


def _open_dataset(run: RunFolder, data: Path | None) -> Dataset:
    path = data or Path(run.document["dataset"]["path"])
    if not path.exists():
        raise InputError(f"the dataset {path} is out of reach; say where it is now with --data")
    dataset = Dataset.open(path)
    if dataset.sha256 != run.document["dataset"]["sha256"]:
        raise InputError(f"{path} is not the dataset that this run was trained on; name that one with --data")
    return dataset


def _load_model(run: RunFolder) -> Classifier:
    name = run.config.model.name
    try:
        return Classifier(run, default_device())
    except InputError:
        raise
    except (RuntimeError, KeyError) as error:
        raise InputError(
            f"the checkpoint of {run.path} does not fit the network {name} of this version; use the version that "
            "trained it"
        ) from error
    except Exception as error:  # the code of a network of one's own may raise anything
        raise InputError(f"the network {name} can't be built: {type(error).__name__}: {error}") from error


def _num_parameters(run: RunFolder) -> int:
    try:
        return num_parameters(run.config.model, len(run.wnids))
    except Exception as error:  # as above; the sections that need the network say what
        raise InputError(f"the network {run.config.model.name} can't be built") from error


def _filters(classifier: Classifier, run: RunFolder) -> Filters:
    filters = draw_filters(classifier.model, run, classifier.step)
    if filters is None:
        raise InputError(
            f"{run.config.model.name} has no convolution of three channels, whose filters would be colours"
        )
    return filters


def _charts(record: RunRecord, anchor: str) -> list[Chart]:
    return [*curve_charts([record], anchor), step_time_chart(record, anchor)] if record.steps else []


def _workers(record: RunRecord, anchor: str) -> Chart:
    if not most_workers(record.timeline):
        raise InputError("the run's logs do not say when workers began")
    return workers_chart(record.timeline, anchor, record.label)


def _status(record: RunRecord) -> str:
    if record.is_finished:
        return "finished"
    kind = record.timeline.events[-1].kind if record.timeline.events else None
    if kind in ("failed", "stop"):
        return "failed" if kind == "failed" else "stopped"
    return "not finished" if record.steps else "just begun"


def _tiles(record: RunRecord, evaluation: FinalEvaluation | None) -> list[Tile]:
    run, best, last = record.run, record.best, record.last
    tiles = []
    if evaluation is not None:
        figures = evaluation.document
        tiles.append(
            Tile(
                f"{figures['split']} top-1, evaluated",
                percent(figures["top1"]),
                f"top-5 {percent(figures['top5'])}; {plural(figures['num_samples'], 'picture')}",
            )
        )
    if best is not None and last is not None:
        ending = "the last" if best is last else f"last {percent(last.top1)}"
        tiles.append(
            Tile(
                f"best {best.split} top-1",
                percent(best.top1),
                f"top-5 {percent(best.top5)}; step {best.step:,}, {ending}",
            )
        )
    if record.images_per_second is not None:
        waits = f"median; {percent(record.data_wait_fraction, 1)} of a step waits for data"
        tiles.append(Tile("images per second", count(record.images_per_second), waits))
    if record.steps:
        line = record.steps[-1]
        steps = f"{line.epoch:.4g} epochs, {plural(line.step, 'step')} of {run.config.global_batch_size:,}"
        tiles.append(Tile("samples seen", count(line.samples_seen), steps))
    if record.timeline.training_seconds:
        wall = f"{duration(record.timeline.wall_seconds)} with starts and pauses"
        is_constant = len({stretch.num_workers for stretch in record.timeline.stretches}) == 1
        workers = ("" if is_constant else "up to ") + plural(most_workers(record.timeline), "worker")
        tiles.append(Tile("training time", duration(record.timeline.training_seconds), f"{wall}; {workers}"))
    model = f"{run.config.model.name} in {run.config.precision}"
    parameters = part(lambda: _num_parameters(run)).content
    tiles.append(Tile("parameters", NONE if parameters is None else millions(parameters), model))
    return tiles
