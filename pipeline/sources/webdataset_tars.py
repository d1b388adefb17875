"""WebDataset tars: ROOT/*.tar, where members of one name up to the first dot are one sample: 0001.jpg, 0001.cls.

A tar whose name holds train, val or test is of that split; without any such name all tars are `train`. The picture is
the member jpg, jpeg, png, webp, bmp, gif, ppm, tif, tiff, or npy (uint8 pixels, HWC); the label is the member cls,
cls.txt, label or index, an integer, or `label` or `cls` of the member json. Members without an extension belong to no
sample. ROOT/classes.txt may name the classes, one a line, in the order of the labels.

A dataset of this project is such a folder too. Its dataset.json, classes and manifests say what it holds, so that a
sample keeps its class's wnid and name and the name it had in the first source: sharding it again loses nothing.
"""

import io
import itertools
import json
import math
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.manifest import DATASET_JSON
from pipeline.sources.base import DEFAULT_OPTIONS, SAMPLE_SCHEMA, SPLITS, ClassEntry, Listing, ListingOptions
from pipeline.sources.byte_range import read_byte_range
from pipeline.sources.numbered_classes import numbered_classes
from pipeline.sources.tar_headers import scan_paths

_PIXELS = "npy"
_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "tif", "tiff", _PIXELS)
_LABELS = ("cls", "cls.txt", "label", "index")
_JSON, _JSON_LABELS = "json", ("label", "cls")
_INTERRUPTED = ".partial"  # what an interrupted run leaves
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class WebDatasetTars:
    """Reads a folder of WebDataset tars; a tar is opened at each read."""

    layout: ClassVar[str] = "webdataset"

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds the tars."""
        self.root, self.options = root, options

    @cached_property
    def native_pixels(self) -> bool:
        """Whether the pictures are npy members, as dataset.json or the first sample says."""
        if self._is_dataset():
            return Dataset.open(self.root).member == _PIXELS
        for path in itertools.chain(*self._find_tars().values()):
            with open(path, "rb", buffering=0) as file:
                for sample in _read_samples(file):
                    return _PIXELS in sample
        return False

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Tell whether a tar is there."""
        return any(_tars(root))

    def list_samples(self) -> Listing:
        """List all samples, sorted by name.

        Raises:
            InputError: A tar is damaged, or a sample lacks its picture or its label; names both.
        """
        if self._is_dataset():
            return _list_dataset(Dataset.open(self.root))
        tables = {
            split: pa.concat_tables([self._list_tar(path) for path in paths])
            for split, paths in self._find_tars().items()
            if paths
        }
        tables = {split: table.sort_by("source") for split, table in tables.items() if table.num_rows}
        if not tables:
            raise InputError(f"the tars of {self.root} hold no sample; expected members like 0001.jpg and 0001.cls")
        num_classes = 1 + max(int(table["class_index"].to_numpy().max()) for table in tables.values())
        return Listing(numbered_classes(self.root, num_classes), tables)

    def read(self, file: str, offset: int, num_bytes: int) -> bytes | np.ndarray:
        """Read one picture's bytes, or the pixels of an npy member, uint8 (H, W, 3).

        Raises:
            OSError: The tar can't be read or is shorter than listed.
            InputError: An npy member holds something else.
        """
        content = read_byte_range(self.root / file, offset, num_bytes)
        if not content.startswith(np.lib.format.MAGIC_PREFIX):
            return content
        try:
            return _pixels(content)
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{self.root / file}: the npy member at byte {offset} is not a picture ({error}); "
                "expected uint8 pixels of shape (H, W, 3)"
            ) from error

    def _is_dataset(self) -> bool:
        return (self.root / DATASET_JSON).exists()

    def _find_tars(self) -> dict[str, list[Path]]:
        """Return the tars of each split, sorted by name."""
        paths = list(_tars(self.root))
        if not paths:
            raise InputError(f"{self.root} holds no *.tar; name the folder that holds the WebDataset tars")
        if (self.root / _INTERRUPTED).exists():
            raise InputError(f"{self.root} holds an interrupted run of `python -m pipeline.shard`; run it again first")
        found = {path: [split for split in SPLITS if split in path.stem.lower()] for path in paths}
        if not any(found.values()):
            return {"train": paths}
        for path, splits in found.items():
            if len(splits) != 1:
                named = " and ".join(splits) or "no split, but others are"
                raise InputError(f"{path} is named after {named}; rename it after one of {', '.join(SPLITS)}")
        return {split: [path for path in paths if split in found[path]] for split in SPLITS}

    def _list_tar(self, path: Path) -> pa.Table:
        rows: dict[str, tuple[int, int, int]] = {}
        with open(path, "rb", buffering=0) as file:
            for sample in _read_samples(file):
                key = sample["__key__"]
                extension = _first_member(_PICTURES, sample, f"{path}: the sample {key} has no picture")
                if (extension == _PIXELS) != self.native_pixels:
                    raise InputError(
                        f"{path}: the sample {key} is {extension}; stored pixels (npy) and encoded pictures can't be "
                        "mixed: keep them in folders of their own"
                    )
                if key in rows:
                    raise InputError(f"{path} holds two samples {key}; pack it again with one name for each")
                rows[key] = (_read_label(file, sample), *sample[extension])
        labels, offsets, sizes = zip(*rows.values(), strict=True) if rows else ((), (), ())
        return pa.table(
            {
                "source": [f"{path.stem}/{key}" for key in rows],
                "class_index": labels,
                "file": [path.name] * len(rows),
                "offset": offsets,
                "num_bytes": sizes,
            },
            schema=SAMPLE_SCHEMA,
        )


