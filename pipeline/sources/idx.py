"""IDX files, the format of MNIST and its successors: stored grey pixels and labels, compressed by gzip or not.

`train-images-idx3-ubyte` and `train-labels-idx1-ubyte` are the split `train`, `t10k-...` is `test`. A file consists of
a magic number (two zero bytes, the type 8 for uint8, the number of dimensions), each dimension as a big-endian 32-bit
integer, and the bytes (LeCun, Cortes, Burges, "The MNIST database"). Some tools unpack it as
`train-images.idx3-ubyte`; if a file is present in several forms, they must be equal. classes.txt beside the files may
name the classes, one per line.
"""

import gzip
import math
import zlib
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipeline.command import InputError
from pipeline.sources.base import DEFAULT_OPTIONS, SAMPLE_SCHEMA, Listing, ListingOptions, Members
from pipeline.sources.numbered_classes import class_tables, numbered_classes
from pipeline.sources.tree import ignore_option, ignored_by

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_PREFIXES = {"train": "train", "test": "t10k"}
_IMAGE_HEADER_BYTES = 16
_MAX_COMPRESSION = 1032  # deflate's highest ratio: 258 bytes from two bits


class IdxFiles:
    """Reads IDX files. Each process decompresses a file once; grey pixels become RGB."""

    layout: ClassVar[str] = "idx"
    native_pixels: ClassVar[bool] = True

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds the files."""
        self.root, self.options = root, options

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Return whether a split's images are present."""
        return any(_forms(root, prefix, IMAGES) for prefix in _PREFIXES.values())

    def list_samples(self) -> Listing:
        """List all samples, in the files' order.

        Raises:
            InputError: A file is missing or damaged, or images, labels and class names do not match.
        """
        splits = {}
        tables: list[str] = []
        left_out: dict[str, str] = {}
        num_classes = 0
        for split, prefix in _PREFIXES.items():
            images_path = self._find(prefix, IMAGES, 3, left_out)
            labels_path = self._find(prefix, LABELS, 1, left_out)
            if images_path is None and labels_path is None:
                continue
            if labels_path is None:
                raise InputError(f"{images_path} has no labels: {prefix}-{LABELS}[.gz] is missing beside it")
            if images_path is None:
                raise InputError(f"{labels_path} has no pictures: {prefix}-{IMAGES}[.gz] is missing beside it")
            images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
            if len(images) != len(labels):
                raise InputError(f"{images_path} has {len(images)} pictures, but {labels_path} {len(labels)} labels")
            if images.size == 0:
                raise InputError(f"{images_path} holds no picture; get the file again")
            splits[split] = _table(images_path.name, prefix, images, labels)
            tables.append(labels_path.name)
            num_classes = max(num_classes, int(labels.max()) + 1)
        if not splits:
            raise InputError(f"{self.root} holds no IDX images; expected train-{IMAGES} or t10k-{IMAGES}, or .gz")
        return Listing(
            numbered_classes(self.root, num_classes),
            splits,
            tables=(*tables, *class_tables(self.root)),
            left_out=left_out,
            members=Members(sum(table.num_rows for table in splits.values())),
        )

    def read(self, file: str, offset: int, num_bytes: int) -> np.ndarray:
        """Return one picture's pixels, uint8 (H, W, 3)."""
        images = read_idx(self.root / file, 3)
        grey_HW = images[(offset - _IMAGE_HEADER_BYTES) // num_bytes]
        return np.repeat(grey_HW[..., None], 3, axis=2)

    def _find(self, prefix: str, name: str, num_dimensions: int, left_out: dict[str, str]) -> Path | None:
        """Return the path of a file in any of its forms; the other forms, which must be equal, go into `left_out`.

        Raises:
            InputError: Two forms of the file differ.
        """
        paths = [path for path in _forms(self.root, prefix, name) if not ignored_by(path.name, self.options.ignore)]
        for other in paths[1:]:
            if not np.array_equal(read_idx(paths[0], num_dimensions), read_idx(other, num_dimensions)):
                raise InputError(
                    f"{paths[0]} and {other.name} beside it differ; remove one of them, or leave it out with "
                    f"{ignore_option(other.name)}"
                )
            left_out[other.name] = f"the same as {paths[0].name}"
        return paths[0] if paths else None


@lru_cache(maxsize=4)  # images and labels of two splits
def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """Return a file's content: uint8, read-only, in the shape its header gives. No more than that is read.

    Raises:
        InputError: The file is not an IDX file of unsigned bytes with `num_dimensions` dimensions, or its length is
            wrong.
    """
    header_bytes = 4 * (1 + num_dimensions)
    is_compressed = path.suffix == ".gz"
    try:
        with gzip.open(path) if is_compressed else open(path, "rb") as file:
            header = file.read(header_bytes)
            if len(header) < header_bytes or header[:4] != bytes([0, 0, 8, num_dimensions]):
                raise InputError(
                    f"{path} is not an IDX file of uint8 with {num_dimensions} dimensions; get the file again"
                )
            shape = tuple(np.frombuffer(header, ">u4", num_dimensions, offset=4).tolist())
            num_bytes = math.prod(shape)
            at_most = path.stat().st_size * (_MAX_COMPRESSION if is_compressed else 1)
            content = file.read(min(num_bytes, at_most) + 1)  # one more byte: shows excess data, checks the CRC
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged ({error}); get the file again") from error
    if len(content) != num_bytes:
        found = "has more" if len(content) > num_bytes else f"has {len(content)}"
        raise InputError(f"{path} should hold {shape} bytes, but {found}; get the file again")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _forms(root: Path, prefix: str, name: str) -> list[Path]:
    """Return the paths of a file's existing forms: plain or compressed, with a hyphen or a dot."""
    names = (f"{prefix}-{name}", f"{prefix}-{name.replace('-', '.', 1)}")
    paths = (root / f"{name}{ending}" for name in names for ending in ("", ".gz"))
    return [path for path in paths if path.is_file()]


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
