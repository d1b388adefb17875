"""The ledger's files equal a plain list, whatever was appended, merged, rolled back, and killed on the way."""

import contextlib
import errno
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.run import ledger_files
from cluster.run.ledger_files import Ledger
from cluster.run.ledger_parts import LEDGER_SCHEMA, LedgerError
from pipeline.command import InputError

SIZE = 3  # samples of a step


@pytest.fixture(autouse=True, scope="module")
def small_parts():
    """A part is closed when it holds 10 steps; nothing is flushed, which a kill, unlike a power cut, does not need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(ledger_files, "_IDS_OF_A_CLOSED_PART", 10 * SIZE)
        yield


class Killed(BaseException):
    """What a process killed by a signal does not live to see."""


@contextlib.contextmanager
def _killed_before(change: int) -> Iterator[None]:
    """Let the block die before its change-th rename, removal or new folder; a dead process changes nothing more."""
    left = itertools.chain(range(change, 0, -1), itertools.repeat(0))

    def mortal(function):
        def changed(*args, **options):
            if not next(left):
                raise Killed
            return function(*args, **options)

        return changed

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        for name in ("replace", "unlink", "mkdir"):
            patch.setattr(os, name, mortal(getattr(os, name)))
        yield


def _ids(first: int, num_steps: int, salt: int = 0) -> np.ndarray:
    """Ids that say which step they are of; those of another salt are others."""
    steps = np.arange(first, first + num_steps)[:, None]
    return steps * 1000 + salt * 10 + np.arange(SIZE)


def _steps(ledger: Ledger) -> list[tuple[int, int, list[int]]]:
    """Step, workers, ids."""
    return [
        (part.first_step + i, int(size), ids.tolist())
        for part in ledger.read()
        for i, (size, ids) in enumerate(zip(part.world_sizes_S, part.sample_ids_SG, strict=True))
    ]


def _rows(first: int, num_steps: int, world_size: int, salt: int = 0) -> list[tuple[int, int, list[int]]]:
    return [(first + i, world_size, ids.tolist()) for i, ids in enumerate(_ids(first, num_steps, salt))]


def _rolled_back(folder: Path) -> list[tuple[int, int, list[int]]]:
    """Rows of `rolled_back/`, in the order of the resumes."""
    tables = [pq.read_table(path) for path in sorted(folder.glob("rolled_back/*.parquet"))]
    columns = ("step", "world_size", "sample_ids")
    return [tuple(row[name] for name in columns) for table in tables for row in table.to_pylist()]


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _build(folder: Path) -> tuple[Ledger, list]:
    """A ledger of a closed part, 1 to 12, a growing one, 13 to 16, and two new ones; 20 steps."""
    ledger = Ledger(folder)
    for first, world_size in ((1, 2), (5, 2), (9, 2), (13, 3)):
        ledger.append(first, _ids(first, 4), world_size)
    ledger.consolidate()
    for first in (17, 19):
        ledger.append(first, _ids(first, 2), 1)
    return ledger, _rows(1, 12, 2) + _rows(13, 4, 3) + _rows(17, 4, 1)


def test_steps_are_read_as_they_were_appended(tmp_path):
    ledger, rows = _build(tmp_path)
    assert _steps(ledger) == rows
    assert _names(tmp_path) == [
        "steps-00000001-00000012.parquet",
        "steps-00000013-00000016.parquet",
        "steps-00000017-00000018.parquet",
        "steps-00000019-00000020.parquet",
    ]
    assert ledger.num_rolled_back == 0


def test_a_part_is_closed_when_it_holds_enough(tmp_path):
    ledger, rows = _build(tmp_path)
    closed = tmp_path / "steps-00000001-00000012.parquet"
    before = closed.stat().st_mtime_ns, closed.stat().st_ino
    ledger.consolidate()
    assert _names(tmp_path) == [closed.name, "steps-00000013-00000020.parquet"]
    ledger.append(21, _ids(21, 6), 4)
    ledger.consolidate()
    ledger.append(27, _ids(27, 1), 4)
    ledger.consolidate()
    assert _names(tmp_path)[1:] == ["steps-00000013-00000026.parquet", "steps-00000027-00000027.parquet"]
    assert (closed.stat().st_mtime_ns, closed.stat().st_ino) == before
    assert _steps(ledger) == rows + _rows(21, 7, 4)


def test_an_empty_ledger_has_nothing(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    ledger.consolidate()
    assert ledger.roll_back(0) == 0 and ledger.num_rolled_back == 0 and _steps(ledger) == []
    assert not (tmp_path / "ledger").exists()


def test_the_files_are_what_their_description_says(tmp_path):
    Ledger(tmp_path).append(1, _ids(1, 4), 2)
    table = pq.read_table(tmp_path / "steps-00000001-00000004.parquet")
    assert table.schema.names == ["step", "world_size", "sample_ids", "xxh3_64"]
    row = table.to_pylist()[2]
    assert row["step"] == 3 and row["world_size"] == 2 and row["sample_ids"] == [3000, 3001, 3002]
    assert row["xxh3_64"] == xxhash.xxh3_64_intdigest(b"".join(i.to_bytes(8, "little") for i in row["sample_ids"]))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.dtype(">i8")])
def test_the_type_of_the_ids_makes_no_difference(tmp_path, dtype):
    ids = np.asfortranarray(_ids(1, 4)).astype(dtype)
    Ledger(tmp_path).append(1, ids, 1)
    assert _steps(Ledger(tmp_path)) == _rows(1, 4, 1)


@pytest.mark.parametrize("step", [0, 5, 12, 13, 14, 16, 17, 19, 20, 25])
def test_later_steps_are_moved(tmp_path, step):
    ledger, rows = _build(tmp_path)
    assert ledger.roll_back(step) == max(0, 20 - step)
    assert _steps(ledger) == rows[:step] and _rolled_back(tmp_path) == rows[step:]
    assert ledger.roll_back(step) == 0 and ledger.num_rolled_back == max(0, 20 - step)
    ledger.append(min(step, 20) + 1, _ids(min(step, 20) + 1, 3, salt=7), 5)
    ledger.consolidate()
    assert _steps(ledger) == rows[:step] + _rows(min(step, 20) + 1, 3, 5, salt=7)


def test_the_same_steps_can_be_rolled_back_again(tmp_path):
    """The order is a function: after a resume the same ids come again, and may be undone again."""
    ledger, rows = _build(tmp_path)
    ledger.roll_back(18)
    ledger.append(19, _ids(19, 2), 1)
    assert ledger.roll_back(18) == 2
    assert ledger.num_rolled_back == 4 and _rolled_back(tmp_path) == rows[18:] * 2
    assert _names(tmp_path / "rolled_back") == [f"000{i}-steps-00000019-00000020.parquet" for i in (1, 2)]


OPERATIONS = {
    "append": (lambda ledger: ledger.append(21, _ids(21, 2), 4), _rows(21, 2, 4), 0),
    "consolidate": (lambda ledger: ledger.consolidate(), [], 0),
    "roll_back in the growing part": (lambda ledger: ledger.roll_back(14), [], 6),
    "roll_back in the closed part": (lambda ledger: ledger.roll_back(7), [], 13),
    "roll_back of all": (lambda ledger: ledger.roll_back(0), [], 20),
}


def _lives(operate, folder: Path, moment: int) -> bool:
    """Run an operation that is killed before its change number `moment`, if it has so many."""
    lived = False
    with _killed_before(moment):
        operate(Ledger(folder))
        lived = True
    return lived


@pytest.mark.parametrize("name", OPERATIONS)
def test_two_kills_at_any_moment_lose_and_repeat_nothing(tmp_path, name):
    operate, added, num_moved = OPERATIONS[name]
    _, rows = _build(tmp_path / "built")
    before, after = (rows, 0), (rows[: 20 - num_moved] + added, num_moved)

    def state(folder: Path) -> tuple[list, int]:
        return _steps(Ledger(folder)), Ledger(folder).num_rolled_back

    for first in itertools.count():
        for second in itertools.count():
            folder = tmp_path / f"{first}-{second}"
            shutil.copytree(tmp_path / "built", folder)
            lived = lived_first = _lives(operate, folder, first)
            assert state(folder) in ([after] if lived else [before, after])
            if not lived and not (added and state(folder) == after):
                lived = _lives(operate, folder, second)
                assert state(folder) in ([after] if lived else [before, after])
            if lived:
                break
            Ledger(folder).roll_back(len(state(folder)[0]))  # the resume that follows
            assert state(folder) in [before, after]
            assert not list(folder.glob(".*")) and not list(folder.glob("rolling*"))
            assert _rolled_back(folder) == rows[20 - Ledger(folder).num_rolled_back :]
            if added and state(folder) == after:
                break
        if lived_first:
            break
    assert first >= 2  # so many changes the least of them makes: a rename and a removal


@pytest.mark.parametrize("consolidates", [False, True])
def test_every_writer_finishes_a_killed_roll_back(tmp_path, consolidates):
    _, rows = _build(tmp_path)
    assert not _lives(partial(Ledger.roll_back, step=14), tmp_path, 2)
    assert list(tmp_path.glob("rolling_back-*")) and _steps(Ledger(tmp_path)) == rows[:14]
    if consolidates:
        Ledger(tmp_path).consolidate()
        assert not list(tmp_path.glob("rolling_back-*"))
    Ledger(tmp_path).append(15, _ids(15, 2, salt=1), 4)
    Ledger(tmp_path).roll_back(16)
    assert _steps(Ledger(tmp_path)) == rows[:14] + _rows(15, 2, 4, salt=1) and _rolled_back(tmp_path) == rows[14:]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_history_equals_a_list(data):
    rows, undone = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "ledger"
        for salt in range(data.draw(st.integers(1, 12), "operations")):
            kind = data.draw(st.sampled_from(["append", "append", "consolidate", "roll_back"]), "operation")
            after, undone_after = rows, undone
            if kind == "append":
                first, num_steps = len(rows) + 1, data.draw(st.integers(1, 8), "steps")
                ids, after = _ids(first, num_steps, salt), rows + _rows(first, num_steps, salt, salt)
                operate = partial(Ledger.append, first_step=first, sample_ids_SG=ids, world_size=salt)
            elif kind == "roll_back":
                step = data.draw(st.integers(0, len(rows)), "rolled back to")
                after, undone_after = rows[:step], undone + rows[step:]
                operate = partial(Ledger.roll_back, step=step)
            else:
                operate = Ledger.consolidate
            lived = _lives(operate, folder, data.draw(st.integers(0, 12) | st.just(1000), "killed before"))
            if lived or _steps(Ledger(folder)) == after:
                rows, undone = after, undone_after
            assert _steps(Ledger(folder)) == rows and Ledger(folder).num_rolled_back == len(undone)
            if not lived:
                Ledger(folder).roll_back(len(rows))
                assert _steps(Ledger(folder)) == rows
            assert _rolled_back(folder) == undone


def test_leftovers_of_a_merge_do_not_count(tmp_path):
    ledger, rows = _build(tmp_path)
    for name in ("steps-00000017-00000018.parquet", "steps-00000013-00000016.parquet"):
        shutil.copy(tmp_path / name, tmp_path / f"{name}.copy")
    ledger.consolidate()
    for path in tmp_path.glob("*.copy"):
        path.rename(path.with_suffix(""))
    assert len(_names(tmp_path)) == 4 and _steps(ledger) == rows
    ledger.consolidate()
    assert len(_names(tmp_path)) == 2 and _steps(ledger) == rows


def test_steps_that_are_there_are_not_appended(tmp_path):
    ledger, rows = _build(tmp_path)
    with pytest.raises(ValueError, match="first_step=20: the ledger has steps up to 20"):
        ledger.append(20, _ids(20, 1), 1)
    with pytest.raises(ValueError, match="at least one step"):
        ledger.append(21, _ids(21, 0), 1)
    assert _steps(ledger) == rows


GROWING = "steps-00000013-00000016.parquet"


def _edit(folder: Path, column: str, change) -> None:
    """Change a column of the growing part; `change` gets a step and its value."""
    rows = pq.read_table(folder / GROWING).to_pylist()
    for row in rows:
        row[column] = change(row["step"], row[column])
    pq.write_table(pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA), folder / GROWING, store_schema=False)


def _overlap(folder: Path) -> None:
    Ledger(folder / "other").append(15, _ids(15, 3), 1)
    next((folder / "other").iterdir()).rename(folder / "steps-00000015-00000017.parquet")


DAMAGES = {
    "a gap": (lambda f: (f / GROWING).unlink(), "lacks steps 13 to 16"),
    "no beginning": (lambda f: (f / "steps-00000001-00000012.parquet").unlink(), "lacks steps 1 to 12"),
    "a hash": (
        lambda f: _edit(f, "xxh3_64", lambda k, v: v ^ (k == 16)),
        f"{GROWING}: the sample ids of step 16 do not match",
    ),
    "an id": (
        lambda f: _edit(f, "sample_ids", lambda k, ids: [14009 if i == 14001 else i for i in ids]),
        f"{GROWING}: the sample ids of step 14 do not match the hash",
    ),
    "a swapped pair": (
        lambda f: _edit(f, "sample_ids", lambda k, ids: ids[::-1] if k == 15 else ids),
        f"{GROWING}: the sample ids of step 15 do not match the hash",
    ),
    "a lost id": (
        lambda f: _edit(f, "sample_ids", lambda k, ids: ids[: 3 - (k == 16)]),
        "its steps have 2 to 3 samples",
    ),
    "another batch": (
        lambda f: _edit(f, "sample_ids", lambda k, ids: ids[:2]),
        "the sample ids of step 13 do not match",
    ),
    "steps": (lambda f: _edit(f, "step", lambda k, step: step + 1), f"{GROWING} holds other steps than its name says"),
    "a cut file": (lambda f: os.truncate(f / GROWING, 300), f"{GROWING} is damaged"),
    "an empty file": (lambda f: os.truncate(f / GROWING, 0), f"{GROWING} is damaged"),
    "a bad page": (
        lambda f: (f / GROWING).write_bytes((f / GROWING).read_bytes().replace(b"\x28\xb5", b"\x00\x00")),
        f"{GROWING} is damaged",
    ),
    "an overlap": (_overlap, "steps-00000015-00000017.parquet overlaps steps-00000013-00000016.parquet"),
    "a stranger": (lambda f: pq.write_table(pa.table({"step": [1]}), f / GROWING), f"{GROWING} has other columns"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(tmp_path, name):
    damage, message = DAMAGES[name]
    ledger, _ = _build(tmp_path)
    damage(tmp_path)
    with pytest.raises(LedgerError, match=re.escape(message)):
        list(ledger.read())


def test_steps_of_another_batch_size_are_named(tmp_path):
    ledger, _ = _build(tmp_path)
    ledger.append(21, np.zeros((1, SIZE + 1), dtype=np.int64), 1)
    with pytest.raises(LedgerError, match="its steps have 4 samples, those before have 3"):
        list(ledger.read())


def test_a_part_that_is_merged_while_it_is_read_is_no_damage(tmp_path):
    ledger, _ = _build(tmp_path)
    reading = ledger.read()
    next(reading)
    ledger.consolidate()
    with pytest.raises(InputError, match="merged into another file meanwhile; run the command again") as caught:
        list(reading)
    assert not isinstance(caught.value, LedgerError)


def test_a_gap_does_not_stop_the_training(tmp_path):
    """Steps before the ledger was kept, or removed files: reading says so, writing goes on."""
    ledger, _ = _build(tmp_path)
    ledger.append(31, _ids(31, 2), 1)
    ledger.append(33, _ids(33, 2), 1)
    ledger.consolidate()
    assert _names(tmp_path)[1:] == ["steps-00000013-00000020.parquet", "steps-00000031-00000034.parquet"]
    assert ledger.roll_back(18) == ledger.num_rolled_back == 6
    assert [step for step, _, _ in _steps(ledger)] == list(range(1, 19))


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "ledger")
    ledger.append(1, np.arange(8).reshape(2, 4), 1)

    def stale(*arguments):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", lambda path: False)  # what Python 3.14 says then
        patch.setattr(os, "listdir", stale)
        for call in (lambda: ledger.roll_back(0), lambda: list(ledger.read())):
            with pytest.raises(OSError, match="Stale file handle"):
                call()
