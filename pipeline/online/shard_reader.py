"""Read samples by their ids from memory-mapped shards, which the manifest's columns describe."""

import functools
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.format.manifest import NPY_HEADER_BYTES
from pipeline.online.batch import OnBadSample
from pipeline.online.memory_ranges import hash_ranges, read_ahead
from pipeline.online.shard_maps import SHARD_MAPS, MappedShard
from pipeline.system.os_errors import is_out_of_reach, limit_of, mending


class ChangedSample(InputError):
    """The bytes of a sample are not those that were written."""


class ShardReader:
    """Reads the pictures of one split and checks each against the manifest's hash.

    Attributes:
        num_samples: Number of samples in the split.
        class_indices: Class of each sample, by sample id; int64 (num_samples,).
        on_bad_sample: With `error`, a shard that is missing or has another length than when it was written is refused
            when it is first used. Otherwise only its missing or changed samples raise `ChangedSample`.
    """

    def __init__(self, dataset: Dataset, split: str, on_bad_sample: OnBadSample = "error") -> None:
        """Read the manifest's columns; a shard is mapped when it is first used."""
        self._dataset, self._split, self.on_bad_sample = dataset, split, on_bad_sample
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
            height_N, width_N = table["height"].to_numpy(), table["width"].to_numpy()
            self._shapes_N3 = np.stack([height_N, width_N, np.full_like(height_N, 3)], axis=1)
        self.class_indices = table["class_index"].to_numpy().astype(np.int64)
        del table, shards
        pa.default_memory_pool().release_unused()  # otherwise the names of a million shards would stay in memory
        self._maps: dict[int, MappedShard] = {}
        SHARD_MAPS.join(self._maps, [dataset.listed(name).num_bytes for name in self._shard_names])
        weakref.finalize(self, SHARD_MAPS.leave, self._maps)

    def read(self, sample_id: int) -> np.ndarray:
        """Return one picture; see `read_batch`.

        Raises:
            InputError: The shard can't be read, or its length has changed.
            ChangedSample: The bytes are not those that were written.
        """
        (picture,) = self.read_batch(np.array([sample_id]))
        if picture is None:
            raise ChangedSample(
                f"sample {self._keys[sample_id].as_py()} of {self._path(int(self._shard_indices[sample_id]))} has "
                "changed since it was written; restore the file, or shard again"
            )
        return picture

    def read_batch(self, sample_ids_N: np.ndarray) -> list[np.ndarray | None]:
        """Return pictures: uint8, the bytes of a JPEG (num_bytes,) or pixels (H, W, 3); None if it has changed.

        They are views into the mapped shards, and their hashes are computed without Python's lock. If a shard may be
        unmapped soon (`shard_maps.py`), they are copies, read one by one: to hold the shards of a whole batch would
        exceed the limits.

        Raises:
            InputError: A shard can't be read, or its length has changed.
        """
        if SHARD_MAPS.gives_way:
            pictures = [self._copy_of(sample_id) for sample_id in sample_ids_N.tolist()]
        else:
            shards, addresses_N, firsts_N, lengths_N = self._ranges(sample_ids_N)
            is_whole_N = hash_ranges(addresses_N, lengths_N) == self._hashes[sample_ids_N]
            pictures = [
                shard.content[first:end] if is_whole else None
                for shard, first, end, is_whole in zip(
                    shards, firsts_N.tolist(), (firsts_N + lengths_N).tolist(), is_whole_N.tolist(), strict=True
                )
            ]
        if not self._raw:
            return pictures
        return [
            None if picture is None else picture[NPY_HEADER_BYTES:].reshape(shape)
            for picture, shape in zip(pictures, self._shapes_N3[sample_ids_N].tolist(), strict=True)
        ]

    def prefetch(self, sample_ids_N: np.ndarray) -> None:
        """Ask the kernel to read the bytes of these samples ahead; returns at once."""
        if not SHARD_MAPS.gives_way:
            _held, addresses_N, _, lengths_N = self._ranges(sample_ids_N)
            read_ahead(addresses_N, lengths_N)
            return
        for sample_id in sample_ids_N.tolist():
            shard, first, end = self._range_of(sample_id)
            start = first // mmap.PAGESIZE * mmap.PAGESIZE
            if shard.mapped is not None and 0 <= start < end <= len(shard.content):
                shard.mapped.madvise(mmap.MADV_WILLNEED, start, end - start)

    def num_samples_gone(self, sample_id: int) -> int:
        """Return how many samples to skip at one that can't be read: 1, or the rest of its shard if that is gone."""
        if len(self._map(int(self._shard_indices[sample_id])).content):
            return 1
        end = np.searchsorted(self._shard_ends, sample_id, side="right")
        return int(self._shard_ends[end]) - sample_id

    def shard_lengths(self) -> list[int]:
        """Return the number of samples of each shard, in the order of their sample ids."""
        return np.bincount(self._shard_indices).tolist()

    @functools.cached_property
    def _shard_ends(self) -> np.ndarray:
        """Sample ids at which a new shard begins, and the number of samples."""
        return np.append(np.flatnonzero(np.diff(self._shard_indices)) + 1, self.num_samples)

    @functools.cached_property
    def _keys(self) -> pa.ChunkedArray:
        """Keys of all samples; read when a message needs the first one."""
        return self._dataset.manifest(self._split, ["key"])["key"]

    def _path(self, shard: int) -> Path:
        """Return the path of a shard in the dataset, as messages show it."""
        return self._dataset.path / self._shard_names[shard]

    def _range_of(self, sample_id: int) -> tuple[MappedShard, int, int]:
        """Return where a sample is: its shard, and its first byte and the one after its last."""
        number, first = int(self._shard_indices[sample_id]), int(self._offsets[sample_id])
        return self._maps.get(number) or self._map(number), first, first + int(self._lengths[sample_id])

    def _copy_of(self, sample_id: int) -> np.ndarray | None:
        shard, first, end = self._range_of(sample_id)
        content = shard.content[first:end]
        return content.copy() if xxhash.xxh3_64_intdigest(content.data) == int(self._hashes[sample_id]) else None

    def _ranges(self, sample_ids_N: np.ndarray) -> tuple[list[MappedShard], np.ndarray, np.ndarray, np.ndarray]:
        """Return where samples are: their shards, addresses, and offsets and lengths in bytes, cut at a shard's end.

        Whoever uses the addresses must hold the shards, which keeps them mapped.
        """
        shards = [self._maps.get(shard) or self._map(shard) for shard in self._shard_indices[sample_ids_N].tolist()]
        firsts_N = self._offsets[sample_ids_N]
        sizes_N = np.array([len(shard.content) for shard in shards], dtype=np.int64)
        lengths_N = np.clip(sizes_N - firsts_N, 0, self._lengths[sample_ids_N])
        addresses_N = np.array([shard.address for shard in shards], dtype=np.uint64) + firsts_N.astype(np.uint64)
        return shards, addresses_N, firsts_N, lengths_N

    def _map(self, shard: int) -> MappedShard:
        if (mapped := self._maps.get(shard)) is not None:
            return mapped
        try:
            return SHARD_MAPS.keep(self._maps, shard, functools.partial(self._open, shard))
        except OSError as error:
            path = self._path(shard)
            if limit := limit_of(error):
                raise InputError(f"shard {path} can't be mapped: {error.strerror}; {limit}") from error
            if is_out_of_reach(error):
                raise
            raise InputError(f"shard {path} can't be read: {error.strerror}; {mending(error)}") from error

    def _open(self, shard: int) -> MappedShard:
        """Map a shard. If bad samples are skipped, a missing shard counts as empty.

        Raises:
            InputError: The shard's length has changed, and bad samples are not skipped.
            OSError: The shard can't be read.
        """
        written, skips = self._dataset.listed(self._shard_names[shard]), self.on_bad_sample == "skip-and-count"
        try:
            with open(self._dataset.store.local_path(written), "rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != written.num_bytes and not skips:
                    raise InputError(
                        f"shard {self._path(shard)} has {found} bytes, {written.num_bytes} when it was written; "
                        "restore it, or shard again"
                    )
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if found else None
        except FileNotFoundError:
            if not skips:
                raise
            mapped = None
        if mapped is None:
            return MappedShard(None, np.empty(0, dtype=np.uint8), address=0)
        mapped.madvise(mmap.MADV_RANDOM)  # `prefetch` says what is read next: the kernel need not guess
        # The garbage collector does not track views of an array, but it does track those of a memoryview.
        content = np.frombuffer(mapped, dtype=np.uint8)
        return MappedShard(mapped, content, address=content.ctypes.data)
