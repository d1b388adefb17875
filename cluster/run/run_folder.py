"""The folder of a run, which identifies it: the same command resumes the run, a recipe with other results is refused.

RUN/
  launches.jsonl    one line each time workers are launched, lost or asked to stop, see run_log.py
  mean_image.npy    mean picture of the training set, if the recipe subtracts it
  config.json       recipe, dataset (with its classes and the form of its pictures), colour statistics, versions, git
                    commit; written before everything below, and again only if a resume changes the operating settings
  metrics.jsonl     one line per logged step, evaluation or event, see run_log.py
  stop-request      stop flag for the workers, see stop_request.py
  checkpoints/      see checkpoint.py
  ledger/           samples that each step consumed, see ledger_files.py
  result.json       written when the run is finished
  evaluations/      one folder for each split and kind of crops that was evaluated, see evaluation_files.py
  tensorboard/      the numbers of metrics.jsonl as TensorBoard's events, with `jobs/train.py --tensorboard`

So the model of a run can be applied to new pictures without its dataset.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import platform
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from cluster.run.checkpoint import CheckpointStore
from cluster.run.config import Precision, TrainingConfig
from cluster.run.launch_mark import CURRENT_LAUNCH
from cluster.run.ledger_files import Ledger
from cluster.run.run_log import LAUNCHES_JSONL, METRICS_JSONL, RunLog
from cluster.run.stop_request import StopRequest
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.format.color import ColorBasis
from pipeline.paths import CHECKOUT
from pipeline.pictures.encode import EncodingConfig
from pipeline.system.files import atomic_file, is_temporary, write_json

_CONFIG_JSON = "config.json"
_MEAN_IMAGE = "mean_image.npy"
_FORMAT_VERSION = 2  # version of config.json; version 1 had no number
_STOP_REQUEST = "stop-request"
_BEFORE_CONFIG = {LAUNCHES_JSONL, _MEAN_IMAGE, _STOP_REQUEST, CURRENT_LAUNCH}
_DISTRIBUTIONS = ("alexnet-at-scale", "torch", "ray", "numpy", "pyarrow")


class RunFolder:
    """The folder of a run, with its configuration read.

    Attributes:
        path: Absolute path of the folder.
        config: Recipe of the run.
        document: Parsed `config.json`.
    """

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        """Take the folder and its parsed `config.json`.

        Raises:
            InputError: The document was written by a newer version or by another program.
        """
        self.path, self.document = path, document
        version = document.get("format_version", 1) if isinstance(document, dict) else None
        if not isinstance(version, int):
            raise InputError(f"{path / _CONFIG_JSON} was not written by this program; choose another run folder")
        if version > _FORMAT_VERSION:
            raise InputError(
                f"{path / _CONFIG_JSON} has format version {version}, but this program reads up to {_FORMAT_VERSION}; "
                "update this program, or choose another run folder"
            )
        try:
            self.config = TrainingConfig.from_json(document["recipe"])  # absent fields have their defaults
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path / _CONFIG_JSON} does not hold a recipe of this version ({error}); choose another run folder"
            ) from error

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open an existing run.

        Raises:
            InputError: The folder holds no readable run.
        """
        try:
            document = json.loads((path / _CONFIG_JSON).read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(f"{path} holds no run ({_CONFIG_JSON} is missing); train first: jobs/train.py") from error
        except ValueError as error:
            raise InputError(f"{path / _CONFIG_JSON} is not JSON; choose another run folder") from error
        return cls(path.absolute(), document)

    @classmethod
    def resume(cls, path: Path, config: TrainingConfig, dataset: Dataset | None) -> "RunFolder | None":
        """Open the run of a recipe on a dataset, or return None if the folder is free for it.

        The dataset is None if it is not made yet; then the recipe alone is compared.

        Raises:
            InputError: The folder holds another run, or something else.
        """
        if holds_run(path):
            run = cls.open(path)
            run._check_same(config, dataset)
            return run
        if path.exists() and not is_a_beginning(path):
            raise InputError(f"{path} is in use but holds no run; choose another run folder")
        return None

    @classmethod
    def create(cls, path: Path, config: TrainingConfig, dataset: Dataset) -> "RunFolder":
        """Begin a run by writing its `config.json`.

        Args:
            path: Folder of the run; created if needed.
            config: Recipe, with its precision resolved.
            dataset: Dataset to train on.
        """
        if config.precision == "auto":
            raise ValueError("precision='auto': must be resolved before a run begins")
        document = {
            "format_version": _FORMAT_VERSION,
            "recipe": config.to_json(),
            "dataset": _describe(dataset),
            "color": dataset.color_document,
            "versions": _versions(),
            **_checkout(),
        }
        if config.augmentation.subtract == "mean_image":
            with atomic_file(path / _MEAN_IMAGE) as file:
                np.save(file, dataset.mean_image_HWC)
        write_json(path / _CONFIG_JSON, document)
        return cls.open(path)

    @property
    def digest(self) -> int:
        """A 28-bit number with which workers check that they have read the same `config.json`."""
        return zlib.crc32(json.dumps(self.document).encode()) >> 4

    @property
    def metrics_path(self) -> Path:
        """Path of the log of the run's numbers."""
        return self.path / METRICS_JSONL

    @property
    def launches_path(self) -> Path:
        """Path of the log of the run's launches."""
        return self.path / LAUNCHES_JSONL

    @property
    def stop_request(self) -> StopRequest:
        """Flag with which the launching process asks the workers to stop."""
        return stop_request_of(self.path)

    @property
    def checkpoints(self) -> CheckpointStore:
        """Checkpoints of the run."""
        return CheckpointStore(self.path / "checkpoints", self.config.num_checkpoints)

    @property
    def ledger(self) -> Ledger:
        """Ledger of the samples that each step consumed."""
        return Ledger(self.path / "ledger")

    @property
    def num_samples(self) -> int:
        """Number of samples of the training set."""
        return int(self._of_dataset("num_samples"))

    @property
    def color_basis(self) -> ColorBasis:
        """Colour statistics of the training set, used to normalise every input of this model."""
        return ColorBasis.from_json(self.document["color"])

    @property
    def mean_image_HWC(self) -> np.ndarray | None:
        """Mean picture of the training set, if the recipe subtracts it, else None."""
        if self.config.augmentation.subtract != "mean_image":
            return None
        return np.asarray(np.load(self.path / _MEAN_IMAGE))

    @property
    def wnids(self) -> list[str]:
        """Identifiers of the model's classes, by class_index."""
        return list(self.document["dataset"]["wnids"])

    @property
    def class_names(self) -> list[str]:
        """Names of the model's classes for people, by class_index."""
        return list(self._of_dataset("class_names"))

    @property
    def encoding(self) -> EncodingConfig:
        """Form in which the dataset stores its pictures."""
        return EncodingConfig(**self._of_dataset("encoding"))

    def _of_dataset(self, name: str) -> Any:
        described = self.document["dataset"]
        return described[name] if name in described else self._reopened_dataset[name]

    @functools.cached_property
    def _reopened_dataset(self) -> dict[str, Any]:
        """Description of the dataset, read again for facts that older versions did not record."""
        return _describe(Dataset.open(self.document["dataset"]["path"]))

    @property
    def evaluations_path(self) -> Path:
        """Folder of the run's evaluations."""
        return self.path / "evaluations"

    @property
    def tensorboard_path(self) -> Path:
        """Folder of the events for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def result(self) -> dict[str, Any] | None:
        """Result of the run, or None if it is not finished."""
        path = self.path / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, result: dict[str, Any]) -> None:
        """Mark the run as finished."""
        write_json(self.path / "result.json", result)

    def changes_to(self, config: TrainingConfig) -> dict[str, list[Any]]:
        """Return the fields in which a recipe of the same identity differs: name -> recorded value, new value."""
        return {
            name: list(values) for name, values in _differences(self.config, self._of_this_precision(config)).items()
        }

    def operate_as(self, config: TrainingConfig) -> None:
        """Record the settings with which the run is operated from now on.

        Args:
            config: Recipe of the same identity.
        """
        self.config = self._of_this_precision(config)
        self.document = self.document | {"format_version": _FORMAT_VERSION, "recipe": self.config.to_json()}
        write_json(self.path / _CONFIG_JSON, self.document)

    def in_precision(self, precision: Precision) -> "RunFolder":
        """Return the run with another precision; nothing is written."""
        recipe = self.document["recipe"] | {"precision": precision}
        return RunFolder(self.path, self.document | {"recipe": recipe})

    def check_classes(self, dataset: Dataset) -> None:
        """Check that a dataset has the classes that this run was trained for.

        Raises:
            InputError: The dataset has other classes.
        """
        trained = self.wnids
        if dataset.wnids != trained:
            what = "other classes" if len(trained) == dataset.num_classes else f"{dataset.num_classes} classes"
            raise InputError(
                f"{self.path} was trained on {len(trained)} classes, but {dataset.path} has {what}; "
                f"use the dataset of the run, --data {self.document['dataset']['path']}, or, for pictures of some of "
                "its classes, jobs/evaluate.py --source FOLDER"
            )

    def _check_same(self, config: TrainingConfig, dataset: Dataset | None) -> None:
        changed = _differences(self.config.identity(), self._of_this_precision(config).identity())
        if changed:
            shown = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in list(changed.items())[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise InputError(f"{self.path} holds a run of another recipe ({shown}{more}); choose another --run")
        if dataset is None:
            return
        self.check_classes(dataset)
        if self.document["dataset"]["sha256"] != dataset.sha256:
            raise InputError(
                f"{self.path} holds a run on another dataset ({self.document['dataset']['path']}); choose another --run"
            )

    def _of_this_precision(self, config: TrainingConfig) -> TrainingConfig:
        """Return a recipe with the precision of this run if its own is `auto`."""
        return dataclasses.replace(config, precision=self.config.precision) if config.precision == "auto" else config


def holds_run(path: Path) -> bool:
    """Return whether a run has begun in a folder."""
    return (path / _CONFIG_JSON).exists()


def open_launches(path: Path) -> RunLog:
    """Open the log of launches of the run in `path`, which may be new; holding it open locks the run.

    Raises:
        InputError: Another command has the log open.
    """
    path.mkdir(parents=True, exist_ok=True)
    return RunLog(path / LAUNCHES_JSONL)


def stop_request_of(path: Path) -> StopRequest:
    """Return the stop flag for the workers of the run in `path`, which may be new."""
    return StopRequest(path / _STOP_REQUEST)


def is_a_beginning(path: Path) -> bool:
    """Return whether a folder is empty, or holds only a run that was killed before its `config.json` was written.

    Such a run has begun with the log of its launches; if that is missing, the files belong to something else.
    """
    if not path.is_dir():
        return False
    children = [child for child in path.iterdir() if not (child.is_file() and is_temporary(child.name))]
    if not children:
        return True
    are_own = all(child.is_file() and child.name in _BEFORE_CONFIG for child in children)
    return are_own and (path / LAUNCHES_JSONL).exists()


def _describe(dataset: Dataset) -> dict[str, Any]:
    """Return the dataset's entry in `config.json`: identity, size, classes and form of its pictures."""
    encoding = dataset.document["encoding"]
    return {
        "path": str(dataset.path),
        "sha256": dataset.sha256,
        "num_samples": dataset.num_samples("train"),
        "wnids": dataset.wnids,
        "class_names": dataset.class_names,
        "encoding": {
            "encoding": encoding["name"],
            "size": dataset.stored_size,
            "crop": encoding.get("crop", "centre"),
            "quality": encoding["quality"],
            "damaged": encoding.get("damaged", "reject"),
        },
    }


def _differences(before: TrainingConfig, now: TrainingConfig) -> dict[str, tuple[Any, Any]]:
    """Return the dotted names of the fields that differ, in order, with both values."""
    first, second = _flatten(before.to_json()), _flatten(now.to_json())
    return {name: (first[name], second[name]) for name in first if first[name] != second[name]}


def _flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # runs from a checkout, or without Ray
            versions[name] = importlib.metadata.version(name)
    dali = [d for d in importlib.metadata.distributions() if (d.name or "").startswith("nvidia-dali-cuda")]
    return versions | {d.name: d.version for d in dali}


def _checkout() -> dict[str, Any]:
    """Return the checkout's commit, and whether tracked files have changed since.

    Both are None if the code does not run from a checkout (but from an upload or an installed package).
    """
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_has_changes": None if commit is None or changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    """Return git's output for the checkout, or None if there is no checkout or git fails."""
    try:
        answer = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
