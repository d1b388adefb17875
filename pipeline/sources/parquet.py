"""Parquet files as Hugging Face lays image sets out: ROOT/data/train-*.parquet or ROOT/train-*.parquet.

The first word of a file's name is its split: train, val or validation, test. A row is a picture: `image` (or `img`) is
struct{bytes: binary, path: string}, `label` (or `fine_label`, `labels`) an integer. Classes are named by the schema's
metadata (key `huggingface`, a ClassLabel's names), else by ROOT/classes.txt, one a line, else by their numbers. A split
whose labels are all -1, like ImageNet's test set, has no labels: it is left out.

In a listing, `offset` is the row's number in its file, and `num_bytes` the length of the pictures of its whole row
group, as the file's footer says: a read notices by it that the file was written anew. Parquet gives row groups, not
rows: a read at random costs a whole one, 100 pictures as Hugging Face writes them.
"""

import errno
import itertools
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.command import InputError
from pipeline.sources.base import DEFAULT_OPTIONS, SAMPLE_SCHEMA, SPLITS, Listing, ListingOptions
from pipeline.sources.numbered_classes import numbered_classes

_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
_IMAGES, _LABELS = ("image", "img"), ("label", "fine_label", "labels")
_NO_LABEL = -1
_MAX_OPEN_FILES = 64
_MAX_KEPT_BYTES = 128 * 2**20


class ParquetFiles:
    """Reads a folder of Parquet files; a process keeps the row groups that it read last."""

    layout: ClassVar[str] = "parquet"
    native_pixels: ClassVar[bool] = False

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds the files, or `data`."""
        self.root, self.options = root, options

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Tell whether a Parquet file is named after a split."""
        return bool(_find_files(root))

    def list_samples(self) -> Listing:
        """List all samples, in the files' order, by their labels alone.

        Raises:
            InputError: A file is damaged or has other columns, or labels and class names do not fit together.
        """
        found = _find_files(self.root)
        if len({path.parent for path in found}) > 1:
            raise InputError(
                f"{self.root} holds Parquet files of splits, and so does its folder data; keep one of them"
            )
        tables: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
        names = set()
        for path, split in found.items():
            file = _PictureFile(path)
            tables[split].append(self._list_file(path, file))
            names.add(file.class_names)
        splits = {}
        for split, parts in tables.items():
            labels = {label for table in parts for label in table["class_index"].unique().to_pylist()}
            if labels <= {_NO_LABEL}:
                continue
            if min(labels) < 0:
                raise InputError(f"{split} of {self.root} has the label {min(labels)}; remove the rows without a label")
            splits[split] = pa.concat_tables(parts)
        if not splits:
            raise InputError(f"{self.root} holds no Parquet file with labels; expected train-*.parquet, also in data")
        names.discard(None)
        if len(names) > 1:
            raise InputError(f"the Parquet files of {self.root} name their classes differently; keep those of one set")
        num_classes = 1 + max(int(table["class_index"].to_numpy().max()) for table in splits.values())
        return Listing(numbered_classes(self.root, num_classes, next(iter(names), None)), splits)

    def read(self, file: str, offset: int, num_bytes: int) -> bytes:
        """Read the picture in row `offset`; none, where the file holds its path alone.

        Raises:
            OSError: The file can't be read or was written anew since it was listed.
            InputError: The file is damaged.
        """
        path = self.root / file
        status = path.stat()
        picture_file = _open_file(path, status.st_mtime_ns, status.st_size)
        group = bisect_right(picture_file.first_rows, offset) - 1
        if group == picture_file.num_groups or picture_file.group_bytes[group] != num_bytes:
            raise OSError(errno.EIO, "holds other pictures than when it was listed", str(path))
        pictures = _row_groups.get((path, status.st_mtime_ns, group), lambda: picture_file.read_pictures(group))
        image = pictures[offset - picture_file.first_rows[group]].as_py() or {}
        return image.get("bytes") or b""

    def _list_file(self, path: Path, file: "_PictureFile") -> pa.Table:
        labels = file.read_labels()
        width = len(str(len(labels) - 1))
        return pa.table(
            {
                "source": [f"{path.stem}/{row:0{width}d}" for row in range(len(labels))],
                "class_index": labels,
                "file": [str(path.relative_to(self.root))] * len(labels),
                "offset": np.arange(len(labels), dtype=np.int64),
                "num_bytes": np.repeat(file.group_bytes, np.diff(file.first_rows)),
            },
            schema=SAMPLE_SCHEMA,
        )


class _PictureFile:
    """One opened file.

    Attributes:
        num_groups: Row groups.
        first_rows: Of each row group, and the number of all rows.
        group_bytes: Of each row group's pictures, uncompressed, int64.
        class_names: By label, or None.
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
            document = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            feature = document.get("info", {}).get("features", {}).get(self._label, {})
            self.class_names = tuple(feature["names"]) if "names" in feature else None

    def read_labels(self) -> np.ndarray:
        """Return all labels, int32.

        Raises:
            InputError: The file is damaged, or a row has no label.
        """
        with _naming_damage(self._path):
            labels = self._file.read(columns=[self._label], use_threads=False)[self._label]
        if labels.null_count:
            raise InputError(f"{self._path} has {labels.null_count} rows without a {self._label}; remove them")
        with _naming_damage(self._path):
            return labels.cast(pa.int32()).to_numpy()

    def read_pictures(self, group: int) -> pa.ChunkedArray:
        """Return a row group's column of pictures, struct{bytes}.

        Raises:
            InputError: The file is damaged.
        """
        with _naming_damage(self._path):  # without threads: the processes that call this share the cores already
            return self._file.read_row_group(group, columns=[f"{self._image}.bytes"], use_threads=False)[self._image]

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


class _RowGroups:
    """The columns of pictures that were read last, as many as `_MAX_KEPT_BYTES` hold, and always the very last."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Path, int, int], pa.ChunkedArray] = {}  # the one that was asked for last at the end
        self._num_bytes = 0

    def get(self, key: tuple[Path, int, int], read: Callable[[], pa.ChunkedArray]) -> pa.ChunkedArray:
        pictures = self._kept.pop(key, None)
        if pictures is None:
            pictures = read()
            self._num_bytes += pictures.nbytes
        self._kept[key] = pictures
        while self._num_bytes > _MAX_KEPT_BYTES and len(self._kept) > 1:
            self._num_bytes -= self._kept.pop(next(iter(self._kept))).nbytes
        return pictures


_row_groups = _RowGroups()  # of this process


@lru_cache(maxsize=_MAX_OPEN_FILES)
def _open_file(path: Path, mtime_ns: int, num_bytes: int) -> _PictureFile:
    """Return a file that stays open; one that was written anew meanwhile is another."""
    return _PictureFile(path)


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises at a damaged file into an InputError; an operating system's error passes."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(f"{path} is damaged ({str(error).partition(chr(10))[0]}); get the file again") from error


def _find_files(root: Path) -> dict[Path, str]:
    """Return the split of each file that is named after one, in the order of their samples' names."""
    found = {}
    for path in sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")], key=lambda path: f"{path.stem}/"):
        split = _SPLITS.get(re.split(r"[^a-z]", path.name, maxsplit=1)[0])
        if split is not None:
            found[path] = split
    return found


def _is_picture(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
