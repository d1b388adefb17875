"""IDX files, the format of MNIST and its successors: stored grey pixels and labels, in .gz files or not.

`train-images-idx3-ubyte` and `train-labels-idx1-ubyte` are the split `train`, `t10k-...` is `test`. A file is a magic
number (two zero bytes, the type 8 for uint8, the number of dimensions), each dimension as a big-endian 32-bit integer,
and the bytes: LeCun, Cortes, Burges, "The MNIST database". classes.txt beside them may name the classes, one a line.
"""

import gzip
import zlib
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipeline.command import InputError
from pipeline.sources.base import DEFAULT_OPTIONS, SAMPLE_SCHEMA, ClassEntry, Listing, ListingOptions

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
CLASS_NAMES = "classes.txt"
_PREFIXES = {"train": "train", "test": "t10k"}
_IMAGE_HEADER_BYTES = 16


class IdxFiles:
    """Reads IDX files. A process decompresses a file once; grey pixels become RGB."""

    layout: ClassVar[str] = "idx"
    native_pixels: ClassVar[bool] = True

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds the files."""
        self.root, self.options = root, options

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Tell whether a split's images are there."""
        return any(_find(root, f"{prefix}-{IMAGES}") for prefix in _PREFIXES.values())

    def list_samples(self) -> Listing:
        """List all samples, in the files' order.

        Raises:
            InputError: A file is missing or damaged, or images, labels and class names do not fit together.
        """
        splits = {}
        num_classes = 0
        for split, prefix in _PREFIXES.items():
            images_path = _find(self.root, f"{prefix}-{IMAGES}")
            if images_path is None:
                continue
            labels_path = _find(self.root, f"{prefix}-{LABELS}")
            if labels_path is None:
                raise InputError(f"{images_path} has no labels: {prefix}-{LABELS}[.gz] is missing beside it")
            images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
            if len(images) != len(labels):
                raise InputError(f"{images_path} has {len(images)} pictures, but {labels_path} {len(labels)} labels")
            if images.size == 0:
                raise InputError(f"{images_path} holds no picture; get the file again")
            splits[split] = _table(images_path.name, prefix, images, labels)
            num_classes = max(num_classes, int(labels.max()) + 1)
        if not splits:
            raise InputError(f"{self.root} holds no IDX images; expected train-{IMAGES} or t10k-{IMAGES}, or .gz")
        return Listing(self._classes(num_classes), splits)

    def read(self, file: str, offset: int, num_bytes: int) -> np.ndarray:
        """Return one picture's pixels, uint8 (H, W, 3)."""
        images = read_idx(self.root / file, 3)
        grey_HW = images[(offset - _IMAGE_HEADER_BYTES) // num_bytes]
        return np.repeat(grey_HW[..., None], 3, axis=2)

    def _classes(self, num_classes: int) -> list[ClassEntry]:
        path = self.root / CLASS_NAMES
        if path.exists():
            names = path.read_text(encoding="utf-8").splitlines()
            if len(names) < num_classes:
                raise InputError(f"{path} names {len(names)} classes, but the labels need {num_classes}; one a line")
        else:
            names = [str(label) for label in range(num_classes)]
        width = len(str(len(names) - 1))
        return [ClassEntry(f"{label:0{width}d}", name) for label, name in enumerate(names)]


@lru_cache(maxsize=4)  # of a split or two: images and labels
def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """Return a file's content: uint8, read-only, with its own dimensions.

    Raises:
        InputError: The file is not an IDX file of unsigned bytes with `num_dimensions` dimensions, or its length is
            wrong.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path} is damaged ({error}); get the file again") from error
    header_bytes = 4 * (1 + num_dimensions)
    if len(content) < header_bytes or content[:4] != bytes([0, 0, 8, num_dimensions]):
        raise InputError(f"{path} is not an IDX file of uint8 with {num_dimensions} dimensions; get the file again")
    shape = tuple(np.frombuffer(content, ">u4", num_dimensions, offset=4).tolist())
    data = np.frombuffer(content, np.uint8, offset=header_bytes)
    if data.size != np.prod(shape, dtype=np.int64):
        raise InputError(f"{path} should hold {shape} bytes, but has {data.size}; get the file again")
    return data.reshape(shape)


def _find(root: Path, name: str) -> Path | None:
    """Return the path of a file, plain or compressed; None where neither is there."""
    return next((path for path in (root / name, root / f"{name}.gz") if path.is_file()), None)


def _table(file: str, prefix: str, images: np.ndarray, labels: np.ndarray) -> pa.Table:
    num_samples, num_bytes = len(images), images[0].size
    width = len(str(num_samples - 1))
    return pa.table(
        {
            "source": [f"{prefix}/{number:0{width}d}" for number in range(num_samples)],
            "class_index": labels.astype(np.int32),
            "file": [file] * num_samples,
            "offset": _IMAGE_HEADER_BYTES + num_bytes * np.arange(num_samples, dtype=np.int64),
            "num_bytes": np.full(num_samples, num_bytes, dtype=np.int64),
        },
        schema=SAMPLE_SCHEMA,
    )
