"""The files of a run's sample ledger: which samples each step consumed, whatever happened on the way.

    RUN/ledger/steps-00000001-00008192.parquet           a part: one row per step; steps 1 to 8192
    RUN/ledger/rolling_back-00000091-00000120.parquet    a roll-back under way: its steps no longer count
    RUN/ledger/rolled_back/0001-steps-00000091-00000120.parquet    steps undone by a resume, in the order of the resumes

A part's name carries its range of steps. One process writes, under the lock of the run's log; every change is one
atomic file, and what a kill leaves behind is resolved by two rules: a part whose range lies in another's is a leftover
of a merge, and while `rolling_back` exists its steps are out of the ledger, whether or not the parts are cut yet.

Step k, counted from 1, consumed the positions [(k - 1) G, k G) of the endless stream, G the global batch size. Ids of
one ImageNet epoch in random order, 128 a step, cost 2.63 bytes each, of which 2.54 are their entropy: the bytes
of the int64 are stored plane by plane (BYTE_STREAM_SPLIT), and zstd removes the planes that are zero.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.command import InputError
from pipeline.system.files import atomic_file, flush_folder, names_in, remove_temporary_files

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("world_size", pa.int32(), nullable=False),  # workers that made the step; for information
        pa.field("sample_ids", pa.list_(pa.field("element", pa.int64(), nullable=False)), nullable=False),
        pa.field("xxh3_64", pa.uint64(), nullable=False),  # of the step's ids as little-endian int64
    ]
)
_IDS_OF_A_CLOSED_PART = 2**20  # about 2.7 MB: what a call of `consolidate` rewrites at most, but for the newest steps


class LedgerError(InputError):
    """The ledger does not prove what it should; the message is one line: what is wrong, and what to do."""


@dataclass(frozen=True)
class LedgerSteps:
    """Consecutive steps as they were recorded.

    Attributes:
        first_step: Counted from 1.
        world_sizes_S: Workers that made each step, int32.
        sample_ids_SG: In the order of the positions, int64.
    """

    first_step: int
    world_sizes_S: np.ndarray
    sample_ids_SG: np.ndarray


@dataclass(frozen=True)
class _Part:
    """A file of consecutive steps.

    Attributes:
        path: Its name carries the range of its steps.
        first: Step.
        last: Step that counts; those after it are being rolled back.
        last_in_file: Step.
    """

    path: Path
    first: int
    last: int
    last_in_file: int


class Ledger:
    """The sample ledger of one run.

    Args:
        folder: RUN/ledger; made when the first step is appended.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._rolled_back = folder, folder / "rolled_back"

    def append(self, first_step: int, sample_ids_SG: np.ndarray, world_size: int) -> None:
        """Record consecutive steps; they are on disk when this returns.

        Args:
            first_step: Number of the first one, counted from 1.
            sample_ids_SG: What entered the loss, integers, in the order of the positions.
            world_size: Workers that made the steps.

        Raises:
            ValueError: There is no step, or the ledger has one of these already.
        """
        if first_step < 1 or not sample_ids_SG.size:
            raise ValueError(f"first_step={first_step}, ids of shape {sample_ids_SG.shape}: must be at least one step")
        self._finish_roll_back()
        parts = self._parts()
        if parts and first_step <= parts[-1].last:
            raise ValueError(f"first_step={first_step}: the ledger has steps up to {parts[-1].last}; roll back first")
        last_step = first_step + len(sample_ids_SG) - 1
        _write(self._folder / _name("steps", first_step, last_step), [_table(first_step, sample_ids_SG, world_size)])

    def consolidate(self) -> None:
        """Merge the newest parts into the growing one; one that holds enough is closed and never rewritten."""
        self._finish_roll_back()
        parts = self._parts()
        for leftover in set(_files(self._folder, "steps")) - set(parts):
            leftover.path.unlink()
        num_open = 0
        while num_open < len(parts) and _num_ids(parts[-num_open - 1]) < _IDS_OF_A_CLOSED_PART:
            num_open += 1
        group: list[_Part] = []
        num_ids = 0
        for part in parts[len(parts) - num_open :]:
            if group and part.first != group[-1].last + 1:  # a gap is for readers to report
                self._merge(group)
                group, num_ids = [], 0
            group.append(part)
            num_ids += _num_ids(part)
            if num_ids >= _IDS_OF_A_CLOSED_PART:
                self._merge(group)
                group, num_ids = [], 0
        self._merge(group)

    def roll_back(self, step: int) -> int:
        """Move all later steps to `rolled_back/`, and finish a roll-back that was killed.

        To be called whenever a run is taken up, before anything is appended.

        Args:
            step: Of the checkpoint that the run goes on from; 0: from none.

        Returns:
            The number of steps that were moved.

        Raises:
            LedgerError: A part can't be read.
        """
        remove_temporary_files(self._folder)
        num_moved = self._finish_roll_back()
        later = [part for part in self._parts() if part.last > step]
        if later:
            first = max(later[0].first, step + 1)
            tables = (_load(part).slice(max(0, first - part.first)) for part in later)
            _write(self._folder / _name("rolling_back", first, later[-1].last), tables)
            num_moved += self._finish_roll_back()
        return num_moved

    @property
    def num_rolled_back(self) -> int:
        """Number of steps that resumes have undone."""
        moved = _files(self._folder, "rolling_back") + _files(self._rolled_back, r"\d+-steps")
        return sum(_metadata(part).num_rows for part in moved)

    def read(self) -> Iterator[LedgerSteps]:
        """Yield the steps from 1 to the last one that counts, part by part, each checked against its hash.

        Raises:
            LedgerError: Names the file or the step: parts that overlap or leave a gap, a file that was not
                written by this program or is damaged, a step whose ids have another hash or another number.
            InputError: A part was merged into another while this was reading.
        """
        next_step, global_batch_size = 1, None
        for part in self._parts():
            if part.first != next_step:
                raise LedgerError(
                    f"{self._folder} lacks steps {next_step} to {part.first - 1}; restore their files from a copy"
                )
            steps = _verified(part)
            global_batch_size = global_batch_size or steps.sample_ids_SG.shape[1]
            if steps.sample_ids_SG.shape[1] != global_batch_size:
                raise LedgerError(
                    f"{part.path}: its steps have {steps.sample_ids_SG.shape[1]} samples, those before "
                    f"{global_batch_size}; it is of another run: restore the file from a copy"
                )
            yield steps
            next_step = part.last + 1

    def _parts(self) -> list[_Part]:
        """Return the parts that count, in order, up to the step that they count to."""
        end = min((part.first - 1 for part in _files(self._folder, "rolling_back")), default=None)
        kept: list[_Part] = []
        for whole in sorted(_files(self._folder, "steps"), key=lambda part: (part.first, -part.last)):
            part = whole if end is None else dataclasses.replace(whole, last=min(whole.last, end))
            if part.last < part.first or (kept and part.last <= kept[-1].last):
                continue
            if kept and part.first <= kept[-1].last:
                raise LedgerError(
                    f"{part.path} overlaps {kept[-1].path.name}; one of them is of another run: remove it"
                )
            kept.append(part)
        return kept

    def _merge(self, group: list[_Part]) -> None:
        """Write consecutive parts as one and remove them."""
        if len(group) < 2:
            return
        merged = pa.concat_tables([_load(part) for part in group]).combine_chunks()
        _write(self._folder / _name("steps", group[0].first, group[-1].last), [merged])
        for part in group:
            part.path.unlink()

    def _finish_roll_back(self) -> int:
        """Cut the parts of what stands in `rolling_back`, then file that away; return its number of steps."""
        num_moved = 0
        for rolling in _files(self._folder, "rolling_back"):
            num_moved += _metadata(rolling).num_rows
            if parts := self._parts():
                last = parts[-1]
                if last.last < last.last_in_file:
                    _write(self._folder / _name("steps", last.first, last.last), [_load(last)])
            for part in _files(self._folder, "steps"):
                if part.last >= rolling.first:
                    part.path.unlink()
            flush_folder(self._folder)  # removed for good before the roll-back is forgotten
            self._rolled_back.mkdir(exist_ok=True)
            numbers = [int(part.path.name.split("-")[0]) for part in _files(self._rolled_back, r"\d+-steps")]
            name = _name(f"{max(numbers, default=0) + 1:04d}-steps", rolling.first, rolling.last)
            os.replace(rolling.path, self._rolled_back / name)
            flush_folder(self._rolled_back)
            flush_folder(self._folder)
        return num_moved


