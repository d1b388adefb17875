"""Samples by their ids: memory-mapped shards behind the manifest's columns."""

import functools
import mmap
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.manifest import NPY_HEADER_BYTES

OnBadSample = Literal["error", "skip-and-count"]


class ChangedSample(InputError):
    """A sample whose bytes are not those that were written."""


class ShardReader:
    """Reads the pictures of one split; each read is checked against the manifest's hash.

    Attributes:
        num_samples: Of the split.
        class_indices: int64 (num_samples,), by sample id.
    """

    def __init__(self, dataset: Dataset, split: str) -> None:
        """Read the manifest's columns; shards are mapped when first used."""
        self._dataset, self._split, self._folder = dataset, split, dataset.path
        self._raw = dataset.member == "npy"
        columns = ["shard", "offset", "num_bytes", "class_index", "hash", *(["width", "height"] if self._raw else [])]
        table = dataset.manifest(split, columns)
        self.num_samples = table.num_rows
        shards = table["shard"].combine_chunks().dictionary_encode()
        self._shard_names: list[str] = shards.dictionary.to_pylist()
        self._shard_indices = shards.indices.to_numpy()
        self._offsets = table["offset"].to_numpy()
        self._lengths = table["num_bytes"].to_numpy()
        self._hashes = table["hash"].to_numpy()
        if self._raw:
            self._sizes = np.stack([table["height"].to_numpy(), table["width"].to_numpy()], axis=1)
        self.class_indices = table["class_index"].to_numpy().astype(np.int64)
        del table, shards
        pa.default_memory_pool().release_unused()  # else the names of a million shards would stay
        self._maps: dict[int, tuple[mmap.mmap, np.ndarray]] = {}

    def read(self, sample_id: int) -> np.ndarray:
        """Return one picture, a view into the mapped shard: uint8, a JPEG's bytes (num_bytes,) or pixels (H, W, 3).

        Raises:
            InputError: The shard is missing.
            ChangedSample: The bytes are not those that were written.
        """
        shard = int(self._shard_indices[sample_id])
        _, content = self._map(shard)
        first, length = int(self._offsets[sample_id]), int(self._lengths[sample_id])
        data = content[first : first + length]
        if xxhash.xxh3_64_intdigest(data.data) != int(self._hashes[sample_id]):
            raise ChangedSample(
                f"sample {self._keys[sample_id].as_py()} of {self._folder / self._shard_names[shard]} has changed "
                f"since it was written; restore the file, or shard again"
            )
        if self._raw:
            height, width = self._sizes[sample_id]
            return data[NPY_HEADER_BYTES:].reshape(height, width, 3)
        return data

    def prefetch(self, sample_ids: np.ndarray) -> None:
        """Ask the kernel to read these samples' bytes ahead; returns at once."""
        for shard, first, length in zip(
            self._shard_indices[sample_ids].tolist(),
            self._offsets[sample_ids].tolist(),
            self._lengths[sample_ids].tolist(),
            strict=True,
        ):
            start = first // mmap.PAGESIZE * mmap.PAGESIZE
            self._map(shard)[0].madvise(mmap.MADV_WILLNEED, start, first + length - start)

    def shard_lengths(self) -> list[int]:
        """Return the number of samples of each shard, in the order of their sample ids."""
        return np.bincount(self._shard_indices).tolist()

    @functools.cached_property
    def _keys(self) -> pa.ChunkedArray:
        """Of all samples; read when the first is to be named."""
        return self._dataset.manifest(self._split, ["key"])["key"]

    def _map(self, shard: int) -> tuple[mmap.mmap, np.ndarray]:
        if shard in self._maps:
            return self._maps[shard]
        path = self._folder / self._shard_names[shard]
        try:
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InputError(f"shard {path} can't be read: {error}; restore it, or shard again") from error
        mapped.madvise(mmap.MADV_RANDOM)  # what is read next is known: the kernel need not guess
        # Views of an array, unlike those of a memoryview, are nothing that the garbage collector has to follow.
        self._maps[shard] = mapped, np.frombuffer(mapped, dtype=np.uint8)
        return self._maps[shard]
