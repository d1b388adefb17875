"""Efficiency: pairs within blocks, nothing extrapolated, and what an interval of few blocks can say."""

import dataclasses
import math

import numpy as np
import pytest
from scaling_rows import cells_of, make_rows

from cluster.lab.efficiency import efficiencies, format_efficiencies, mean_interval, paired_ratio
from cluster.lab.scaling_table import NO_EXCHANGE


def _row(num_workers, batch, images_per_second, block=0, machine="two cores", exchange=NO_EXCHANGE):
    cell = cells_of(workers=(num_workers,), batches=(batch,), links=())[0]
    row = make_rows([cell], num_blocks=1)[0]
    link = {"gigabits_per_second": 1.0} if exchange != NO_EXCHANGE else {}
    return dataclasses.replace(
        row, block=block, images_per_second=images_per_second, machine=machine, exchange=exchange, **link
    )


def test_strong_and_weak_scaling_have_their_own_reference():
    rows = [_row(1, 64, 100.0), _row(1, 32, 80.0), _row(2, 64, 120.0, exchange="allreduce")]
    found = {each.scaling: each for each in efficiencies(rows)}
    assert found["strong"].efficiency.value == pytest.approx(120 / (2 * 100))
    assert found["weak"].efficiency.value == pytest.approx(120 / (2 * 80))


def test_nothing_is_extrapolated():
    rows = [_row(1, 64, 100.0), _row(2, 64, 120.0), _row(4, 256, 300.0)]
    assert [(each.scaling, each.cell.num_workers) for each in efficiencies(rows)] == [("strong", 2), ("weak", 4)]


def test_workers_with_unlike_batches_are_not_compared_with_one_that_has_the_larger_one():
    rows = [_row(1, 17, 100.0), _row(2, 33, 190.0), _row(2, 34, 190.0)]
    assert [(each.scaling, each.cell.global_batch_size) for each in efficiencies(rows)] == [("weak", 34)]


def test_rows_are_compared_within_their_block_and_on_one_kind_of_machine():
    rows = [_row(1, 64, 100.0, 0), _row(1, 64, 50.0, 1), _row(2, 64, 180.0, 0), _row(2, 64, 90.0, 1)]
    (strong,) = efficiencies(rows)
    assert strong.efficiency == mean_interval([0.9, 0.9])
    other = [dataclasses.replace(row, machine="a laptop") if row.num_workers == 1 else row for row in rows]
    assert efficiencies(other) == []
    assert paired_ratio(rows[2:3], rows[1:2]) is None


def test_with_three_blocks_the_interval_is_their_range():
    interval = mean_interval([0.8, 0.9, 0.85])
    assert interval.value == pytest.approx((0.8 * 0.9 * 0.85) ** (1 / 3))
    assert (interval.low, interval.high) == (pytest.approx(0.8), pytest.approx(0.9))
    assert mean_interval([0.8, 0.9, 0.85], level=0.5).low > 0.8


def test_with_one_block_there_is_none():
    interval = mean_interval([0.8])
    assert not interval.is_known and math.isnan(interval.low) and str(interval) == "0.8"


@pytest.mark.parametrize(("num_blocks", "least", "most"), [(3, 0.70, 0.80), (10, 0.90, 0.98)])
def test_intervals_hold_the_truth_as_often_as_is_said(num_blocks, least, most):
    random = np.random.Generator(np.random.Philox(1))
    held = 0
    for _ in range(300):
        interval = mean_interval(np.exp(0.1 * random.standard_normal(num_blocks)))
        held += interval.low <= 1 <= interval.high
    assert least <= held / 300 <= most


def test_the_table_sets_strong_and_weak_scaling_side_by_side():
    rows = [*make_rows(cells_of(links=(0.3,))), *make_rows(cells_of(workers=(1,), batches=(16,)))]
    lines = format_efficiencies(rows).splitlines()[2:]
    assert len(lines) == 2 * 5
    weak = {tuple(line.split(" | ")[1:5]): line.split(" | ")[7] for line in lines}
    assert weak["2", "64", "none", "-"] == "-"
    assert all(value != "-" for key, value in weak.items() if key[0] == "4")
    assert lines[0].startswith("| alexnet_small, 28 px, float32, 0.5 CPUs per worker | 2 | 64 | none | - | ")
    assert lines[0].endswith(" | 3 |")