def _name(kind: str, first_step: int, last_step: int) -> str:
    return f"{kind}-{first_step:08d}-{last_step:08d}.parquet"


def _files(folder: Path, kind: str) -> list[_Part]:
    """Return a folder's files whose name `_name` has made, `kind` being a regular expression."""
    pattern = re.compile(rf"(?:{kind})-(\d{{8,}})-(\d{{8,}})\.parquet")
    matches = (pattern.fullmatch(name) for name in names_in(folder))
    return [_Part(folder / match[0], int(match[1]), int(match[2]), int(match[2])) for match in matches if match]


def _table(first_step: int, sample_ids_SG: np.ndarray, world_size: int) -> pa.Table:
    ids_SG = np.ascontiguousarray(sample_ids_SG, dtype=np.int64)
    num_steps, global_batch_size = ids_SG.shape
    offsets = np.arange(0, ids_SG.size + 1, global_batch_size, dtype=np.int32)
    columns = [
        pa.array(np.arange(first_step, first_step + num_steps)),
        pa.array(np.full(num_steps, world_size, dtype=np.int32)),
        pa.ListArray.from_arrays(offsets, ids_SG.ravel(), type=LEDGER_SCHEMA.field("sample_ids").type),
        pa.array(_hashes(ids_SG)),
    ]
    return pa.Table.from_arrays(columns, schema=LEDGER_SCHEMA)


