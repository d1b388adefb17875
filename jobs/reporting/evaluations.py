"""The evaluations of a run: which was the latest, which classes are confused, and predictions to look at."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from cluster.run.run_folder import RunFolder
from cluster.worker.evaluation_files import CONFUSION_PARQUET, PER_CLASS_PARQUET, PREDICTIONS_PARQUET, RESULT_JSON
from jobs.reporting.pictures import Shown, shown
from pipeline.dataset import Dataset
from pipeline.preview import samples_of
from pipeline.system.files import names_in

if TYPE_CHECKING:
    from cluster.worker.prediction import Classifier

_NUM_CONFUSIONS, _NUM_WORST = 10, 10
_NUM_PICTURES = 8
_NUM_CANDIDATES = 96  # pictures to choose from where no evaluation says which predictions are wrong


@dataclass(frozen=True)
class Confusion:
    """A pair of classes that the model mistakes for each other.

    Attributes:
        true_name: Class of the pictures.
        predicted_name: Class that the model saw in them.
        count: Number of pictures.
        fraction: Fraction of the pictures of the true class.
    """

    true_name: str
    predicted_name: str
    count: int
    fraction: float


@dataclass(frozen=True)
class ClassResult:
    """Result of a class.

    Attributes:
        name: Name of the class.
        top1: Fraction of its pictures whose class was predicted.
        num_samples: Number of its pictures.
    """

    name: str
    top1: float
    num_samples: int


@dataclass(frozen=True, eq=False)
class FinalEvaluation:
    """An evaluation that `jobs/evaluate.py` wrote.

    Attributes:
        folder: Folder of its files.
        document: Its `result.json`.
        confusions: The most frequent confusions.
        worst: Classes with the lowest top-1, lowest first; none without an error.
        num_classes: Number of classes that have pictures.
        is_right_N: Whether each sample was classified right, by sample id; bool (N,).
    """

    folder: Path
    document: dict[str, Any]
    confusions: Sequence[Confusion]
    worst: Sequence[ClassResult]
    num_classes: int
    is_right_N: np.ndarray

    @property
    def what(self) -> str:
        """What was evaluated, in words."""
        split, crops = self.document["split"], self.document["crops"]
        source = f" of {self.document['source']}" if self.document.get("source") else ""
        return f"{split}{source}, {'ten crops' if crops == 'ten' else 'centre crop'}"


@dataclass(frozen=True)
class Bar:
    """A bar of a prediction: a class, its probability, and whether it is the true one."""

    name: str
    probability: float
    is_true: bool


@dataclass(frozen=True)
class Look:
    """A picture with its five best classes.

    Attributes:
        picture: Picture before the crop.
        true_name: Its class.
        bars: Its best classes.
    """

    picture: Shown
    true_name: str
    bars: Sequence[Bar]

    @property
    def is_right(self) -> bool:
        """Whether the best class is the true one."""
        return self.bars[0].is_true


@dataclass(frozen=True)
class Looks:
    """Predictions to look at.

    Attributes:
        split: Split of the pictures.
        looks: Pictures with their predictions.
    """

    split: str
    looks: Sequence[Look]


def latest_evaluation(run: RunFolder) -> FinalEvaluation | None:
    """Return the evaluation whose result was written last, of those that are complete; None if there is none."""
    found = []
    for name in names_in(run.evaluations_path):
        path = run.evaluations_path / name / RESULT_JSON
        try:
            document = json.loads(path.read_text())
            found.append((path.stat().st_mtime_ns, name, document))
        except (OSError, ValueError):
            continue  # an evaluation under way, or another program's folder
    for _, name, document in sorted(found, key=lambda one: one[:2], reverse=True):
        if isinstance(document, dict) and {"split", "crops", "step", "top1", "top5", "num_samples"} <= document.keys():
            try:
                return _read_evaluation(run.evaluations_path / name, document, run.class_names)
            except (OSError, ValueError):  # a table is missing or damaged; pyarrow's errors are among these
                continue
    return None


def _read_evaluation(folder: Path, document: dict[str, Any], names: Sequence[str]) -> FinalEvaluation:
    classes = [row for row in pq.read_table(folder / PER_CLASS_PARQUET).to_pylist() if row["num_samples"]]
    pairs = pq.read_table(folder / CONFUSION_PARQUET).to_pylist()
    predictions = pq.read_table(folder / PREDICTIONS_PARQUET, columns=["class_index", "predicted_class_index"])
    counts = {row["class_index"]: row["num_samples"] for row in classes}
    wrong = [row for row in pairs if row["class_index"] != row["predicted_class_index"]]
    wrong.sort(key=lambda row: (-row["count"], row["class_index"], row["predicted_class_index"]))
    worst = sorted((row for row in classes if row["top1"] < 1), key=lambda row: (row["top1"], row["class_index"]))
    return FinalEvaluation(
        folder=folder,
        document=document,
        confusions=[
            Confusion(
                names[row["class_index"]],
                names[row["predicted_class_index"]],
                row["count"],
                row["count"] / counts[row["class_index"]],
            )
            for row in wrong[:_NUM_CONFUSIONS]
        ],
        worst=[ClassResult(row["name"], row["top1"], row["num_samples"]) for row in worst[:_NUM_WORST]],
        num_classes=len(classes),
        is_right_N=predictions["class_index"].to_numpy() == predictions["predicted_class_index"].to_numpy(),
    )


def choose_looks(dataset: Dataset, classifier: "Classifier", evaluation: FinalEvaluation | None) -> Looks:
    """Classify some pictures of a split, right and wrong ones, always the same ones of a run.

    Args:
        dataset: Dataset of the run.
        classifier: The run's model.
        evaluation: Latest evaluation of the run, which says what it predicted wrongly; used if it is of this dataset.

    Raises:
        InputError: A picture is missing or has changed, or the model gives NaN.
    """
    if evaluation is not None and evaluation.document.get("dataset_sha256") == dataset.sha256:
        split = evaluation.document["split"]
        is_right_N = evaluation.is_right_N
        ids_N = np.arange(len(is_right_N))
    else:
        split = next(name for name in ("test", "val", "train") if name in dataset.splits)
        ids_N = _spread(np.arange(dataset.num_samples(split)), _NUM_CANDIDATES)
        samples = list(samples_of(dataset, split, ids_N))
        predicted = [classes[0] for classes, _ in classifier.best_classes([sample.square_HWC for sample in samples])]
        is_right_N = np.array([sample.row["class_index"] for sample in samples]) == np.array(predicted)
    right, wrong = ids_N[is_right_N], ids_N[~is_right_N]
    num_wrong = min(len(wrong), max(_NUM_PICTURES // 2, _NUM_PICTURES - len(right)))
    chosen = np.concatenate([_spread(right, _NUM_PICTURES - num_wrong), _spread(wrong, num_wrong)])
    samples = list(samples_of(dataset, split, chosen))
    names = dataset.class_names
    best = classifier.best_classes([sample.square_HWC for sample in samples])
    return Looks(
        split,
        [
            Look(
                shown(sample.square_HWC),
                names[sample.row["class_index"]],
                [
                    Bar(names[index], probability, index == sample.row["class_index"])
                    for index, probability in zip(classes, probabilities, strict=True)
                ],
            )
            for sample, (classes, probabilities) in zip(samples, best, strict=True)
        ],
    )


def _spread(ids_N: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of the ids, evenly spread over them."""
    if len(ids_N) <= count:
        return ids_N
    return ids_N[((np.arange(count) + 0.5) * len(ids_N) / count).astype(np.int64)]
