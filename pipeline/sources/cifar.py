"""CIFAR's binary files: stored 32x32 colour pixels and labels.

A record of CIFAR-10 (`data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin`, names in `batches.meta.txt`) begins
with one label byte. A record of CIFAR-100 (`train.bin`, `test.bin`, names in `fine_label_names.txt`) begins with a
coarse and a fine label; the fine one is the class. Then follow 3,072 bytes: the red, the green and the blue plane. See
Krizhevsky, "Learning multiple layers of features from tiny images", 2009, and the data set's page. All files of a set
must be present; the versions for Python and Matlab are refused.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipeline.command import InputError
from pipeline.sources.base import DEFAULT_OPTIONS, SAMPLE_SCHEMA, ClassEntry, Listing, ListingOptions, Members
from pipeline.sources.byte_range import read_byte_range
from pipeline.sources.numbered_classes import read_names
from pipeline.sources.tree import ignore_option, ignored_by

_SIDE = 32
_PIXEL_BYTES = 3 * _SIDE * _SIDE
_BATCH = re.compile(r"data_batch_([1-9]\d*)\.bin")
_NUM_BATCHES = 5  # of CIFAR-10 as published


@dataclass(frozen=True)
class _Variant:
    """One of the two data sets.

    Attributes:
        title: Name of the data set.
        patterns: Split -> pattern of its files.
        num_label_bytes: Label bytes per record; the last one is the class.
        names: Name of the file with the classes' names.
        signs: Groups of files; each group shows that the set is present, without its names or in another version.
    """

    title: str
    patterns: dict[str, str]
    num_label_bytes: int
    names: str
    signs: tuple[tuple[str, ...], ...]


_VARIANTS = (
    _Variant(
        "cifar-10",
        {"train": "data_batch_*.bin", "test": "test_batch.bin"},
        1,
        "batches.meta.txt",
        (("data_batch_1.bin",), ("data_batch_1",), ("data_batch_1.mat",)),
    ),
    _Variant(
        "cifar-100",
        {"train": "train.bin", "test": "test.bin"},
        2,
        "fine_label_names.txt",
        (("train.bin", "test.bin"), ("train", "test", "meta"), ("train.mat", "test.mat", "meta.mat")),
    ),
)


class CifarFiles:
    """Reads a folder of CIFAR-10's or CIFAR-100's binary files."""

    layout: ClassVar[str] = "cifar"
    native_pixels: ClassVar[bool] = True

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds the files."""
        self.root, self.options = root, options

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Return whether a set is present: its records and names, CIFAR-10's records alone, or another version."""
        return _find_variant(root) is not None

    def list_samples(self) -> Listing:
        """List all samples, in the files' order.

        Raises:
            InputError: A file is missing, its length is not a whole number of records, or a label has no name.
        """
        variant = _find_variant(self.root)
        if variant is None:
            raise InputError(f"{self.root} holds no CIFAR files; expected data_batch_*.bin, or train.bin, and names")
        files = self._find_files(variant)
        names = read_names(self.root / variant.names)
        if not names:
            raise InputError(f"{self.root / variant.names} names no class; get the file again")
        width = len(str(len(names) - 1))
        classes = [ClassEntry(f"{label:0{width}d}", name) for label, name in enumerate(names)]
        splits = {
            split: pa.concat_tables([self._list_file(path, variant, len(names)) for path in paths])
            for split, paths in files.items()
            if paths
        }
        num_records = sum(table.num_rows for table in splits.values())
        return Listing(classes, splits, tables=(variant.names,), members=Members(num_records))

    def read(self, file: str, offset: int, num_bytes: int) -> np.ndarray:
        """Return one picture's pixels, uint8 (32, 32, 3)."""
        planes_CHW = np.frombuffer(read_byte_range(self.root / file, offset, num_bytes), dtype=np.uint8)
        return np.ascontiguousarray(planes_CHW.reshape(3, _SIDE, _SIDE).transpose(1, 2, 0))

    def _find_files(self, variant: _Variant) -> dict[str, list[Path]]:
        """Return the files of each split, sorted by name.

        Raises:
            InputError: Files are missing, or a file does not belong to the set.
        """
        files = {
            split: [path for path in sorted(self.root.glob(pattern)) if not ignored_by(path.name, self.options.ignore)]
            for split, pattern in variant.patterns.items()
        }
        there = {path.name for paths in files.values() for path in paths}
        if not there:
            raise InputError(
                f"{self.root} holds {variant.title} in another version; get the binary version, "
                f"{variant.title}-binary.tar.gz, and unpack it"
            )
        expected = set(variant.patterns.values())
        if variant.patterns["train"] == "data_batch_*.bin":
            numbered = {name for name in there if _BATCH.fullmatch(name)}
            foreign = sorted(there - expected - numbered)
            if foreign:
                raise InputError(
                    f"{self.root / foreign[0]} is not one of {variant.title}'s files, data_batch_1.bin, ...; "
                    f"remove it, or leave it out with {ignore_option(foreign[0])}"
                )
            num_batches = max(_NUM_BATCHES, len(numbered))  # a file with a larger number shows that one is missing
            batches = {f"data_batch_{number}.bin" for number in range(1, num_batches + 1)}
            expected = expected - {"data_batch_*.bin"} | batches
        missing = sorted(expected - there)
        if not (self.root / variant.names).is_file():
            raise InputError(f"{self.root} lacks {variant.names}, which names the classes; it is in the same archive")
        if missing and not self.options.partial:
            raise InputError(
                f"{self.root} lacks {', '.join(missing[:5])}; get the whole set, or read what is there with --partial"
            )
        return files

    def _list_file(self, path: Path, variant: _Variant, num_classes: int) -> pa.Table:
        record_bytes = variant.num_label_bytes + _PIXEL_BYTES
        num_bytes = path.stat().st_size
        if num_bytes == 0 or num_bytes % record_bytes:
            raise InputError(
                f"{path} has {num_bytes} bytes, not a whole number of {record_bytes}-byte records; get the file again"
            )
        records = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, record_bytes)
        labels = records[:, variant.num_label_bytes - 1].astype(np.int32)
        if labels.max() >= num_classes:
            raise InputError(f"{path} has the label {labels.max()}, but {variant.names} names {num_classes} classes")
        numbers = np.arange(len(labels), dtype=np.int64)
        width = len(str(len(labels) - 1))
        return pa.table(
            {
                "source": [f"{path.stem}/{number:0{width}d}" for number in numbers.tolist()],
                "class_index": labels,
                "file": [path.name] * len(labels),
                "offset": numbers * record_bytes + variant.num_label_bytes,
                "num_bytes": np.full(len(labels), _PIXEL_BYTES, dtype=np.int64),
            },
            schema=SAMPLE_SCHEMA,
        )


def _find_variant(root: Path) -> _Variant | None:
    """Return the set that a folder holds, complete or not, in any version."""
    for variant in _VARIANTS:
        if (root / variant.names).is_file() and any(any(root.glob(p)) for p in variant.patterns.values()):
            return variant
    for variant in _VARIANTS:
        if any(all((root / name).is_file() for name in names) for names in variant.signs):
            return variant
    return None
