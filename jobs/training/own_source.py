"""`jobs/train.py --source FOLDER`: pictures of one's own become a dataset beside the run, once.

    RUN-data/                the dataset; or the folder of --data
    RUN-data.source.json     which files it was made of, written before it is begun

The same command uses the dataset again, and goes on with one that was interrupted. Files count as unchanged if names,
sizes and times of their last change are the same.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cluster.run.config import TrainingConfig
from cluster.run.fit import check_fits, check_fits_pictures
from cluster.run.run_folder import RunFolder, holds_run
from jobs.training.choice import Choice, OwnPictures, choose, keep
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.format.manifest import DATASET_JSON
from pipeline.offline.sharding import PARTIAL
from pipeline.paths import lies_in, shared_path
from pipeline.shard import main as shard
from pipeline.sources.base import ListingOptions
from pipeline.sources.detect import open_source
from pipeline.sources.tree import walk_source
from pipeline.system.files import write_json

if TYPE_CHECKING:
    from jobs.train import Arguments

_MOST_REJECTS = 0.05  # among few photographs from anywhere, a broken one should not stop all


@dataclass(frozen=True)
class OwnSource:
    """Pictures of one's own, and where their dataset lies.

    Attributes:
        root: Folder of the pictures, absolute.
        data: Folder of the dataset, absolute.
        run: Folder of the run, absolute.
        pictures: What is known of them.
        choice: How they are stored, and trained.
        has_gpu: Whether the choice is one for a machine with a GPU.
        ignore: Patterns of files to leave out.
    """

    root: Path
    data: Path
    run: Path
    pictures: OwnPictures
    choice: Choice
    has_gpu: bool
    ignore: tuple[str, ...] = ()

    @classmethod
    def find(cls, arguments: "Arguments", requested: TrainingConfig | None) -> "OwnSource":
        """Look at the pictures, and choose the recipe; a run that has begun keeps its own.

        Args:
            arguments: Command line, with `source`.
            requested: Recipe that the command line names, or None.

        Raises:
            InputError: The source can't be read, or the command line lacks --run.
        """
        assert arguments.source is not None
        if arguments.run is None:
            raise InputError("--run is missing: name the folder that the run is to live in")
        root, run = shared_path(arguments.source, "--source"), shared_path(arguments.run, "--run")
        data = run.with_name(f"{run.name}-data") if arguments.data is None else shared_path(arguments.data, "--data")
        for folder, option in ((run, "--run"), (data, "--data")):
            if lies_in(folder, root):
                raise InputError(f"{option} {folder} lies in --source {root}; choose a folder outside of it")
        source = open_source(root, options=ListingOptions(arguments.ignore))
        pictures = OwnPictures.of(source, source.list_samples())
        # What the dataset was begun for, since the choice decides how pictures are stored.
        recorded = _read(_sidecar(data)) if data.exists() else None
        has_gpu = torch.cuda.is_available() if recorded is None else bool(recorded.get("has_gpu"))
        if requested is not None:
            choice = keep(pictures, requested, "as named by --recipe")
        elif holds_run(run):
            choice = keep(pictures, RunFolder.open(run).config, "the run's own")
        else:
            choice = choose(pictures, has_gpu)
        return cls(root, data, run, pictures, choice, has_gpu, arguments.ignore)

    def overridden(self, config: TrainingConfig) -> "OwnSource":
        """Return the same with the recipe as the command line overrides it; a dataset that is there keeps its size."""
        choice = self.choice.overridden(config)
        if self.has_dataset:
            choice = replace(choice, stored_size=Dataset.open(self.data).stored_size)
        return replace(self, choice=choice)

    def check(self, num_workers: int) -> None:
        """Check what is known before there is a dataset: the network takes the pictures, and the run folder is free.

        Raises:
            InputError: It does not, it is not, or the workers are too many.
        """
        dataset = Dataset.open(self.data) if self.has_dataset else None
        RunFolder.resume(self.run, self.choice.config, dataset)
        if dataset is None:
            what, stored_size = f"the pictures of {self.root}", self.choice.stored(self.pictures)
            check_fits_pictures(self.choice.config, what, stored_size, num_workers)
        else:
            check_fits(self.choice.config, dataset, num_workers)

    @property
    def has_dataset(self) -> bool:
        """Whether the dataset is there and complete."""
        return (self.data / DATASET_JSON).exists() and not (self.data / PARTIAL).exists()

    def make_dataset(self) -> None:
        """Make the dataset, go on with one that was interrupted, or use the one that is there.

        Raises:
            InputError: The folder holds something else, or the pictures have changed since.
        """
        sidecar, now = _sidecar(self.data), self._files()
        before = _read(sidecar) if self.data.exists() else None
        if before is None and self.data.exists() and any(self.data.iterdir()):
            raise InputError(
                f"{self.data} was not made by --source; leave out --source to train on it, or name another folder: "
                "--data"
            )
        if before is not None and any(before.get(name) != value for name, value in now.items()):
            difference = f"{self.root} is not what {self.data} was made of ({_difference(before, now)})"
            if not self.has_dataset:
                raise InputError(f"{difference}; it was not completed: remove it, and the same command begins anew")
            raise InputError(
                f"{difference}; to train on the dataset as it is, leave out --source and name it with --data; else "
                "remove it, and begin another --run"
            )
        if self.has_dataset:
            sys.stdout.write(f"using {self.data}, made of {self.root} before\n")
            sys.stdout.flush()
            return
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        write_json(sidecar, now | {"has_gpu": self.has_gpu})
        shard([str(self.root), str(self.data), *self._options()])

    def _options(self) -> list[str]:
        choice = self.choice
        options = ["--max-rejects", str(_MOST_REJECTS)]
        options += ["--size", str(choice.stored_size)] if choice.stored_size is not None else []
        options += ["--val-fraction", str(choice.val_fraction)] if choice.val_fraction is not None else []
        return options + [word for pattern in self.ignore for word in ("--ignore", pattern)]

    def _files(self) -> dict[str, Any]:
        """Return a description of the source's files, wherever its folder lies."""
        lines = []
        for path in walk_source(self.root, self.ignore).files():
            status = os.stat(self.root / path)
            lines.append(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        digest = hashlib.sha256(b"".join(sorted(lines))).hexdigest()
        return {"num_files": len(lines), "sha256": digest, "ignore": sorted(self.ignore)}


def _sidecar(data: Path) -> Path:
    return data.with_name(f"{data.name}.source.json")


def _read(sidecar: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(sidecar.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise InputError(f"{sidecar} can't be read; remove it and the dataset beside it") from error


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    if before.get("num_files") != now["num_files"]:
        return f"{before.get('num_files')} files then, {now['num_files']} now"
    if before.get("ignore") != now["ignore"]:
        patterns = (" ".join(map(str, document.get("ignore") or ())) or "nothing" for document in (before, now))
        return "--ignore left out {} then, {} now".format(*patterns)
    return "some files were replaced or changed"
