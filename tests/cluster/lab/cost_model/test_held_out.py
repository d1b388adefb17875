"""What is kept out of a fit, how errors and choices are judged, and the baselines on data that obey them."""

import dataclasses
import math

import pytest
from scaling_rows import LAW, cells_of, make_rows

from cluster.lab.cost_model.baselines import predict_by_baseline
from cluster.lab.cost_model.held_out import MODEL, find_choices, judge, splits
from cluster.lab.cost_model.kind import samples_per_worker
from cluster.lab.scaling_table import NO_EXCHANGE

ROWS = make_rows(cells_of(batches=(32, 64)), noise=0.02)


def test_whole_values_are_kept_out():
    found = splits(ROWS)
    assert [split.name for split in found] == [
        "4 workers, above the others",
        "0.1 Gbit/s, below the others",
        "0.3 Gbit/s, between the others",
        "1 Gbit/s, above the others",
        "a global batch of 32, below the others",
        "a global batch of 64, above the others",
    ]
    for split in found:
        assert split.value not in {getattr(row, split.axis) for row in split.training}
        assert {getattr(row, split.axis) for row in split.test} == {split.value}
        assert all(row.exchange != NO_EXCHANGE for row in split.test)
    assert {row.num_workers for row in found[0].training} == {1, 2}


def test_where_nothing_would_remain_nothing_is_kept_out():
    assert splits(make_rows(cells_of(workers=(1, 2), links=(1.0,)))) == []


def test_the_cost_model_predicts_its_own_law_and_beats_the_baselines():
    for split in splits(ROWS):
        errors = {verdict.predictor: verdict.median_error for verdict in judge(split)}
        assert errors[MODEL] < 0.05, split.name
        assert errors[MODEL] < min(error for name, error in errors.items() if name != MODEL), split.name


def test_errors_are_relative_to_the_median_of_the_blocks():
    split = splits(ROWS)[0]
    verdict = judge(split)[0]
    for cell, error in verdict.errors.items():
        steps = sorted(row.step_seconds for row in split.test if row.cell == cell)
        assert error == pytest.approx(LAW.predict(cell).step_seconds / steps[1] - 1, abs=0.06)


def test_a_choice_is_judged_by_what_is_beyond_doubt():
    cells = cells_of(workers=(2,), links=(1.0,), exchanges=("allreduce", "factors", "hybrid"))[1:]
    seconds = {"allreduce": (1.0, 1.1, 1.2), "factors": (1.05, 1.0, 1.25), "hybrid": (2.0, 2.2, 2.4)}
    rows = {
        cell: [
            dataclasses.replace(row, step_seconds=took, images_per_second=64 / took)
            for row, took in zip(make_rows([cell]), seconds[cell.exchange], strict=True)
        ]
        for cell in cells
    }

    def choice(predicted):
        (found,) = find_choices(rows, {cell: 0.5 if cell.exchange == predicted else 1.0 for cell in cells})
        return found

    best, tie, wrong = choice("factors"), choice("allreduce"), choice("hybrid")
    assert set(best.ties) == {"allreduce", "factors"} and best.is_decided
    assert best.is_right and tie.is_right and not wrong.is_right
    assert best.best == "factors" and best.loss == 0
    assert wrong.loss == pytest.approx(2.2 / 1.05 - 1)


def _obeying(seconds, workers=(1, 2, 4), links=(1.0,)):
    rows = make_rows(cells_of(workers=workers, batches=(32, 64), links=links), num_blocks=1)
    return [dataclasses.replace(row, step_seconds=seconds(row)) for row in rows]


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("linear", lambda row: row.global_batch_size / row.num_workers / 50),
        ("amdahl", lambda row: 0.3 + samples_per_worker(row) / 50),
        ("ernest", lambda row: 0.3 + samples_per_worker(row) / 50 + 0.1 * math.log(row.num_workers)),
    ],
)
def test_a_baseline_extrapolates_the_law_it_states(name, seconds):
    rows = _obeying(seconds)
    cell = next(cell for cell in cells_of(workers=(8,), links=(1.0,)) if cell.exchange == "hybrid")
    assert predict_by_baseline(name, rows, cell) == pytest.approx(seconds(cell), rel=1e-6)


def test_a_disturbed_block_moves_a_baseline_as_little_as_the_cost_model():
    rows = make_rows(cells_of(workers=(1, 2), links=(1.0,)))
    disturbed = [dataclasses.replace(row, step_seconds=row.step_seconds * (1 + 4 * (row.block == 1))) for row in rows]
    cell = next(row.cell for row in rows if row.exchange == "hybrid")
    for name in ("linear", "amdahl", "ernest"):
        assert predict_by_baseline(name, disturbed, cell) == pytest.approx(predict_by_baseline(name, rows, cell))


def test_for_an_unseen_bandwidth_a_baseline_gets_the_nearest_one():
    rows = _obeying(
        lambda row: row.global_batch_size / row.num_workers / (row.gigabits_per_second or 50), links=(1, 10)
    )
    several = [row for row in rows if row.num_workers > 1]
    cell = next(cell for cell in cells_of(workers=(2,), links=(8.0,)) if cell.exchange == "hybrid")
    assert predict_by_baseline("linear", several, cell) == pytest.approx(64 / 2 / 10)
    assert math.isnan(predict_by_baseline("linear", [], cell))
