"""WebDataset tars: ROOT/*.tar, where members with the same name up to the first dot are a sample: 0001.jpg, 0001.cls.

A tar belongs to a split if its name contains the word train or training, val, valid, validation or dev, test or
testing; if no name does, all tars are `train`. All numbered tars must be present. The picture is the member jpg, jpeg,
png, webp, bmp, gif, ppm, tif, tiff, or npy (uint8 pixels, HWC). The label is an integer: the member cls, cls.txt, label
or index, or the key `label` or `cls` of the member json. Other members, hidden members and members without an extension
belong to no sample. ROOT/classes.txt may name the classes, one per line, in the order of the labels.

A dataset of this project is such a folder, too. Its dataset.json, classes and manifests say what it holds, so a sample
keeps its class's wnid and name, and its own name from the first source: sharding it again loses nothing.
"""

import io
import itertools
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.format.manifest import DATASET_JSON, INVENTORY_JSON
from pipeline.sources.base import DEFAULT_OPTIONS, SAMPLE_SCHEMA, SPLITS, ClassEntry, Listing, ListingOptions, Members
from pipeline.sources.byte_range import read_byte_range
from pipeline.sources.file_names import check_parts, check_words, split_words
from pipeline.sources.numbered_classes import class_tables, numbered_classes
from pipeline.sources.split_names import split_of
from pipeline.sources.tree import ignore_option, ignored_by
from pipeline.sources.webdataset_samples import PIXELS, FoundMembers, SampleReader

_INTERRUPTED = ".partial"  # folder that an interrupted run leaves
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class WebDatasetTars:
    """Reads a folder of WebDataset tars; each read opens the tar."""

    layout: ClassVar[str] = "webdataset"

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds the tars."""
        self.root, self.options = root, options

    @cached_property
    def native_pixels(self) -> bool:
        """Whether the pictures are npy members, according to dataset.json or the first sample."""
        if self._is_dataset():
            return Dataset.open(self.root).member == PIXELS
        for path in itertools.chain(*self._find_tars().values()):
            with open(path, "rb", buffering=0) as file:
                for sample in SampleReader(file, path.name, self.options, FoundMembers()).read_samples():
                    return sample.extension == PIXELS
        return False

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Return whether the folder holds a tar."""
        return any(_tars(root))

    def list_samples(self) -> Listing:
        """List all samples, sorted by name.

        Raises:
            InputError: A tar is damaged or missing, or a sample has no picture or no label; the message names both.
        """
        if self._is_dataset():
            return self._list_dataset(Dataset.open(self.root))
        found = FoundMembers()
        parts = {path: self._list_tar(path, found) for paths in self._find_tars().values() for path in paths}
        tables = {
            split: pa.concat_tables([parts[path] for path in paths])
            for split, paths in self._find_tars().items()
            if paths
        }
        tables = {split: table.sort_by("source") for split, table in tables.items() if table.num_rows}
        if not tables:
            raise InputError(f"the tars of {self.root} hold no sample; expected members like 0001.jpg and 0001.cls")
        num_classes = 1 + max(int(table["class_index"].to_numpy().max()) for table in tables.values())
        return Listing(
            numbered_classes(self.root, num_classes),
            tables,
            tables=class_tables(self.root),
            left_out={path.name: "holds no sample" for path, table in parts.items() if not table.num_rows},
            members=found.count(),
        )

    def read(self, file: str, offset: int, num_bytes: int) -> bytes | np.ndarray:
        """Read one picture's bytes, or the pixels of an npy member, uint8 (H, W, 3).

        Raises:
            OSError: The tar can't be read or is shorter than listed.
            InputError: An npy member does not hold a picture.
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
        paths = [path for path in _tars(self.root) if ignored_by(path.name, self.options.ignore) is None]
        if not paths:
            raise InputError(f"{self.root} holds no *.tar; name the folder that holds the WebDataset tars")
        if (self.root / _INTERRUPTED).exists():
            raise InputError(f"{self.root} holds an interrupted run of `python -m pipeline.shard`; run it again first")
        check_parts(str(self.root), (path.name for path in paths), self.options.partial)
        words = {path: split_words(path.stem) for path in paths}
        if not any(words.values()):
            return {"train": paths}
        for path in paths:
            if len({split_of(word) for word in words[path]}) != 1:
                named = " and ".join(words[path]) or "no split, but others are"
                raise InputError(
                    f"{path} is named after {named}; name it after one of {', '.join(SPLITS)}, "
                    f"or leave it out with {ignore_option(path.name)}"
                )
        check_words(str(self.root), {path.name: words[path][0] for path in paths})
        return {split: [path for path in paths if split_of(words[path][0]) == split] for split in SPLITS}

    def _list_dataset(self, dataset: Dataset) -> Listing:
        """Return the listing of a dataset of this project, from its manifests."""
        documents = dataset.document["files"]
        for name, written in documents.items():
            if pattern := ignored_by(name, self.options.ignore):
                raise InputError(
                    f"{dataset.path} is a dataset of this project, which is read as a whole, including {name}; remove "
                    f"the pattern {pattern!r} from --ignore"
                )
            path = dataset.path / name
            if path.suffix == ".tar" and not (path.exists() and path.stat().st_size == written["num_bytes"]):
                raise InputError(f"{path} is missing or has another length than when it was written; restore it first")
        num_samples = sum(dataset.num_samples(split) for split in dataset.splits)
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
            tables=[
                DATASET_JSON,
                INVENTORY_JSON,
                *(name for name in documents if not name.endswith(".tar")),
            ],
            members=Members(num_found=2 * num_samples, num_labels=num_samples),  # each sample has a picture and a cls
        )

    def _list_tar(self, path: Path, found: FoundMembers) -> pa.Table:
        rows: dict[str, tuple[int, int, int]] = {}
        with open(path, "rb", buffering=0) as file:
            for sample in SampleReader(file, path.name, self.options, found).read_samples():
                key = sample.key
                if (sample.extension == PIXELS) != self.native_pixels:
                    raise InputError(
                        f"{path}: the sample {key} is {sample.extension}; stored pixels (npy) and encoded pictures "
                        "can't be mixed: keep them in separate folders"
                    )
                if key in rows:
                    raise InputError(f"{path} holds two samples {key}; pack it again with one name for each")
                rows[key] = (sample.class_index, sample.picture.offset, sample.picture.num_bytes)
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


def _tars(root: Path) -> Iterator[Path]:
    """Yield a folder's tars, sorted by name."""
    return (path for path in sorted(root.glob("*.tar")) if not path.name.startswith("."))


def _pixels(content: bytes) -> np.ndarray:
    """Return a picture's pixels.

    Raises:
        ValueError, KeyError: The npy file does not hold a picture.
    """
    stream = io.BytesIO(content)
    shape, fortran_order, dtype = _NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
        raise ValueError(f"{dtype} {shape}")
    num_bytes = len(content) - stream.tell()
    if num_bytes != math.prod(shape):
        raise ValueError(f"{num_bytes} bytes for {shape}")
    return np.frombuffer(content, np.uint8, offset=stream.tell()).reshape(shape, order="F" if fortran_order else "C")
