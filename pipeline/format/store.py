"""Stores, which hold the files of a dataset. Readers ask a store for a local file by name; today's store is a folder.

A dataset in another place (an object store, say) needs one more subclass of `Store`, a line in `store_at` which chooses
it, and a look at its files by each node before a run (`cluster/launch/node_checks.py`). Readers check what they read,
whichever store it comes from: documents by their hash, shards by their length and each sample by its hash.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from pipeline.command import InputError
from pipeline.format.manifest import DATASET_JSON


@dataclass(frozen=True)
class StoredFile:
    """A file that `dataset.json` lists.

    Attributes:
        name: Path relative to the dataset, with slashes.
        num_bytes: Length of the file when it was written, in bytes.
        sha256: SHA-256 of its content when it was written, in hexadecimal.
    """

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Store(ABC):
    """The files of one dataset. A store is sent to worker processes and used by several threads.

    Attributes:
        path: Location of the dataset, in the form that messages show and that `store_at` takes.
    """

    path: Path

    @abstractmethod
    def read_description(self) -> bytes:
        """Return the current content of `dataset.json`.

        Raises:
            OSError: The file can't be read; FileNotFoundError if it does not exist.
        """

    @abstractmethod
    def local_path(self, file: StoredFile) -> Path:
        """Return the path of a file on this machine, which no process changes while it is read.

        A store that fetches files checks length and hash of a file before it returns the path, and keeps the file.

        Raises:
            OSError: The file can't be fetched; FileNotFoundError if it does not exist. `pipeline.system.os_errors`
                knows which errors are temporary, so that another try is worthwhile.
            InputError: The fetched file is not the one that was written.
        """

    @abstractmethod
    def names(self) -> set[str]:
        """Return the names of all files in the store, whether `dataset.json` lists them or not."""


class FolderStore(Store):
    """A folder on this machine, or on a file system that every machine mounts; its files are read in place."""

    def read_description(self) -> bytes:
        """See `Store`."""
        return (self.path / DATASET_JSON).read_bytes()

    def local_path(self, file: StoredFile) -> Path:
        """Return the path in the folder, whether the file exists or not."""
        return self.path / file.name

    def names(self) -> set[str]:
        """See `Store`."""
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()}


def store_at(path: Path) -> Store:
    """Return the store at a location.

    Raises:
        InputError: There is no folder at this path.
    """
    folder = path.absolute()
    if not folder.is_dir():
        raise InputError(f"{path} does not exist or is not a folder; write a dataset with `python -m pipeline.shard`")
    return FolderStore(folder)
