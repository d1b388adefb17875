"""The order in streams: every epoch whole, batches free of the world size, ranks at home in their streams."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.online.order import RankShare
from pipeline.online.stream_order import StreamOrder

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)
GOLDEN = [
    [9, 3, 11, 4, 10, 0, 5, 6, 1, 7, 2, 8],
    [9, 0, 10, 1, 11, 2, 5, 6, 3, 7, 4, 8],
    [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
]


@given(LENGTHS, st.integers(0, 2**63 - 1), st.integers(1, 12), st.integers(1, 100), st.integers(0, 50))
def test_each_epoch_holds_each_sample_exactly_once(lengths, seed, num_streams, window_size, epoch):
    order = StreamOrder(lengths, seed, min(num_streams, len(lengths)), window_size)
    total = sum(lengths)
    ids = order.sample_ids(np.arange(epoch * total, (epoch + 1) * total))
    assert sorted(ids.tolist()) == list(range(total))


@given(LENGTHS, st.integers(1, 12), st.integers(1, 9), st.integers(0, 60), st.integers(0, 500))
def test_the_ranks_of_any_world_join_to_the_global_batch(lengths, num_streams, world_size, extra, first):
    order = StreamOrder(lengths, 3, min(num_streams, len(lengths)), 8)
    batch = world_size + extra
    parts = [order.rank_positions(first, RankShare(batch, rank, world_size)) for rank in range(world_size)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(first, first + batch))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_the_order_never_changes():
    order = StreamOrder([3, 2, 4, 3], seed=7, num_streams=2, window_size=3)
    assert order.sample_ids(np.arange(12)).tolist() == GOLDEN[0]
    assert order.sample_ids(np.arange(36, 48)).tolist() == GOLDEN[1]
    assert order.stream_of_sample.tolist() == GOLDEN[2]


def test_ranks_read_their_own_streams():
    order = StreamOrder([50] * 16, seed=0, num_streams=8, window_size=20)
    for world_size in (1, 2, 4, 8):
        for step in range(20):
            for rank in range(world_size):
                positions = order.rank_positions(step * 64, RankShare(64, rank, world_size))
                streams = set(order.stream_of_sample[order.sample_ids(positions)].tolist())
                per_rank = 8 // world_size
                assert streams <= set(range(rank * per_rank, (rank + 1) * per_rank))


def test_a_stream_reads_its_shards_one_after_another_to_within_the_window():
    lengths, window = [100] * 12, 30
    order = StreamOrder(lengths, seed=1, num_streams=3, window_size=window)
    ids = order.sample_ids(np.arange(1200))
    for stream in range(3):
        shards = ids[order.stream_of_sample[ids] == stream] // 100
        firsts = {shard: np.flatnonzero(shards == shard) for shard in set(shards.tolist())}
        assert len(firsts) == 4
        for places in firsts.values():
            assert places.max() - places.min() < 100 + 2 * window


def test_epochs_seeds_and_windows_shuffle():
    def epoch(number, seed=0, window=50):
        return tuple(StreamOrder([40] * 6, seed, 2, window).sample_ids(np.arange(240) + 240 * number).tolist())

    assert len({epoch(0), epoch(1), epoch(0, seed=1), epoch(0, window=51)}) == 4
    unshuffled = np.array(epoch(0, window=1))
    assert (np.diff(unshuffled[::2])[np.diff(unshuffled[::2] // 40) == 0] == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 1), "num_streams is 0"), ((4, 1), "num_streams is 4; it must be 1 to 3"), ((1, 0), "window_size is 0")],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        StreamOrder([5, 5, 5], 0, *arguments)
