"""The order: a permutation an epoch, golden values, exact cover by any world."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.online.order import RankShare, SampleOrder, permutation
from pipeline.online.philox import philox4x32

GOLDEN_0_0 = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
GOLDEN_7_3 = [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    assert philox4x32(np.array([counter], dtype=np.uint32), key)[0].tolist() == expected


def test_the_order_never_changes():
    assert permutation(seed=0, epoch=0, num_samples=10).tolist() == GOLDEN_0_0
    assert permutation(seed=7, epoch=3, num_samples=10).tolist() == GOLDEN_7_3


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.integers(1, 300))
def test_each_epoch_is_a_permutation(seed, epoch, num_samples):
    assert sorted(permutation(seed, epoch, num_samples).tolist()) == list(range(num_samples))


def test_epochs_and_seeds_differ():
    orders = {tuple(permutation(seed, epoch, 50).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_uneven_slices_of_ten_positions():
    table = {
        1: [(0, 10)],
        2: [(0, 5), (5, 10)],
        3: [(0, 3), (3, 6), (6, 10)],
        4: [(0, 2), (2, 5), (5, 7), (7, 10)],
    }
    for world_size, slices in table.items():
        assert [RankShare(10, rank, world_size).range_from(0) for rank in range(world_size)] == slices


@given(st.integers(0, 10**12), st.integers(1, 9), st.integers(0, 500))
def test_the_ranks_cover_the_global_batch_exactly(first, world_size, extra):
    batch = world_size + extra
    slices = [RankShare(batch, rank, world_size).range_from(first) for rank in range(world_size)]
    assert slices[0][0] == first and slices[-1][1] == first + batch
    assert all(left[1] == right[0] for left, right in itertools.pairwise(slices))
    lengths = [end - begin for begin, end in slices]
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(0, 40), st.integers(2, 33))
def test_groups_stay_together(first, world_size, extra, group_size):
    batch = (world_size + extra) * group_size
    slices = [
        RankShare(batch, rank, world_size, group_size).range_from(first * group_size) for rank in range(world_size)
    ]
    assert slices[0][0] == first * group_size and slices[-1][1] == first * group_size + batch
    assert all(left[1] == right[0] for left, right in itertools.pairwise(slices))
    lengths = [end - begin for begin, end in slices]
    assert all(length % group_size == 0 for length in lengths)
    assert max(lengths) - min(lengths) <= group_size


@given(st.integers(1, 60), st.integers(1, 100), st.integers(0, 500))
def test_positions_map_to_each_epochs_own_permutation(num_samples, count, first):
    positions = np.arange(first, first + count)
    ids = SampleOrder(num_samples, seed=3).sample_ids(positions)
    expected = [permutation(3, p // num_samples, num_samples)[p % num_samples] for p in positions]
    assert ids.tolist() == expected


def test_an_empty_split_has_no_order():
    with pytest.raises(ValueError, match="num_samples is 0"):
        SampleOrder(0, seed=0)


@given(
    num_groups=st.integers(1, 200),
    world_size=st.integers(1, 9),
    group_size=st.integers(1, 9),
    groups=st.integers(1, 20),
    more=st.integers(0, 8),
)
def test_the_pieces_cover_a_ranks_part_and_tear_no_group(num_groups, world_size, group_size, groups, more):
    max_size, world_size = groups * group_size + min(more, group_size - 1), min(world_size, num_groups)
    shares = [RankShare(num_groups * group_size, rank, world_size, group_size, max_size) for rank in range(world_size)]
    sizes = [[piece.stop - piece.start for piece in share.pieces] for share in shares]
    for share in shares:
        first, end = share.range_from(0)
        assert [place for piece in share.pieces for place in range(end - first)[piece]] == list(range(end - first))
        assert all(piece.start % group_size == 0 for piece in share.pieces)
        assert share.largest_piece == max(size for of_rank in sizes for size in of_rank) <= max_size
        assert share.has_equal_pieces == (len(set(map(len, sizes))) == 1)
        assert dataclasses.replace(share, micro_batch_size=None).pieces == [slice(0, end - first)]
    for of_rank in sizes:
        assert min(of_rank) > 0 and max(of_rank) - min(of_rank) <= group_size  # as even as possible
        assert len(of_rank) in (-(-shares[0].largest // (groups * group_size)), sum(of_rank) // group_size)
    if max_size >= 2 * group_size:
        assert shares[0].has_equal_pieces


def test_uneven_parts_have_equally_many_pieces():
    shares = [RankShare(13, rank, 2, micro_batch_size=3) for rank in range(2)]
    assert [[(piece.start, piece.stop) for piece in share.pieces] for share in shares] == [
        [(0, 2), (2, 4), (4, 6)],
        [(0, 2), (2, 4), (4, 7)],
    ]
    one_by_one = RankShare(13, 0, 2, micro_batch_size=1)
    assert len(one_by_one.pieces) == 6 and not one_by_one.has_equal_pieces
