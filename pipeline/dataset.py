"""A dataset folder, opened for reading."""

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
    MEAN_IMAGE_NPY,
    manifest_path,
)
from pipeline.paths import lies_inside
from pipeline.system.os_errors import is_out_of_reach, mending


class Dataset:
    """A dataset folder written by `python -m pipeline.shard`.

    Attributes:
        path: The folder, absolute.
        document: The parsed `dataset.json`.
        sha256: Of `dataset.json`, which holds the hashes of all other files: the dataset's identity.
    """

    def __init__(self, path: Path, document: dict[str, Any], sha256: str) -> None:
        """Take what `open` has read."""
        self.path, self.document, self.sha256 = path, document, sha256

    @classmethod
    def open(cls, path: str | Path) -> "Dataset":
        """Open a dataset folder.

        Raises:
            InputError: There is no finished dataset of this format at `path`, or it names files outside of its folder.
        """
        folder = Path(path).absolute()
        if not folder.is_dir():
            raise InputError(
                f"{path} does not exist or is not a folder; write a dataset with `python -m pipeline.shard`"
            )
        try:
            content = (folder / DATASET_JSON).read_bytes()
        except FileNotFoundError as error:
            raise InputError(
                f"{path} has no {DATASET_JSON}: it is not a finished dataset; "
                f"run `python -m pipeline.shard SOURCE {path}`"
            ) from error
        try:
            document = json.loads(content)
            known = document["format"] == FORMAT_NAME and document["format_version"] == FORMAT_VERSION
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder / DATASET_JSON} can't be read as a dataset's description; shard again"
            ) from error
        if not known:
            raise InputError(
                f"{folder / DATASET_JSON} is of format {document['format']} {document['format_version']}; "
                f"this program reads {FORMAT_NAME} {FORMAT_VERSION}"
            )
        try:
            files = {name: (written["num_bytes"], written["sha256"]) for name, written in document["files"].items()}
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{folder / DATASET_JSON} does not list the dataset's files; shard again") from error
        cls._check_names(folder / DATASET_JSON, files)
        return cls(folder, document, hashlib.sha256(content).hexdigest())

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that exist."""
        return tuple(self.document["splits"])

    @property
    def num_classes(self) -> int:
        """Number of classes, those without a sample included."""
        return int(self.document["num_classes"])

    @property
    def member(self) -> str:
        """Extension of the pictures' members: `jpg` or `npy`."""
        return str(self.document["encoding"]["member"])

    @property
    def encoding(self) -> str:
        """`jpeg`, `raw` or `original`."""
        return str(self.document["encoding"]["name"])

    @property
    def stores_whole_pictures(self) -> bool:
        """True where pictures of any shape are stored, whose centre square is cut when they are read."""
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
        """Return a split's manifest: one row per sample, row number = sample id.

        Args:
            split: `train`, `val` or `test`.
            columns: To read; all by default.

        Raises:
            InputError: There is no such split, the file is missing or was changed, or it names shards outside of the
                dataset's folder.
        """
        self._check_split(split)
        table = self._read_table(manifest_path(split), columns)
        if "shard" in table.column_names:
            self._check_names(self.path / manifest_path(split), table["shard"].unique().to_pylist())
        return table

    def num_bytes(self, name: str) -> int:
        """Return the length that a file of the dataset had when it was written.

        Raises:
            InputError: `dataset.json` does not list it.
        """
        return int(self._listed(name)["num_bytes"])

    @cached_property
    def color_basis(self) -> ColorBasis:
        """Colour statistics of the training split.

        Raises:
            InputError: They belong to another manifest.
        """
        document = json.loads(self._read(COLOR_JSON))
        if document["manifest_sha256"] != self.document["files"][manifest_path("train")]["sha256"]:
            raise InputError(f"{COLOR_JSON} of {self.path} was computed on another manifest; shard again")
        return ColorBasis.from_json(document)

    @cached_property
    def mean_image_HWC(self) -> np.ndarray:
        """Mean of the training pictures at each pixel; float32 (H, W, 3), in grey levels.

        Raises:
            InputError: The pictures' sizes differ, so that there is none.
        """
        if MEAN_IMAGE_NPY not in self.document["files"]:
            raise InputError(
                f"{self.path} has no mean image: its pictures differ in size; subtract the mean colour, or shard again "
                f"with --size"
            )
        return np.asarray(np.load(io.BytesIO(self._read(MEAN_IMAGE_NPY))))

    @cached_property
    def stored_size(self) -> int:
        """Side of the square pictures, in pixels; where whole pictures are stored, of the square that is read.

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
        """Return a document's content, checked against the hash in `dataset.json`."""
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            if is_out_of_reach(error):
                raise
            raise InputError(f"{self.path / name} can't be read ({error.strerror}); {mending(error)}") from error
        if hashlib.sha256(content).hexdigest() != self._listed(name)["sha256"]:
            raise InputError(f"{self.path / name} was changed since it was written; restore it, or shard again")
        return content

    def _listed(self, name: str) -> dict[str, Any]:
        try:
            return dict(self.document["files"][name])
        except KeyError as error:
            raise InputError(
                f"{self.path / DATASET_JSON} does not list {name}, which belongs to the dataset; shard again"
            ) from error

    @staticmethod
    def _check_names(document: Path, names: Iterable[object]) -> None:
        """Raise InputError where a document names a file outside of the dataset's folder."""
        for name in names:
            if not lies_inside(name):
                raise InputError(
                    f"{document} names the file {name!r}, which is not a path inside the dataset's folder; "
                    "use a dataset that `python -m pipeline.shard` wrote"
                )

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            raise InputError(f"{self.path} has no split {split!r}; it has {', '.join(self.splits)}")
