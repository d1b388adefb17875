"""A sweep goes on where it was stopped, keeps its blocks whole, and refuses what does not fit."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.exchange.cost import Link
from cluster.lab.cost_model.kind import exchange_ratio
from cluster.lab.link_sweep import LinkDoesNotFitError, LinkFit
from cluster.lab.scaling_table import NO_EXCHANGE, Cell, read_rows
from cluster.run.json_log import JsonLog
from cluster.scaling.cells import in_random_order, launches_in_random_order
from cluster.scaling.experiment import Experiment
from cluster.scaling.folder import Identity, Say, SweepFolder, write_cell, write_launch
from cluster.scaling.sweep import Sweep
from pipeline.command import InputError

EXPERIMENT = Experiment(
    workers=(1, 2),
    global_batch_sizes=(4,),
    models=("alexnet_small:26",),
    exchanges=("allreduce", "factors"),
    links=(0.1, 1.0),
    num_classes=10,
    blocks=2,
)
_PARTS = ("data_wait", "forward", "backward", "update")
FIELDS = {f"{part}_seconds": 0.1 for part in _PARTS} | {"step_seconds_p90": 0.5, "cpu_seconds": 0.3}
FIELDS |= {"blocked_seconds": None, "sent_bytes": None, "throttled_seconds": None, "peak_memory_bytes": 1}
FIELDS |= {"mean_step_seconds": None}


class Killed(BaseException):
    """What a kill is in these tests."""


class FakePlace:
    """Measures at once; a step of the n-th measured cell takes n seconds.

    Args:
        identities: Code and machine that each launch shows; a single one is that of all.
        dies_after: Number of cells after which it is killed.
        refused: Links that fail.
        refusal: How they do.
    """

    def __init__(
        self, identities=None, dies_after: int | None = None, refused: Sequence[float] = (), refusal=LinkDoesNotFitError
    ) -> None:
        identities = identities or Identity("code", "machine")
        self._identities = iter(identities if isinstance(identities, list) else [identities] * 99)
        self._dies_after, self._refused, self._refusal = dies_after, refused, refusal
        self.measured: list[tuple[int, list[Cell]]] = []
        self.swept: list[tuple[int, float]] = []

    def sweep(self, num_workers: int, gigabits: float) -> LinkFit:
        self.swept.append((num_workers, gigabits))
        if gigabits in self._refused:
            raise self._refusal("the link does not fit")
        return LinkFit(Link(0.001, gigabits * 1e9 / 8), 0.02)

    def measure(self, num_workers: int, cells: Sequence[tuple[int, Cell]], log: Path, say: Say) -> None:
        done: list[Cell] = []
        self.measured.append((num_workers, done))
        time.sleep(0.002)  # a launch takes seconds, and the log's times are in milliseconds
        with contextlib.closing(JsonLog(log)) as launch:
            write_launch(launch, next(self._identities), {"torch": "1"})
            for place, cell in cells:
                if self._dies_after is not None and self.num_measured == self._dies_after:
                    raise Killed
                done.append(cell)
                write_cell(launch, cell, place, 6, FIELDS | {"step_seconds": float(self.num_measured)})

    @property
    def num_measured(self) -> int:
        return sum(len(cells) for _, cells in self.measured)


def _run(path: Path, place: FakePlace, experiment: Experiment = EXPERIMENT):
    sweep = Sweep(experiment, SweepFolder(path), (), 10)
    declaration = experiment.to_json()
    sweep.folder.check(declaration)
    with contextlib.closing(sweep.folder.begin(declaration)) as log:
        return sweep, sweep.run(place, log)


def test_a_block_has_one_launch_per_number_of_workers_in_random_orders(tmp_path):
    place = FakePlace()
    sweep, plan = _run(tmp_path, place)
    expected = []
    for block in range(2):
        for num_workers in launches_in_random_order((1, 2), 0, block):
            cells = [cell for cell in plan.cells if cell.num_workers == num_workers]
            expected.append((num_workers, in_random_order(cells, 0, block)))
    assert place.measured == expected
    assert place.swept == [(2, 0.1), (2, 1.0)]
    rows = read_rows(sweep.folder.table)
    assert len(rows) == 2 * len(plan.cells) and {row.block for row in rows} == {0, 1}
    assert sweep.is_measured(plan)


def test_what_an_exchange_costs_is_held_against_the_same_block(tmp_path):
    sweep, _ = _run(tmp_path, FakePlace())
    rows = read_rows(sweep.folder.table)
    for row in rows:
        (alone,) = [
            other.step_seconds
            for other in rows
            if (other.block, other.num_workers, other.exchange) == (row.block, row.num_workers, NO_EXCHANGE)
        ]
        assert row.exposed_seconds == row.step_seconds - alone
        assert row.images_per_second == 4 / row.step_seconds
        if row.gigabits_per_second:
            assert (row.link_bytes_per_second, row.link_deviation) == (row.gigabits_per_second * 1e9 / 8, 0.02)


@pytest.mark.parametrize("dies_after", [0, 1, 3, 5, 6, 8, 11])
def test_a_killed_sweep_goes_on_where_it_was_stopped(tmp_path, dies_after):
    first = FakePlace(dies_after=dies_after)
    with pytest.raises(Killed):
        _run(tmp_path / "killed", first)
    with open(next(iter((tmp_path / "killed" / "blocks").iterdir())), "ab") as log:
        log.write(b'{"kind": "cell", "cel')  # torn
    second = FakePlace()
    sweep, plan = _run(tmp_path / "killed", second)
    assert first.num_measured + second.num_measured == 2 * len(plan.cells)  # each once
    straight, _ = _run(tmp_path / "straight", FakePlace())
    places = [[(r.block, r.cell, r.place) for r in read_rows(s.folder.table)] for s in (sweep, straight)]
    assert places[0] == places[1]
    assert second.swept == []


def test_only_whole_blocks_are_in_the_table(tmp_path):
    with pytest.raises(Killed):
        _run(tmp_path, FakePlace(dies_after=8))  # 6 cells of the first block, 2 of the second
    folder = SweepFolder(tmp_path)
    assert {row.block for row in read_rows(folder.table)} == {0}
    plan = Sweep(EXPERIMENT, folder, (), 10).plan()
    folder.write_table(range(2), plan.cells)
    assert {row.block for row in read_rows(folder.table)} == {0}


def test_a_finished_sweep_starts_nothing_and_more_blocks_only_these(tmp_path):
    sweep, plan = _run(tmp_path, FakePlace())
    before = sweep.folder.table.read_bytes()
    again = FakePlace()
    _run(tmp_path, again)
    assert (again.measured, again.swept) == ([], [])
    assert sweep.folder.table.read_bytes() == before
    more = dataclasses.replace(EXPERIMENT, blocks=3)
    assert not Sweep(more, sweep.folder, (), 10).is_measured(plan)
    third = FakePlace()
    _run(tmp_path, third, more)
    assert third.num_measured == len(plan.cells)
    assert {row.block for row in read_rows(sweep.folder.table)} == {0, 1, 2}


@pytest.mark.parametrize("other", [Identity("other", "machine"), Identity("code", "other")])
def test_a_block_that_another_machine_or_code_began_is_measured_anew(tmp_path, other, capsys):
    with pytest.raises(Killed):
        _run(tmp_path, FakePlace(dies_after=8))  # 6 cells of the first block, 2 of the second
    place = FakePlace(other)
    sweep, plan = _run(tmp_path, place)
    assert place.num_measured == len(plan.cells)
    rows = read_rows(sweep.folder.table)
    for block, identity in enumerate((Identity("code", "machine"), other)):
        assert {(row.code, row.machine) for row in rows if row.block == block} == {(identity.code, identity.machine)}
    said = "on machine, not other" if other.machine == "other" else "by other code"
    assert f"block 2 of 2: 2 cells were measured {said}; it is measured anew" in capsys.readouterr().out


def test_a_cluster_whose_workers_move_between_kinds_of_machines_is_refused(tmp_path):
    moving = [Identity("code", f"machine {number % 2}") for number in range(50)]
    with pytest.raises(InputError, match="nodes of one kind"):
        _run(tmp_path, FakePlace(moving))


def test_cells_of_a_refused_link_are_left_out_and_the_rest_is_measured(tmp_path):
    place = FakePlace(refused=[1.0])
    sweep, plan = _run(tmp_path, place)
    assert {cell.gigabits_per_second for cell in plan.cells} == {0.0, 0.1}
    assert plan.refused == ["2 workers at 1 Gbit/s: the link does not fit"]
    assert {row.gigabits_per_second for row in read_rows(sweep.folder.table)} == {0.0, 0.1}


def test_a_refused_link_is_tried_again_by_the_same_command(tmp_path):
    sweep, plan = _run(tmp_path, FakePlace(refused=[1.0]))
    assert not sweep.is_measured(sweep.plan())
    still = FakePlace(refused=[1.0])
    _, plan = _run(tmp_path, still)
    assert (still.swept, still.measured, len(plan.refused)) == ([(2, 1.0)], [], 1)
    again = FakePlace()
    sweep, plan = _run(tmp_path, again)
    assert (again.swept, again.num_measured, plan.refused) == ([(2, 1.0)], 2 * 2, [])
    assert {(row.block, row.cell) for row in read_rows(sweep.folder.table)} == {
        (block, cell) for block in range(2) for cell in plan.cells
    }


def test_a_sweep_of_a_link_that_fails_otherwise_ends_the_command(tmp_path):
    with pytest.raises(InputError, match="the link does not fit"):
        _run(tmp_path, FakePlace(refused=[1.0], refusal=InputError))
    place = FakePlace()
    _, plan = _run(tmp_path, place)
    assert place.swept == [(2, 1.0)] and plan.refused == []


def test_links_like_a_clusters_are_found_from_the_computation_once(tmp_path):
    experiment = dataclasses.replace(EXPERIMENT, links=(), like="8 x 20000 img/s @ 100gbit")
    place = FakePlace()
    sweep, plan = _run(tmp_path, place, experiment)
    (gigabits,) = {cell.gigabits_per_second for cell in plan.cells} - {0.0}
    assert place.swept == [(2, gigabits)]
    cell = next(cell for cell in plan.cells if cell.exchange == "allreduce")
    # The passes were measured first, in 0.2 seconds: 2 samples per worker here and there.
    there = dataclasses.replace(cell, num_workers=8, global_batch_size=16)
    ratio = exchange_ratio(there, 0.95 * 100e9 / 8, 2 / 20000)
    assert exchange_ratio(cell, 0.95 * gigabits * 1e9 / 8, 0.2) == pytest.approx(ratio, rel=0.01)
    assert len(read_rows(sweep.folder.table)) == 2 * len(plan.cells)
    again = FakePlace()
    _run(tmp_path, again, experiment)
    assert again.measured == []


def test_a_folder_of_another_experiment_or_of_something_else_is_refused(tmp_path):
    sweep, _ = _run(tmp_path / "out", FakePlace())
    other = dataclasses.replace(EXPERIMENT, steps=7, links=(0.1,))
    with pytest.raises(InputError) as refused:
        sweep.folder.check(other.to_json())
    assert [line.partition(" with ")[2].partition(";")[0] for line in str(refused.value).splitlines()] == [
        "links 0.1 1.0, not 0.1",
        "steps 6, not 7",
    ]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(InputError, match=r"holds cat.jpg"):
        SweepFolder(tmp_path / "photos").check(EXPERIMENT.to_json())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        SweepFolder(tmp_path / "file").check(EXPERIMENT.to_json())
    (tmp_path / "out" / "experiment.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        sweep.folder.check(EXPERIMENT.to_json())


def test_two_commands_do_not_write_to_one_folder(tmp_path):
    folder = SweepFolder(tmp_path)
    with (
        contextlib.closing(folder.begin(EXPERIMENT.to_json())),
        pytest.raises(InputError, match="is being written by another job"),
    ):
        folder.begin(EXPERIMENT.to_json())


def test_who_locks_the_folder_first_decides_what_it_holds(tmp_path):
    folder, other = SweepFolder(tmp_path / "out"), dataclasses.replace(EXPERIMENT, steps=7).to_json()
    folder.check(other)  # free so far
    with contextlib.closing(folder.begin(EXPERIMENT.to_json())):
        with pytest.raises(InputError, match="is being written by another job"):
            folder.begin(other)
        assert json.loads((folder.path / "experiment.json").read_text()) == EXPERIMENT.to_json()
    with pytest.raises(InputError, match="holds an experiment with steps 6, not 7"):
        folder.begin(other)
    folder.begin(EXPERIMENT.to_json()).close()  # the refusal has left no lock
    (folder.path / "experiment.json").unlink()  # killed between the lock and the declaration
    folder.check(other)


def test_the_estimate_is_a_guess_until_there_are_steps(tmp_path):
    empty = Sweep(EXPERIMENT, SweepFolder(tmp_path / "none"), (), 10)
    plan = empty.plan()
    guess = empty.estimate(plan)
    assert guess.is_guessed and (guess.num_launches, guess.num_cells) == (4, 2 * len(plan.cells))
    assert "at a guess of 100 GFLOP/s per CPU" in str(guess)
    with pytest.raises(Killed):
        _run(tmp_path / "half", FakePlace(dies_after=8))
    half = Sweep(EXPERIMENT, SweepFolder(tmp_path / "half"), (), 10).estimate(plan)
    assert not half.is_guessed and half.num_cells == 2 * len(plan.cells) - 8
    finished, _ = _run(tmp_path / "half", FakePlace())
    assert finished.estimate(plan).seconds == 0 and str(finished.estimate(plan)) == "nothing is left to measure"


def test_the_declaration_is_json(tmp_path):
    assert json.loads(json.dumps(EXPERIMENT.to_json())) == EXPERIMENT.to_json()
