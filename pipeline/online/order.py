"""The order of training samples: a pure function of (seed, number of samples), with no world size in it.

Training reads an endless stream of positions. Position p belongs to epoch p // num_samples and is sample
`permutation(seed, epoch)[p % num_samples]`. The global batch of step k holds positions [k*G, (k+1)*G); a rank takes its
part when the step needs it:

    positions   0 1 2 3 4 5 6 7 8 9 | 10 11 12 ...      G = 10
    world 1     0 0 0 0 0 0 0 0 0 0 |
    world 2     0 0 0 0 0 1 1 1 1 1 |
    world 3     0 0 0 1 1 1 2 2 2 2 |                   uneven, never padded, never dropped

So the only state of a run is the number of samples seen. `stream_order.py` defines another order with the same
property, for shards that are best read one after another.
"""

import itertools
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

_MAX_CACHED_EPOCHS = 3


def permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Return the order in which one epoch reads its samples.

    The samples are sorted by 64-bit keys, the raw output of NumPy's Philox bit generator under the key (seed,
    epoch): raw bit streams are stable between NumPy releases, `Generator.permutation` is not (NEP 19). Samples with
    equal keys keep their order.

    Args:
        seed: Seed of the run, 0 <= seed < 2**64.
        epoch: Number of the epoch, from 0 to 2**32 - 1; or an `OrderStream`, for an order that belongs to no epoch.
        num_samples: Number of samples in the split.

    Returns:
        int64 sample ids, shape (num_samples,).
    """
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_samples)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


@dataclass(frozen=True)
class RankShare:
    """A rank's part of each global batch: a number of whole groups, which differs by at most one between ranks.

    Attributes:
        global_batch_size: Samples in a batch over all ranks, G.
        rank: Rank that reads the part, 0 <= rank < world_size.
        world_size: Number of ranks.
        group_size: Consecutive positions that stay on one rank; divides G.
        micro_batch_size: Maximum number of samples that a rank processes at a time, at least `group_size`; None: its
            whole part.
    """

    global_batch_size: int
    rank: int
    world_size: int
    group_size: int = 1
    micro_batch_size: int | None = None

    def range_from(self, first_position: int) -> tuple[int, int]:
        """Return the half-open range of positions that the rank reads from the global batch at `first_position`.

        The ranges of all ranks cover [first_position, first_position + G) without gap or overlap.
        """
        return first_position + self._end_of(self.rank), first_position + self._end_of(self.rank + 1)

    @property
    def pieces(self) -> list[slice]:
        """The rank's part in consecutive pieces of whole groups: as few as the largest part of any rank needs.

        They are as even as possible. A part of fewer groups than that is one piece per group; see `has_equal_pieces`.
        """
        num_groups = self._end_of(self.rank + 1) // self.group_size - self._end_of(self.rank) // self.group_size
        num_pieces = max(1, min(self.num_pieces, num_groups))
        ends = [index * num_groups // num_pieces * self.group_size for index in range(num_pieces + 1)]
        return [slice(begin, end) for begin, end in itertools.pairwise(ends)]

    @property
    def has_equal_pieces(self) -> bool:
        """Whether all ranks have the same number of pieces; each must have at least one group."""
        return self.num_pieces <= max(1, self.global_batch_size // self.group_size // self.world_size)

    @property
    def largest_piece(self) -> int:
        """Number of samples in the largest piece of any rank."""
        return -(-self.largest // self.group_size // self.num_pieces) * self.group_size

    @property
    def largest(self) -> int:
        """Number of samples in the largest part of any rank."""
        return -(-self.global_batch_size // self.group_size // self.world_size) * self.group_size

    @property
    def num_pieces(self) -> int:
        """Number of pieces that the largest part of any rank needs."""
        if self.micro_batch_size is None:
            return 1
        return -(-self.largest // self.group_size // (self.micro_batch_size // self.group_size))

    def _end_of(self, num_ranks: int) -> int:
        """Return how many samples the first `num_ranks` ranks read together."""
        return num_ranks * (self.global_batch_size // self.group_size) // self.world_size * self.group_size


class SampleOrder:
    """Maps positions of the endless stream to sample ids.

    A thread computes the order of an epoch as soon as the epoch before it is in use.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        """Take the two numbers that define the order; see `permutation` for their ranges."""
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}; an order needs at least one sample")
        self.num_samples = num_samples
        self.seed = seed
        self._epochs: OrderedDict[int, Future[np.ndarray]] = OrderedDict()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="order")

    def sample_ids(self, positions: np.ndarray) -> np.ndarray:
        """Return the int64 sample id of each position; same shape as `positions`, which may straddle epochs."""
        epochs, places = np.divmod(positions, self.num_samples)
        ids = np.empty(positions.shape, dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            ids[chosen] = self._epoch(int(epoch))[places[chosen]]
        return ids

    def rank_positions(self, first_position: int, share: RankShare) -> np.ndarray:
        """Return the int64 positions that a rank reads from the global batch that begins at `first_position`."""
        return np.arange(*share.range_from(first_position), dtype=np.int64)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        return permutation(self.seed, epoch, self.num_samples)

    def _epoch(self, epoch: int) -> np.ndarray:
        for number in (epoch, epoch + 1):
            if number not in self._epochs:
                self._epochs[number] = self._thread.submit(self._epoch_order, number)
            self._epochs.move_to_end(number)
        while len(self._epochs) > _MAX_CACHED_EPOCHS:
            self._epochs.popitem(last=False)
        return self._epochs[epoch].result()
