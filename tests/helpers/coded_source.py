"""A source whose picture i says i: a flat colour or stored pixels that encode the sample's number and class."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.sources.base import DEFAULT_OPTIONS, SAMPLE_SCHEMA, ClassEntry, Listing, Members
from pipeline.sources.tree import Folder, SourceTree

NUM_CLASSES = 4


def coded_pixels(number: int, size: int) -> np.ndarray:
    """Noise that is unique to `number`; uint8 (size, size, 3)."""
    words = np.random.Philox(key=number).random_raw(size * size * 3 // 8 + 1)
    return words.view(np.uint8)[: size * size * 3].reshape(size, size, 3)


class CodedSource:
    """`train` has `num_train` samples, `val` `num_val`; the class of sample i is i % 4."""

    layout = "coded"

    def __init__(self, root: Path, num_train: int = 40, num_val: int = 10, size: int = 16, pixels: bool = True):
        self.root, self.options = root, DEFAULT_OPTIONS
        self.sizes = {"train": num_train, "val": num_val}
        self.size, self.native_pixels = size, pixels

    @classmethod
    def recognises(cls, root: Path) -> bool:
        return False

    def list_samples(self) -> Listing:
        splits = {}
        for split, count in self.sizes.items():
            first = 0 if split == "train" else 1_000_000
            rows = [
                {
                    "source": f"{split}/{i}",
                    "class_index": i % NUM_CLASSES,
                    "file": "",
                    "offset": first + i,
                    "num_bytes": 0,
                }
                for i in range(count)
            ]
            if count:
                splits[split] = pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)
        nothing = SourceTree(self.root, Folder(""), [], {}, [], frozenset())
        return Listing(
            [ClassEntry(f"n{i}", f"class {i}") for i in range(NUM_CLASSES)],
            splits,
            members=Members(sum(self.sizes.values())),
            tree=nothing,
        )

    def read(self, file: str, offset: int, num_bytes: int) -> bytes | np.ndarray:
        pixels = coded_pixels(offset, self.size)
        if self.native_pixels:
            return pixels
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()
