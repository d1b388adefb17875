"""Evaluate a run and write the results to a folder.

FOLDER/
  predictions.parquet   one row per sample, in the manifest's order: its class, the predicted class and its probability,
                        and the rank of the label (0: the prediction is correct)
  per_class.parquet     one row per class: samples, top-1, top-5 (null for a class without samples)
  confusion.parquet     one row per pair of true and predicted class that occurred, with its count
  result.json           the figures and what was evaluated; written last and removed first: if it exists, all files
                        belong to one evaluation
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cluster.run.config import Precision
from cluster.run.run_folder import RunFolder
from cluster.worker.evaluation import Evaluation, evaluate
from cluster.worker.evaluation_options import Crops
from cluster.worker.trained_model import load_model
from cluster.worker.world import World
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.system.files import write_json, write_table

Keys: TypeAlias = "pa.ChunkedArray | Sequence[str]"
RESULT_JSON, PER_CLASS_PARQUET = "result.json", "per_class.parquet"
CONFUSION_PARQUET, PREDICTIONS_PARQUET = "confusion.parquet", "predictions.parquet"

PER_CLASS_SCHEMA = pa.schema(
    [
        ("class_index", pa.int32()),
        ("wnid", pa.string()),
        ("name", pa.string()),
        ("num_samples", pa.int64()),
        ("top1", pa.float64()),
        ("top5", pa.float64()),
    ]
)
CONFUSION_SCHEMA = pa.schema(
    [("class_index", pa.int32()), ("predicted_class_index", pa.int32()), ("count", pa.int64())]
)
PREDICTIONS_SCHEMA = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("key", pa.string()),
        ("class_index", pa.int32()),
        ("predicted_class_index", pa.int32()),
        ("probability", pa.float64()),
        ("rank", pa.int32()),
    ]
)


def evaluate_run(
    dataset_path: Path,
    run_path: Path,
    split: str,
    crops: Crops,
    out: Path,
    world: World,
    precision: Precision | None = None,
) -> None:
    """Evaluate a run's model; every worker calls this, and the first one writes the files.

    Args:
        dataset_path: Path of the dataset folder on this worker.
        run_path: Path of the run folder on this worker.
        split: Split to evaluate.
        crops: See `cluster.worker.evaluation`.
        out: Folder to write the files to.
        world: Place of this worker.
        precision: Precision to compute in; None: the run's.

    Raises:
        InputError: There is no checkpoint, the workers see different ones, or the model gives NaN or infinity.
    """
    torch.set_num_threads(world.num_threads)
    dataset, run = Dataset.open(dataset_path), RunFolder.open(run_path)
    run = run if precision is None else run.in_precision(precision)
    model, step = load_model(run, world.device)
    if not world.agrees(step):
        raise InputError(f"the workers see different checkpoints in {run.path}; is it a shared folder, still training?")
    evaluation = evaluate(model, dataset, split, world, run, crops)
    assert evaluation is not None  # nobody asks these workers to stop
    check_finite(evaluation, run)
    if world.is_first:
        document = describe(run, step, crops) | {"dataset_sha256": dataset.sha256}
        keys = dataset.manifest(split, ["key"])["key"]
        write_evaluation(out, evaluation, keys, per_class_table(evaluation, dataset), document)


def check_finite(evaluation: Evaluation, run: RunFolder) -> None:
    """Raise InputError if a run's model gives NaN or infinity."""
    num_broken = int((~np.isfinite(evaluation.losses_N)).sum())
    if num_broken:
        raise InputError(
            f"the model of {run.path} gives NaN or infinity for {num_broken} samples: its training diverged"
        )


def describe(run: RunFolder, step: int, crops: Crops) -> dict[str, Any]:
    """Return the fields of `result.json` that describe the model and how it was evaluated."""
    return {"crops": crops, "step": step, "recipe": run.config.name, "precision": run.config.precision}


def write_evaluation(
    folder: Path, evaluation: Evaluation, keys: Keys, per_class: pa.Table, document: dict[str, Any]
) -> None:
    """Write the files.

    Args:
        folder: Folder to write to.
        evaluation: Results to write.
        keys: Name of each sample.
        per_class: Table of `PER_CLASS_SCHEMA`.
        document: Fields to add to the figures of `result.json`.
    """
    (folder / RESULT_JSON).unlink(missing_ok=True)
    write_table(folder / PREDICTIONS_PARQUET, predictions_table(evaluation, keys))
    write_table(folder / PER_CLASS_PARQUET, per_class)
    write_table(folder / CONFUSION_PARQUET, confusion_table(evaluation))
    write_json(folder / RESULT_JSON, evaluation.summary() | document)


def foreign_files(folder: Path) -> list[str]:
    """Return the names of files in a folder that no evaluation wrote there, without hidden files.

    Files with the names used by `write_evaluation` count as foreign too if `result.json` is not from an evaluation.
    """
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    own = {RESULT_JSON, PER_CLASS_PARQUET, CONFUSION_PARQUET, PREDICTIONS_PARQUET}
    if RESULT_JSON in names:
        try:
            is_own = {"split", "crops", "step"} <= json.loads((folder / RESULT_JSON).read_text()).keys()
        except (OSError, ValueError, AttributeError):
            is_own = False
        own = own if is_own else set()
    return [name for name in names if name not in own]


def evaluated_source(folder: Path) -> str | None:
    """Return the source whose evaluation a folder holds; None if it holds none, or a dataset's."""
    if not (folder / RESULT_JSON).exists():
        return None
    source: str | None = json.loads((folder / RESULT_JSON).read_text()).get("source")
    return source


def read_evaluation(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return `result.json` and the rows of `per_class.parquet`."""
    return json.loads((folder / RESULT_JSON).read_text()), pq.read_table(folder / PER_CLASS_PARQUET).to_pylist()


def predictions_table(evaluation: Evaluation, keys: Keys) -> pa.Table:
    """Return a table of `PREDICTIONS_SCHEMA`, one row per sample."""
    columns = [
        np.arange(evaluation.num_samples),
        keys,
        evaluation.labels_N,
        evaluation.predicted_N,
        evaluation.probabilities_N,
        evaluation.ranks_N,
    ]
    return _table(columns, PREDICTIONS_SCHEMA)


def per_class_table(evaluation: Evaluation, classes: Dataset | RunFolder) -> pa.Table:
    """Return a table of `PER_CLASS_SCHEMA`, one row per class.

    Args:
        evaluation: Results of all samples.
        classes: Dataset or run that has the wnids and names of the classes.
    """
    labels_N, num_classes = evaluation.labels_N, len(classes.wnids)
    counts = np.bincount(labels_N, minlength=num_classes)
    correct = (np.bincount(labels_N[evaluation.is_correct_N(k)], minlength=num_classes) for k in (1, 5))
    fractions = (pa.array(c / np.maximum(counts, 1), mask=counts == 0) for c in correct)
    return _table([np.arange(num_classes), classes.wnids, classes.class_names, counts, *fractions], PER_CLASS_SCHEMA)


def confusion_table(evaluation: Evaluation) -> pa.Table:
    """Return a table of `CONFUSION_SCHEMA`, one row per pair of classes that occurred, sorted."""
    pairs_N2 = np.stack([evaluation.labels_N, evaluation.predicted_N], axis=1)
    pairs, counts = np.unique(pairs_N2, axis=0, return_counts=True)
    return _table([pairs[:, 0], pairs[:, 1], counts], CONFUSION_SCHEMA)


def _table(columns: list[Any], schema: pa.Schema) -> pa.Table:
    return pa.table(dict(zip(schema.names, columns, strict=True))).cast(schema)