def _hashes(ids_SG: np.ndarray) -> np.ndarray:
    """Return each step's hash, uint64 (S,)."""
    little_endian = ids_SG.astype("<i8", copy=False)
    return np.array([xxhash.xxh3_64_intdigest(row.data) for row in little_endian], dtype=np.uint64)


def _write(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write a part atomically, one row group per table; the same tables give the same bytes."""
    encodings = {
        "step": "DELTA_BINARY_PACKED",
        "world_size": "DELTA_BINARY_PACKED",
        "sample_ids.list.element": "BYTE_STREAM_SPLIT",
        "xxh3_64": "PLAIN",
    }
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(
            file, LEDGER_SCHEMA, compression="zstd", use_dictionary=False, column_encoding=encodings, store_schema=False
        ) as writer,
    ):
        for table in tables:
            writer.write_table(table)


def _load(part: _Part) -> pa.Table:
    """Return a part's rows that count.

    Raises:
        LedgerError: The file is damaged, does not belong to a ledger, or holds other steps than its name says.
    """
    with _open(part) as file:
        table = file.read()
    if not table.schema.equals(LEDGER_SCHEMA):
        raise LedgerError(f"{part.path} has other columns than a ledger; restore the file from a copy")
    if not np.array_equal(table["step"].to_numpy(), np.arange(part.first, part.last_in_file + 1)):
        raise LedgerError(f"{part.path} holds other steps than its name says; restore the file from a copy")
    return table.slice(0, part.last - part.first + 1)


def _verified(part: _Part) -> LedgerSteps:
    """Return a part's steps that count.

    Raises:
        LedgerError: As `_load`; or a step's ids are not those that were hashed, or not as many as the others'.
    """
    table = _load(part).combine_chunks()
    ids = table["sample_ids"].chunk(0)
    lengths_S = ids.value_lengths().to_numpy()
    if not (lengths_S == lengths_S[0]).all() or not lengths_S[0]:
        raise LedgerError(
            f"{part.path}: its steps have {lengths_S.min()} to {lengths_S.max()} samples; restore the file from a copy"
        )
    ids_SG = ids.flatten().to_numpy().reshape(len(ids), -1)
    wrong = np.flatnonzero(_hashes(ids_SG) != table["xxh3_64"].to_numpy())
    if len(wrong):
        raise LedgerError(
            f"{part.path}: the sample ids of step {part.first + wrong[0]} are not those that were hashed when it was "
            f"trained; restore the file from a copy"
        )
    return LedgerSteps(part.first, table["world_size"].to_numpy(), ids_SG)


def _metadata(part: _Part) -> pq.FileMetaData:
    with _open(part) as file:
        return file.metadata


def _num_ids(part: _Part) -> int:
    metadata, column = _metadata(part), LEDGER_SCHEMA.get_field_index("sample_ids")
    return sum(metadata.row_group(group).column(column).num_values for group in range(metadata.num_row_groups))


@contextlib.contextmanager
def _open(part: _Part) -> Iterator[pq.ParquetFile]:
    """Open a part; damage that the block meets is named.

    Raises:
        LedgerError: The file is damaged.
        InputError: It is gone.
    """
    try:
        with pq.ParquetFile(part.path) as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{part.path} was merged into another file meanwhile; run the command again") from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the file system, not of the content
            raise
        raise LedgerError(f"{part.path} is damaged ({error}); restore the file from a copy") from error
