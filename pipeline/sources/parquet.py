"""Parquet files in Hugging Face's layout for image sets: ROOT/data/train-*.parquet or ROOT/train-*.parquet.

The first word of a file's name is its split: train or training, val, valid, validation or dev, test or testing. Files
converted by Hugging Face are read, too: ROOT/CONFIG/train/0000.parquet, or ROOT/train/0000.parquet if the SOURCE is the
configuration's folder. All parts of a split must be present (`file_names.check_parts`), with the same columns. Each row
is a picture: `image` (or `img`) is struct{bytes: binary, path: string}, `label` (or `fine_label`, `labels`) is an
integer. Class names come from the schema's metadata (key `huggingface`, a ClassLabel's names), else from
ROOT/classes.txt, one per line; else classes are named by their numbers. A split whose labels are all -1, like
ImageNet's test set, has no labels and is left out.

In a listing, `offset` is the row's number in its file. `num_bytes` is the length of all pictures in the row's group, as
the file's footer gives it; a read uses it to detect that the file was rewritten. Parquet is read by row groups, not
rows: reading one row costs a whole group, which has 100 pictures in files written by Hugging Face.
"""

import errno
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipeline.command import InputError
from pipeline.sources.base import DEFAULT_OPTIONS, SAMPLE_SCHEMA, SPLITS, Listing, ListingOptions, Members
from pipeline.sources.numbered_classes import class_tables, numbered_classes
from pipeline.sources.parquet_files import PictureFile, choose_files, names_a_split
from pipeline.sources.tree import LeftOut

_NO_LABEL, _WITHOUT_LABELS = -1, "without labels"
_MAX_OPEN_FILES = 64
_MAX_KEPT_BYTES = 128 * 2**20


class ParquetFiles:
    """Reads a folder of Parquet files; each process keeps the row groups it read last."""

    layout: ClassVar[str] = "parquet"
    native_pixels: ClassVar[bool] = False

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds the files, or `data`."""
        self.root, self.options = root, options

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Return whether a Parquet file, or its folder, is named after a split."""
        return names_a_split(root)

    def list_samples(self) -> Listing:
        """List all samples, in the files' order, reading only their labels.

        Raises:
            InputError: A file is damaged or missing or has other columns, or labels and class names do not match.
        """
        found = choose_files(self.root, self.options)
        tables: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
        first: dict[str, PictureFile] = {}
        names = set()
        for path, split in found.items():
            file = PictureFile(path)
            file.check_columns_are_those_of(first.setdefault(split, file))
            tables[split].append(self._list_file(path, file))
            names.add(file.class_names)
        splits = {}
        num_rows = sum(table.num_rows for parts in tables.values() for table in parts)
        unlabelled: dict[str, int] = {}
        for split, parts in tables.items():
            labels = {label for table in parts for label in table["class_index"].unique().to_pylist()}
            if labels <= {_NO_LABEL}:
                unlabelled |= {table["file"][0].as_py(): table.num_rows for table in parts if table.num_rows}
            elif min(labels) < 0:
                raise InputError(f"{split} of {self.root} has the label {min(labels)}; remove the rows without a label")
            else:
                splits[split] = pa.concat_tables(parts)
        if not splits:
            raise InputError(f"{self.root} holds no Parquet file with labels; expected train-*.parquet, also in data")
        left_out = {_WITHOUT_LABELS: LeftOut(sum(unlabelled.values()), min(unlabelled))} if unlabelled else {}
        names.discard(None)
        if len(names) > 1:
            raise InputError(f"the Parquet files of {self.root} name their classes differently; keep those of one set")
        class_names = next(iter(names), None)
        num_classes = 1 + max(int(table["class_index"].to_numpy().max()) for table in splits.values())
        return Listing(
            numbered_classes(self.root, num_classes, class_names),
            splits,
            tables=class_tables(self.root, class_names),
            left_out=dict.fromkeys(unlabelled, _WITHOUT_LABELS) | self._find_empty(found, tables),
            members=Members(num_rows, left_out=left_out),
        )

    def _find_empty(self, found: dict[Path, str], tables: dict[str, list[pa.Table]]) -> dict[str, str]:
        """Return the files without rows."""
        listed = {table["file"][0].as_py() for parts in tables.values() for table in parts if table.num_rows}
        names = (path.relative_to(self.root).as_posix() for path in found)
        return {name: "holds no row" for name in names if name not in listed}

    def read(self, file: str, offset: int, num_bytes: int) -> bytes:
        """Read the picture in row `offset`; return no bytes if the file holds only its path.

        Raises:
            OSError: The file can't be read, or was rewritten since it was listed.
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

    def _list_file(self, path: Path, file: "PictureFile") -> pa.Table:
        labels = file.read_labels()
        width = len(str(len(labels) - 1))
        return pa.table(
            {
                "source": [f"{path.stem}/{row:0{width}d}" for row in range(len(labels))],
                "class_index": labels,
                "file": [path.relative_to(self.root).as_posix()] * len(labels),
                "offset": np.arange(len(labels), dtype=np.int64),
                "num_bytes": np.repeat(file.group_bytes, np.diff(file.first_rows)),
            },
            schema=SAMPLE_SCHEMA,
        )


class _RowGroups:
    """Cache of the picture columns read last: up to `_MAX_KEPT_BYTES`, but always at least the latest one."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Path, int, int], pa.ChunkedArray] = {}  # the most recently used one is last
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


_row_groups = _RowGroups()  # one per process


@lru_cache(maxsize=_MAX_OPEN_FILES)
def _open_file(path: Path, mtime_ns: int, num_bytes: int) -> PictureFile:
    """Return a file that stays open; a rewritten file counts as another one."""
    return PictureFile(path)
