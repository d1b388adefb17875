"""Parquet files of pictures: which files of a folder belong to a set, and what each of them holds."""

import glob
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.command import InputError
from pipeline.sources.base import ListingOptions
from pipeline.sources.file_names import WAY_OUT, check_parts, check_words, series_of
from pipeline.sources.split_names import SPLIT_WORDS, split_of
from pipeline.sources.tree import ignore_option, ignored_by

_IMAGES, _LABELS = ("image", "img"), ("label", "fine_label", "labels")
_CONVERTED = re.compile(r"\d+\.parquet")  # file name in a folder named after a split
_PARTIAL = "partial-"  # prefix of the folder's name if Hugging Face converted only the first gigabytes

_SPLIT_FOLDERS = [prefix + word for prefix in ("", _PARTIAL) for word in SPLIT_WORDS]


class _FoundFile(NamedTuple):
    path: Path
    name: str  # path relative to the source
    configuration: str  # folder of the set's splits, relative to the source
    word: str  # part of the name, in lower case, that should name a split


def names_a_split(root: Path) -> bool:
    """Return whether a Parquet file, or its folder, is named after a split."""
    return any(split_of(file.word) for file in _find_files(root))


def choose_files(root: Path, options: ListingOptions) -> dict[Path, str]:
    """Return the split of each file, in the order of their samples' names.

    Raises:
        InputError: A file's name does not name a split, parts are missing, or files belong to several sets.
    """
    files = [file for file in _find_files(root) if not _is_ignored(file.name, options)]
    for file in files:
        if split_of(file.word) is None:
            pattern = f"{glob.escape(file.path.name[: len(file.word)])}[-._]*"
            raise InputError(
                f"{file.path} is named after {file.word!r}, which is not a split (train, validation, test, ...); "
                f"rename it, or leave it out with --ignore {shlex.quote(pattern)}"
            )
        if file.path.parent.name.startswith(_PARTIAL) and not options.partial:
            raise InputError(
                f"{file.path.parent} holds only the first part of a split; get the whole set, or read what is there "
                "with --partial"
            )
    configurations = sorted({file.configuration for file in files})
    if len(configurations) > 1:
        first, second = configurations[:2]
        if first == ".":
            raise InputError(
                f"{root} holds Parquet files of splits, and so does its folder {second}; keep one of them, or leave "
                f"the folder out with {ignore_option(second)}"
            )
        raise InputError(
            f"{root} holds the Parquet files of two configurations, {first} and {second}; name one's folder, "
            f"{root / first}"
        )
    check_words(str(root), {file.name: file.word for file in files})
    check_parts(str(root), (file.name for file in files), options.partial)
    series: dict[str, tuple[str, str]] = {}
    for file in files:
        known, first = series.setdefault(file.word, (series_of(file.name), file.name))
        if known != series_of(file.name):
            raise InputError(f"{root} holds two sets of files for {file.word}, {first} and {file.name}; {WAY_OUT}")
    in_order = sorted(files, key=lambda file: f"{file.path.stem}/")
    return {file.path: split for file in in_order if (split := split_of(file.word))}


def _find_files(root: Path) -> list[_FoundFile]:
    """Return the Parquet files in all places where a split's files may lie, sorted."""
    found = []
    for pattern in ("*.parquet", "data/*.parquet"):
        for path in root.glob(pattern):
            word = re.sub(r"_\d+$", "", re.split(r"[-.]", path.name)[0]).lower()
            found.append((path, path.parent, word))
    for configuration in (root, *(path for path in root.glob("*/") if path.is_dir())):
        for name in _SPLIT_FOLDERS:  # looked up by name, since class folders may hold a million files
            paths = [path for path in (configuration / name).glob("*.parquet") if _CONVERTED.fullmatch(path.name)]
            found += [(path, configuration, name.removeprefix(_PARTIAL)) for path in paths]
    return [
        _FoundFile(path, path.relative_to(root).as_posix(), configuration.relative_to(root).as_posix(), word)
        for path, configuration, word in sorted(found)
        if not path.name.startswith(".")
    ]


def _is_ignored(name: str, options: ListingOptions) -> bool:
    """Return whether a file, or a folder that contains it, is left out."""
    parts = name.split("/")
    return any(ignored_by("/".join(parts[:depth]), options.ignore) for depth in range(1, len(parts) + 1))


