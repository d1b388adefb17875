"""A dataset that is open for reading."""

import hashlib
import io
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.command import InputError
from pipeline.format.color import ColorBasis
from pipeline.format.manifest import (
    CLASSES_PARQUET,
    COLOR_JSON,
    DATASET_JSON,
    FORMAT_NAME,
    FORMAT_VERSION,
    HISTOGRAMS_PARQUET,
    INVENTORY_JSON,
    MEAN_IMAGE_NPY,
    REJECTS_PARQUET,
    manifest_path,
)
from pipeline.format.store import Store, StoredFile, store_at
from pipeline.paths import lies_inside
from pipeline.system.os_errors import is_out_of_reach, mending


class Dataset:
    """A dataset written by `python -m pipeline.shard`.

    Attributes:
        store: Store that holds the files.
        document: Parsed `dataset.json`.
        sha256: SHA-256 of `dataset.json`, which contains the hashes of all other files: the dataset's identity.
        files: Files that `dataset.json` lists, by name.
    """

    def __init__(self, store: Store, document: dict[str, Any], sha256: str, files: dict[str, StoredFile]) -> None:
        """Take what `open` has read."""
        self.store, self.document, self.sha256, self.files = store, document, sha256, files

    @classmethod
    def open(cls, location: str | Path | Store) -> "Dataset":
        """Open a dataset.

        Args:
            location: Path of the dataset's folder, or the store that holds its files.

        Raises:
            InputError: There is no finished dataset of this format, or it names files outside its folder.
        """
        store = location if isinstance(location, Store) else store_at(Path(location))
        described = store.path / DATASET_JSON
        try:
            content = store.read_description()
        except FileNotFoundError as error:
            path = store.path if isinstance(location, Store) else location
            raise InputError(
                f"{path} has no {DATASET_JSON}: it is not a finished dataset; "
                f"run `python -m pipeline.shard SOURCE {path}`"
            ) from error
        try:
            document = json.loads(content)
            known = document["format"] == FORMAT_NAME and document["format_version"] == FORMAT_VERSION
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{described} can't be read as a dataset's description; shard again") from error
        if not known:
            raise InputError(
                f"{described} is of format {document['format']} {document['format_version']}; "
                f"this program reads {FORMAT_NAME} {FORMAT_VERSION}"
            )
        try:
            files = {
                name: StoredFile(name, int(written["num_bytes"]), written["sha256"])
                for name, written in document["files"].items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{described} does not list the dataset's files; shard again") from error
        cls._check_names(described, files)
        return cls(store, document, hashlib.sha256(content).hexdigest(), files)

    @property
    def path(self) -> Path:
        """Absolute location of the dataset, which messages show and which opens it again."""
        return self.store.path

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that exist."""
        return tuple(self.document["splits"])

    @property
    def num_classes(self) -> int:
        """Number of classes, including those without a sample."""
        return int(self.document["num_classes"])

    @property
    def member(self) -> str:
        """Extension of the pictures' members: `jpg` or `npy`."""
        return str(self.document["encoding"]["member"])

    @property
    def encoding(self) -> str:
        """Form of the stored pictures: `jpeg`, `raw` or `original`."""
        return str(self.document["encoding"]["name"])

    @property
    def stores_whole_pictures(self) -> bool:
        """True if pictures of any shape are stored, whose centre square is cut when they are read."""
        return self.encoding == "original" or self.document["encoding"].get("crop") == "none"

    @property
    def num_shards(self) -> int:
        """Number of shards of all splits."""
        return sum(int(split["num_shards"]) for split in self.document["splits"].values())

    def num_samples(self, split: str) -> int:
        """Return the number of samples of a split.

        Raises:
            InputError: There is no such split.
        """
        self._check_split(split)
        return int(self.document["splits"][split]["num_samples"])

    @cached_property
    def class_names(self) -> list[str]:
        """Names for people, by class_index."""
        return [str(name) for name in self._classes["name"].to_pylist()]

    @cached_property
    def wnids(self) -> list[str]:
        """Identifiers of the classes, by class_index."""
        return [str(wnid) for wnid in self._classes["wnid"].to_pylist()]

    def manifest(self, split: str, columns: list[str] | None = None) -> pa.Table:
        """Return the manifest of a split: one row per sample, whose number is the sample id.

        Args:
            split: `train`, `val` or `test`.
            columns: Columns to read; all by default.

        Raises:
            InputError: There is no such split, the file is missing or was changed, or it names shards outside the
                dataset's folder.
        """
        self._check_split(split)
        table = self._read_table(manifest_path(split), columns)
        if "shard" in table.column_names:
            self._check_names(self.path / manifest_path(split), table["shard"].unique().to_pylist())
        return table

    def listed(self, name: str) -> StoredFile:
        """Return what `dataset.json` says of a file.

        Raises:
            InputError: `dataset.json` does not list it.
        """
        try:
            return self.files[name]
        except KeyError as error:
            raise InputError(
                f"{self.path / DATASET_JSON} does not list {name}, which belongs to the dataset; shard again"
            ) from error

    @cached_property
    def histograms(self) -> pa.Table:
        """Numbers of pictures by split, quantity and bin; see `HISTOGRAMS_SCHEMA`."""
        return self._read_table(HISTOGRAMS_PARQUET, None)

    @cached_property
    def rejects(self) -> pa.Table:
        """One row per rejected picture; see `REJECTS_SCHEMA`."""
        return self._read_table(REJECTS_PARQUET, None)

    @cached_property
    def inventory(self) -> dict[str, Any] | None:
        """The parsed `inventory.json`, an account of the source's files for people; None if it is absent or broken.

        `dataset.json` does not list it, so nothing says whether it was changed.
        """
        try:
            content = self.store.local_path(StoredFile(INVENTORY_JSON, num_bytes=0, sha256="")).read_bytes()
            document = json.loads(content)
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    @cached_property
    def color_document(self) -> dict[str, Any]:
        """The parsed `statistics/color.json`: colour statistics of the training split.

        Raises:
            InputError: The statistics belong to another manifest.
        """
        document: dict[str, Any] = json.loads(self._read(COLOR_JSON))
        if document["manifest_sha256"] != self.listed(manifest_path("train")).sha256:
            raise InputError(f"{COLOR_JSON} of {self.path} was computed on another manifest; shard again")
        return document

    @cached_property
    def color_basis(self) -> ColorBasis:
        """Colour statistics of the training split.

        Raises:
            InputError: The statistics belong to another manifest.
        """
        return ColorBasis.from_json(self.color_document)

    @cached_property
    def mean_image_HWC(self) -> np.ndarray:
        """Mean of the training pictures at each pixel; float32 (H, W, 3), in grey levels.

        Raises:
            InputError: The pictures differ in size, so there is no mean image.
        """
        if MEAN_IMAGE_NPY not in self.files:
            raise InputError(
                f"{self.path} has no mean image: its pictures differ in size; subtract the mean colour, or shard again "
                f"with --size"
            )
        return np.asarray(np.load(io.BytesIO(self._read(MEAN_IMAGE_NPY))))

    @cached_property
    def stored_size(self) -> int:
        """Side of the square pictures, in pixels; if whole pictures are stored, of the squares that are cut from them.

        Raises:
            InputError: The stored pictures are not squares of one size.
        """
        size = self.document["encoding"]["size"]
        if size is not None:
            return int(size)
        table = self.manifest("train", ["width", "height"])
        sizes = set(table["width"].unique().to_pylist()) | set(table["height"].unique().to_pylist())
        if len(sizes) != 1:
            raise InputError(f"the pictures of {self.path} are not squares of one size; shard them again with --size")
        return int(sizes.pop())

    @cached_property
    def _classes(self) -> pa.Table:
        return self._read_table(CLASSES_PARQUET, None)

    def _read_table(self, name: str, columns: list[str] | None) -> pa.Table:
        return pq.read_table(pa.BufferReader(self._read(name)), columns=columns)

    def _read(self, name: str) -> bytes:
        """Return the content of a document after checking it against the hash in `dataset.json`."""
        file = self.listed(name)
        try:
            content = self.store.local_path(file).read_bytes()
        except OSError as error:
            if is_out_of_reach(error):
                raise
            raise InputError(f"{self.path / name} can't be read ({error.strerror}); {mending(error)}") from error
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise InputError(f"{self.path / name} was changed since it was written; restore it, or shard again")
        return content

    @staticmethod
    def _check_names(document: Path, names: Iterable[object]) -> None:
        """Raise InputError if a document names a file outside the dataset's folder."""
        for name in names:
            if not lies_inside(name):
                raise InputError(
                    f"{document} names the file {name!r}, which is not a path inside the dataset's folder; "
                    "use a dataset that `python -m pipeline.shard` wrote"
                )

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            raise InputError(f"{self.path} has no split {split!r}; it has {', '.join(self.splits)}")
