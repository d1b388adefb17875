"""Estimate of what sharding will cost, from a few pictures: `python -m pipeline.shard --dry-run`."""

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.offline.shard_plan import ShardingConfig, plan_shards, plan_splits
from pipeline.offline.shard_writer import padded_length
from pipeline.offline.statistics import PixelSums
from pipeline.pictures.decode import RejectedPicture
from pipeline.pictures.encode import store_picture
from pipeline.sources.base import Listing, Source

_NUM_PROBES = 64
_HEADER_BYTES = 512


@dataclass(frozen=True)
class Estimate:
    """Estimated size and duration of a run.

    Attributes:
        num_samples: Number of samples, by split.
        num_shards: Number of shards of all splits.
        num_bytes: Size of all shards, extrapolated from the probed pictures.
        seconds: Wall-clock time, extrapolated from the same pictures, on a machine that does nothing else.
        num_probes: Number of pictures that were read, decoded and encoded for the estimate.
    """

    num_samples: dict[str, int]
    num_shards: int
    num_bytes: int
    seconds: float
    num_probes: int

    def __str__(self) -> str:
        """Return the estimate in words."""
        samples = ", ".join(f"{split} {count:,}" for split, count in self.num_samples.items())
        minutes, seconds = divmod(round(self.seconds), 60)
        return (
            f"{samples} samples in {self.num_shards:,} shards, about {self.num_bytes / 1e6:,.0f} MB "
            f"in about {minutes}:{seconds:02d} minutes (from {self.num_probes} pictures)"
        )


def estimate(source: Source, listing: Listing, config: ShardingConfig, num_workers: int | None) -> Estimate:
    """Plan the shards of a source, and encode some evenly spaced pictures in memory.

    Args:
        source: Source of the pictures.
        listing: Listing of the source.
        config: Configuration of the dataset.
        num_workers: Number of workers that would share the work; by default as many as this machine has CPUs.
    """
    splits = plan_splits(listing, config)
    tasks = plan_shards(listing, splits, config)
    rows = pa.concat_tables([task.rows for task in tasks])
    chosen = np.unique(np.linspace(0, rows.num_rows - 1, _NUM_PROBES).astype(np.int64))
    probes = rows.take(pa.array(chosen)).to_pylist()
    _store(probes[:1], source, config)  # loads the libraries, which takes longer than encoding the pictures
    began = time.perf_counter()
    num_bytes = _store(probes, source, config)
    seconds = time.perf_counter() - began
    scale = rows.num_rows / len(chosen)
    return Estimate(
        num_samples={split: table.num_rows for split, table in splits.items()},
        num_shards=len(tasks),
        num_bytes=round(num_bytes * scale),
        seconds=seconds * scale / min(num_workers or len(os.sched_getaffinity(0)), len(tasks)),
        num_probes=len(chosen),
    )


def _store(rows: list[dict[str, Any]], source: Source, config: ShardingConfig) -> int:
    """Encode pictures in memory and count their pixels; return the number of bytes that they would take in a shard."""
    sums, num_bytes = PixelSums(), 0
    for row in rows:
        try:
            picture = store_picture(source.read(row["file"], row["offset"], row["num_bytes"]), config.encoding)
        except RejectedPicture:
            continue
        sums.add_picture(picture.pixels_HWC)
        label_bytes = _HEADER_BYTES + padded_length(1)
        num_bytes += _HEADER_BYTES + padded_length(len(picture.data)) + label_bytes
    return num_bytes