def _list_dataset(dataset: Dataset) -> Listing:
    """Return what the manifests of a dataset of this project name."""
    for name, written in dataset.document["files"].items():
        path = dataset.path / name
        if path.suffix == ".tar" and not (path.exists() and path.stat().st_size == written["num_bytes"]):
            raise InputError(f"{path} is missing or has another length than when it was written; restore it first")
    columns = ["shard" if name == "file" else name for name in SAMPLE_SCHEMA.names]
    return Listing(
        [ClassEntry(wnid, name) for wnid, name in zip(dataset.wnids, dataset.class_names, strict=True)],
        {
            split: dataset.manifest(split, columns)
            .select(columns)
            .rename_columns(SAMPLE_SCHEMA.names)
            .sort_by("source")
            for split in dataset.splits
        },
    )


def _tars(root: Path) -> Iterator[Path]:
    """Yield a folder's tars, sorted by name."""
    return (path for path in sorted(root.glob("*.tar")) if not path.name.startswith("."))


def _read_samples(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield a tar's samples as the webdataset library groups them: `__key__`, and extension -> (offset, num_bytes)."""
    from webdataset.tariterators import group_by_keys  # seconds to import: it loads torch

    members = (
        {"__url__": file.name, "fname": name, "data": (offset, num_bytes)}
        for name, offset, num_bytes in scan_paths(file, 0, os.fstat(file.fileno()).st_size)
    )
    try:
        yield from group_by_keys(members)
    except ValueError as error:
        raise InputError(f"{file.name}: {error.args[0]}; pack it again with one name for each member") from error


def _first_member(extensions: tuple[str, ...], sample: dict[str, Any], lack: str) -> str:
    """Return the first extension that a sample has.

    Raises:
        InputError: It has none; begins with `lack`.
    """
    for extension in extensions:
        if extension in sample:
            return extension
    found = ", ".join(name for name in sample if not name.startswith("__"))
    raise InputError(f"{lack} ({', '.join(extensions)}) but {found}; a sample's members must lie next to each other")


def _read_label(file: BinaryIO, sample: dict[str, Any]) -> int:
    name = f"{file.name}: the sample {sample['__key__']}"
    extension = _first_member((*_LABELS, _JSON), sample, f"{name} has no label")
    offset, num_bytes = sample[extension]
    file.seek(offset)
    content = file.read(num_bytes)
    try:
        label = json.loads(content) if extension == _JSON else int(content)
    except ValueError:
        label = None
    if isinstance(label, dict):
        label = next((label[key] for key in _JSON_LABELS if key in label), None)
    if type(label) is not int or not 0 <= label < 2**31:
        raise InputError(
            f"{name} has the {extension} {content[:40]!r}, which gives no label; labels are integers from 0"
        )
    return label


def _pixels(content: bytes) -> np.ndarray:
    """Return a picture's pixels; raises ValueError or KeyError where an npy file holds anything else."""
    stream = io.BytesIO(content)
    shape, fortran_order, dtype = _NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
        raise ValueError(f"{dtype} {shape}")
    num_bytes = len(content) - stream.tell()
    if num_bytes != math.prod(shape):
        raise ValueError(f"{num_bytes} bytes for {shape}")
    return np.frombuffer(content, np.uint8, offset=stream.tell()).reshape(shape, order="F" if fortran_order else "C")
