"""Tensors that are cut: where, and what the workers make of their parts."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from worker_group import run_group

from cluster.exchange.cut import Cut, gather, recut, scatter_sum


@given(world_size=st.integers(1, 16), per_worker=st.integers(0, 40), more=st.integers(0, 200))
def test_units_are_cut_at_multiples_of_eight_as_evenly_as_possible(world_size, per_worker, more):
    num_units = 8 * world_size * (1 + per_worker) + more
    sizes = Cut.of_units(1, num_units, world_size).sizes
    assert sum(sizes) == num_units and len(sizes) == world_size
    assert all(size % 8 == 0 for size in sizes[:-1])
    assert min(sizes) >= 8 and max(sizes) - min(sizes) < 16


def test_the_units_of_alexnet():
    assert Cut.of_units(1, 9216, 4).sizes == (2304,) * 4
    assert Cut.of_units(1, 4096, 3).sizes == (1360, 1368, 1368)
    assert Cut.of_units(1, 1000, 3).first_of(2) == 664


def test_a_part_is_a_copy_that_keeps_nothing_of_the_whole():
    whole = torch.arange(60.0).view(2, 30)
    part = Cut(1, (16, 14)).part(whole, 1)
    assert torch.equal(part, whole[:, 16:]) and part.untyped_storage().nbytes() == 4 * 28


def _matrix(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(9, 35, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def exchanges() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        _check_exchanges(dtype)


def _check_exchanges(dtype: torch.dtype) -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    samples = Cut(0, {1: (9,), 2: (4, 5), 4: (0, 4, 2, 3)}[world_size])
    units = Cut.of_units(1, 35, world_size)
    whole = _matrix(dtype)
    by_samples, by_units = samples.part(whole, rank), units.part(whole, rank)
    assert torch.equal(recut(by_samples, samples, units), by_units)
    assert torch.equal(recut(by_units, units, samples), by_samples)
    partials = [_matrix(dtype, seed) for seed in range(world_size)]
    total = partials[0].to(torch.promote_types(dtype, torch.float32))
    for partial in partials[1:]:
        total = total + partial
    for cut, part in ((samples, by_samples), (units, by_units)):
        summed = scatter_sum(partials[rank], cut)
        assert summed.dtype == total.dtype
        assert torch.equal(summed, cut.part(total, rank))  # to the bit: the order of the sum is that of the ranks
        assert torch.equal(gather(part, cut), whole)
        assert torch.equal(cut.gathered(part), whole)
        collected = cut.collected(part)
        assert torch.equal(collected, whole if rank == 0 else part)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_parts_are_exchanged_summed_and_gathered(world_size):
    run_group(world_size, __file__, "exchanges")
