"""The order for slow disks and object stores: shards read one after another, in a fixed number of streams.

Each shard belongs to one of `num_streams` streams for good, dealt by the seed alone. In an epoch, a stream reads its
shards in a seeded order, and each sample moves by up to `window_size` places; the streams are interleaved in
proportion to their lengths:

    stream 0    shard 4, shard 1, shard 6   window     position 0 3 5 ...
    stream 1    shard 0, shard 5            shuffle    position 1 4 ...
    stream 2    shard 3, shard 2            ------->   position 2 6 ...

So the samples of a global batch do not depend on the world size, as with `SampleOrder`, and the only state is the
number of samples seen. The positions of a global batch are sorted by stream and then divided among the ranks. If the
number of streams is a multiple of the number of ranks, a rank reads its own streams (all but their edges), and a node
needs only its own shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.online.order import RankShare, SampleOrder
from pipeline.online.random_streams import STREAM_EPOCHS, OrderStream

_HALF_WORD = np.uint64(32)


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Reading shard by shard; see the module.

    Attributes:
        num_streams: Number of shards that are read at the same time; 0: no streams, all samples are permuted.
        window_size: Largest number of places by which a sample moves.
    """

    num_streams: int = 0
    window_size: int = 4096


class StreamOrder(SampleOrder):
    """Maps positions of the endless stream to sample ids, shard by shard in each stream.

    Attributes:
        stream_of_sample: Stream that reads a sample in every epoch; int64 (num_samples,).
    """

    def __init__(self, shard_lengths: Sequence[int], seed: int, num_streams: int, window_size: int) -> None:
        """Take what defines the order.

        Args:
            shard_lengths: Number of samples in each shard; sample ids number the samples in the order of the shards.
            seed: Seed of the run, 0 <= seed < 2**64.
            num_streams: Number of streams, from 1 to the number of shards.
            window_size: Places by which a sample moves, at most; from 1 (it does not move) to 2**20.

        Raises:
            ValueError: An argument is out of range; the message names it, its value and the range.
        """
        super().__init__(sum(shard_lengths), seed)
        if not 1 <= num_streams <= len(shard_lengths):
            raise ValueError(
                f"num_streams is {num_streams}; it must be 1 to {len(shard_lengths)}, the number of shards"
            )
        if not 1 <= window_size <= 2**20:
            raise ValueError(f"window_size is {window_size}; it must be 1 to {2**20}")
        self._window_size = np.uint64(window_size)
        self._lengths = np.asarray(shard_lengths, dtype=np.int64)
        self._firsts = np.cumsum(self._lengths) - self._lengths
        dealt = np.argsort(self._words(OrderStream.DEAL, len(self._lengths)), kind="stable")
        self._stream_of_shard = np.empty(len(dealt), dtype=np.int64)
        self._stream_of_shard[dealt] = np.arange(len(dealt)) % num_streams
        self.stream_of_sample = np.repeat(self._stream_of_shard, self._lengths)
        stream_lengths = np.bincount(self.stream_of_sample, minlength=num_streams)
        self._bounds = np.concatenate([[0], np.cumsum(stream_lengths)])
        # Sample j of a stream of length L is read at (2j + 1) / 2L of the epoch.
        places = np.concatenate([(2 * np.arange(length) + 1) / (2 * length) for length in stream_lengths])
        self._interleaved = np.argsort(places, kind="stable")

    def rank_positions(self, first_position: int, share: RankShare) -> np.ndarray:
        """Return a rank's int64 part of the global batch's positions, which are first sorted by stream."""
        positions = np.arange(first_position, first_position + share.global_batch_size, dtype=np.int64)
        streams = self.stream_of_sample[self.sample_ids(positions)]
        first, end = share.range_from(0)
        return positions[np.argsort(streams, kind="stable")[first:end]]

    def _epoch_order(self, epoch: int) -> np.ndarray:
        num_shards = len(self._lengths)
        words = self._words(STREAM_EPOCHS + epoch, num_shards + self.num_samples)
        shards = np.lexsort((words[:num_shards], self._stream_of_shard))
        lengths = self._lengths[shards]
        starts = np.repeat(self._firsts[shards] - (np.cumsum(lengths) - lengths), lengths)
        in_shard_order = starts + np.arange(self.num_samples)
        # Fixed-point numbers with 32 bits after the point, so that rounding does not depend on the processor.
        moves = (words[num_shards:] >> _HALF_WORD) * self._window_size
        keys = (np.arange(self.num_samples, dtype=np.uint64) << _HALF_WORD) + moves
        shuffled = np.concatenate(
            [
                in_shard_order[first:end][np.argsort(keys[first:end], kind="stable")]
                for first, end in zip(self._bounds[:-1], self._bounds[1:], strict=True)
            ]
        )
        return shuffled[self._interleaved]

    def _words(self, stream: int, count: int) -> np.ndarray:
        """Return raw output of NumPy's Philox, which is stable between NumPy releases: uint64 (count,)."""
        return np.random.Philox(key=np.array([self.seed, stream], dtype=np.uint64)).random_raw(count)
