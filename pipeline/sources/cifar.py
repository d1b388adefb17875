"""CIFAR's binary files: stored 32x32 colour pixels and labels.

CIFAR-10 (`data_batch_*.bin`, `test_batch.bin`, names in `batches.meta.txt`) has one label byte per record, CIFAR-100
(`train.bin`, `test.bin`, names in `fine_label_names.txt`) a coarse one and a fine one, of which the fine one is the
class; then 3,072 bytes: the red plane, the green, the blue. Krizhevsky, "Learning multiple layers of features from tiny
images", 2009, and the data set's page.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipeline.command import InputError
from pipeline.sources.base import DEFAULT_OPTIONS, SAMPLE_SCHEMA, ClassEntry, Listing, ListingOptions
from pipeline.sources.byte_range import read_byte_range

_SIDE = 32
_PIXEL_BYTES = 3 * _SIDE * _SIDE


@dataclass(frozen=True)
class _Variant:
    """One of the two data sets: its files by split, its label bytes (the last is the class), its list of names."""

    patterns: dict[str, str]
    num_label_bytes: int
    names: str


_VARIANTS = (
    _Variant({"train": "data_batch_*.bin", "test": "test_batch.bin"}, 1, "batches.meta.txt"),
    _Variant({"train": "train.bin", "test": "test.bin"}, 2, "fine_label_names.txt"),
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
        """Tell whether the list of names and a file of training records are there."""
        return _find_variant(root) is not None

    def list_samples(self) -> Listing:
        """List all samples, in the files' order.

        Raises:
            InputError: A file's length is not a whole number of records, or a label has no name.
        """
        variant = _find_variant(self.root)
        if variant is None:
            raise InputError(f"{self.root} holds no CIFAR files; expected data_batch_*.bin, or train.bin, and names")
        lines = (self.root / variant.names).read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
        width = len(str(len(names) - 1))
        classes = [ClassEntry(f"{label:0{width}d}", name) for label, name in enumerate(names)]
        splits = {}
        for split, pattern in variant.patterns.items():
            tables = [self._list_file(path, variant, len(names)) for path in sorted(self.root.glob(pattern))]
            if tables:
                splits[split] = pa.concat_tables(tables)
        return Listing(classes, splits)

    def read(self, file: str, offset: int, num_bytes: int) -> np.ndarray:
        """Return one picture's pixels, uint8 (32, 32, 3)."""
        planes_CHW = np.frombuffer(read_byte_range(self.root / file, offset, num_bytes), dtype=np.uint8)
        return np.ascontiguousarray(planes_CHW.reshape(3, _SIDE, _SIDE).transpose(1, 2, 0))

    def _list_file(self, path: Path, variant: _Variant, num_classes: int) -> pa.Table:
        record_bytes = variant.num_label_bytes + _PIXEL_BYTES
        num_bytes = path.stat().st_size
        if num_bytes == 0 or num_bytes % record_bytes:
            raise InputError(f"{path} has {num_bytes} bytes, no whole records of {record_bytes}; get the file again")
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
    for variant in _VARIANTS:
        if (root / variant.names).is_file() and any(root.glob(variant.patterns["train"])):
            return variant
    return None