class PictureFile:
    """An open Parquet file.

    Attributes:
        num_groups: Number of row groups.
        first_rows: First row of each row group, then the number of all rows.
        group_bytes: Uncompressed bytes of each row group's pictures, int64.
        class_names: Class names in the order of the labels, or None.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and read its footer.

        Raises:
            InputError: The file is damaged, or has other columns.
        """
        self._path = path
        with _naming_damage(path):
            self._file = pq.ParquetFile(path)
            schema, metadata = self._file.schema_arrow, self._file.metadata
            self._image, self._label = self._find_columns(schema)
            paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
            column = paths.index(f"{self._image}.bytes")
            self.num_groups = metadata.num_row_groups
            groups = [metadata.row_group(index) for index in range(self.num_groups)]
            self.first_rows = [0, *itertools.accumulate(group.num_rows for group in groups)]
            self.group_bytes = np.array([g.column(column).total_uncompressed_size for g in groups], dtype=np.int64)
            self._columns = tuple(schema.names)
            self.class_names = _class_names((schema.metadata or {}).get(b"huggingface", b"{}"), self._label)

    def check_columns_are_those_of(self, other: "PictureFile") -> None:
        """Check that two files of one split have the same columns.

        Raises:
            InputError: The columns differ, so the files are not parts of one set.
        """
        differing = sorted(set(self._columns).symmetric_difference(other._columns))
        if differing:
            raise InputError(
                f"{self._path} and {other._path} belong to one split, but only one of them has the columns "
                f"{', '.join(differing)}; {WAY_OUT}"
            )

    def read_labels(self) -> np.ndarray:
        """Return all labels, int32.

        Raises:
            InputError: The file is damaged, or a row has no label.
        """
        with _naming_damage(self._path):
            labels = self._file.read(columns=[self._label], use_threads=False)[self._label]
        if labels.null_count:
            raise InputError(f"{self._path} has {labels.null_count} rows without a {self._label}; remove them")
        if len(labels) != self.first_rows[-1]:
            raise InputError(f"{self._path} is damaged (it has {len(labels)} labels); get the file again")
        extremes = pc.min_max(labels).as_py()
        for label in extremes.values():
            if label is not None and not -(2**31) <= label < 2**31:
                raise InputError(f"{self._path} has the {self._label} {label}; labels must number the classes from 0")
        return labels.cast(pa.int32()).to_numpy()

    def read_pictures(self, group: int) -> pa.ChunkedArray:
        """Return a row group's picture column, struct{bytes}.

        Raises:
            InputError: The file is damaged.
        """
        with _naming_damage(self._path):  # no threads: the calling processes already share the cores
            table = self._file.read_row_group(group, columns=[f"{self._image}.bytes"], use_threads=False)
            pictures = table[self._image]
            if len(pictures) != self.first_rows[group + 1] - self.first_rows[group]:
                raise ValueError(f"{len(pictures)} pictures in row group {group}")
            return pictures

    def _find_columns(self, schema: pa.Schema) -> tuple[str, str]:
        image = next((name for name in _IMAGES if name in schema.names and _is_picture(schema.field(name).type)), None)
        label = next((n for n in _LABELS if n in schema.names and pa.types.is_integer(schema.field(n).type)), None)
        if image is None or label is None:
            columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
            raise InputError(
                f"{self._path} has the columns {columns}; "
                f"expected image: struct<bytes: binary, path: string>, label: int64"
            )
        return image, label


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into an InputError; errors of the operating system pass."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(f"{path} is damaged ({str(error).partition(chr(10))[0]}); get the file again") from error


def _class_names(document: bytes, label: str) -> tuple[str, ...] | None:
    """Return the names that Hugging Face's metadata gives to a column's labels.

    Raises:
        ValueError: The metadata has another form.
    """
    try:
        names = json.loads(document).get("info", {}).get("features", {}).get(label, {}).get("names")
    except (AttributeError, RecursionError) as error:
        raise ValueError("Hugging Face's metadata has another form") from error
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("the class names are not a list of strings")
    return None if names is None else tuple(names)


def _is_picture(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    content = kind.field("bytes").type
    return bool(pa.types.is_binary(content) or pa.types.is_large_binary(content))
