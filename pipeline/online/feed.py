"""The feed of the DALI graph: positions -> sample ids -> pictures from the mapped shards + parameters."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipeline.command import InputError
from pipeline.online.augmentation import AugmentationParameters
from pipeline.online.shard_reader import ShardReader

Identify = Callable[[np.ndarray], np.ndarray]
Draw = Callable[[np.ndarray, np.ndarray], AugmentationParameters[np.ndarray]]
_LOOKAHEAD = 4  # batches whose bytes are requested before they are read


class Source(Protocol):
    """What pictures are read from: shards, or a cache in front of them."""

    def read_batch(self, sample_ids_N: np.ndarray) -> list[Any]:
        """Return the pictures; None if a sample has changed since it was written."""

    def prefetch(self, sample_ids_N: np.ndarray) -> None:
        """Prepare to read these samples soon; returns at once."""


@dataclass(frozen=True)
class FedBatch:
    """A batch before the graph.

    Attributes:
        sample_ids: Row numbers of the split's manifest, int64 (N,).
        positions: Positions in the endless stream, int64 (N,).
        pictures: Pictures as the source returns them.
        parameters: Parameters of their augmentation.
    """

    sample_ids: np.ndarray
    positions: np.ndarray
    pictures: list[Any]
    parameters: AugmentationParameters[np.ndarray]


class Feed(Iterator[FedBatch]):
    """The batches of a rank, in order.

    Attributes:
        source: Where pictures are read; at first the reader.
        num_replaced: Number of samples that were replaced because their bytes have changed or are missing.
    """

    def __init__(
        self,
        reader: ShardReader,
        positions: Iterator[np.ndarray],
        identify: Identify,
        draw: Draw,
    ) -> None:
        """Take what defines the batches.

        Args:
            reader: Reader of the split.
            positions: Positions of this rank, one batch at a time, int64 (N,).
            identify: Maps positions to sample ids.
            draw: Maps positions and sample ids to the parameters of the augmentation.
        """
        self._reader, self._identify, self._draw = reader, identify, draw
        self.source: Source = reader
        self._positions = positions
        self.num_replaced = 0
        self._ahead: deque[tuple[np.ndarray, np.ndarray]] = deque()

    def begin_again(self, positions: Iterator[np.ndarray]) -> None:
        """Continue with other positions after the last batch."""
        self._positions = positions

    def __next__(self) -> FedBatch:
        """Return the next batch; raises StopIteration after the last."""
        while len(self._ahead) <= _LOOKAHEAD and (positions := next(self._positions, None)) is not None:
            sample_ids = self._identify(positions)
            self.source.prefetch(sample_ids)
            self._ahead.append((positions, sample_ids))
        if not self._ahead:
            raise StopIteration
        positions, sample_ids = self._ahead.popleft()
        pictures = self.source.read_batch(sample_ids)
        for place in [place for place, picture in enumerate(pictures) if picture is None]:
            pictures[place], sample_ids[place] = self._replacement(int(sample_ids[place]))
        return FedBatch(sample_ids, positions, pictures, self._draw(positions, sample_ids))

    def _replacement(self, sample_id: int) -> tuple[Any, int]:
        """Return the picture and the id of the next good sample after one that has changed, if it may be skipped."""
        if self._reader.on_bad_sample == "error":
            self._reader.read(sample_id)  # raises the error
        num_passed = 0
        while num_passed < self._reader.num_samples:
            candidate = (sample_id + num_passed) % self._reader.num_samples
            (picture,) = self.source.read_batch(np.array([candidate]))
            if picture is not None:
                self.num_replaced += num_passed > 0
                return picture, candidate
            num_passed += self._reader.num_samples_gone(candidate)
        raise InputError("no sample is as it was written; restore the dataset, or shard again")
