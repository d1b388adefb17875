"""The sample ledger of a run: which samples each step consumed, even across interruptions and resumes.

    RUN/ledger/steps-00000001-00008192.parquet           a part: one row per step; steps 1 to 8192
    RUN/ledger/rolling_back-00000091-00000120.parquet    a roll-back in progress: its steps no longer count
    RUN/ledger/rolled_back/0001-steps-00000091-00000120.parquet    steps undone by a resume, in the order of the resumes

A part's name gives its range of steps; `ledger_parts.py` defines its format. One process writes, under the lock of the
run's log. Every change is one atomic file. Two rules resolve what a kill leaves behind: a part whose range lies within
another's is a leftover of a merge; and while `rolling_back` exists, its steps do not belong to the ledger, whether or
not the parts have been cut.

Step k, counted from 1, consumed the positions [(k - 1) G, k G) of the endless stream, G the global batch size.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.run.ledger_parts import (
    LedgerError,
    LedgerSteps,
    Part,
    load_part,
    num_ids_of,
    part_metadata,
    part_name,
    parts_in,
    steps_table,
    verified_steps,
    write_part,
)
from pipeline.system.files import flush_folder, remove_temporary_files

_IDS_OF_A_CLOSED_PART = 2**20  # about 2.7 MB: the most that a call of `consolidate` rewrites, besides the newest steps


class Ledger:
    """The sample ledger of one run.

    Args:
        folder: RUN/ledger; created when the first step is appended.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._rolled_back = folder, folder / "rolled_back"

    def append(self, first_step: int, sample_ids_SG: np.ndarray, world_size: int) -> None:
        """Record consecutive steps; they are on disk when this returns.

        Args:
            first_step: Number of the first step, counted from 1.
            sample_ids_SG: Ids of the samples that entered the loss, integers, in the order of the positions.
            world_size: Number of workers that made the steps.

        Raises:
            ValueError: There is no step, or the ledger already has one of them.
        """
        if first_step < 1 or not sample_ids_SG.size:
            raise ValueError(f"first_step={first_step}, ids of shape {sample_ids_SG.shape}: must be at least one step")
        self._finish_roll_back()
        parts = self._parts()
        if parts and first_step <= parts[-1].last:
            raise ValueError(f"first_step={first_step}: the ledger has steps up to {parts[-1].last}; roll back first")
        last_step = first_step + len(sample_ids_SG) - 1
        write_part(
            self._folder / part_name("steps", first_step, last_step),
            [steps_table(first_step, sample_ids_SG, world_size)],
        )

    def consolidate(self) -> None:
        """Merge the newest parts into a growing one; a part that is large enough is closed and never rewritten."""
        self._finish_roll_back()
        parts = self._parts()
        for leftover in set(parts_in(self._folder, "steps")) - set(parts):
            leftover.path.unlink()
        for group in _groups_to_merge(parts):
            self._merge(group)

    def roll_back(self, step: int) -> int:
        """Move all steps after `step` to `rolled_back/`, and finish a roll-back that was killed.

        Call this whenever a run starts or resumes, before anything is appended.

        Args:
            step: Step of the checkpoint that the run resumes from; 0 if there is none.

        Returns:
            Number of steps moved.

        Raises:
            LedgerError: A part can't be read.
        """
        remove_temporary_files(self._folder)
        num_moved = self._finish_roll_back()
        later = [part for part in self._parts() if part.last > step]
        if later:
            first = max(later[0].first, step + 1)
            tables = (load_part(part).slice(max(0, first - part.first)) for part in later)
            write_part(self._folder / part_name("rolling_back", first, later[-1].last), tables)
            num_moved += self._finish_roll_back()
        return num_moved

    @property
    def num_rolled_back(self) -> int:
        """Number of steps that resumes have undone."""
        moved = parts_in(self._folder, "rolling_back") + parts_in(self._rolled_back, r"\d+-steps")
        return sum(part_metadata(part).num_rows for part in moved)

    def read(self) -> Iterator[LedgerSteps]:
        """Yield the steps from 1 to the last one that counts, part by part, each checked against its hash.

        Raises:
            LedgerError: Parts overlap or leave a gap, a file is damaged or was not written by this program, or the ids
                of a step have another hash or another number; the message names the file or the step.
            InputError: A part was merged into another one during the reading.
        """
        next_step, global_batch_size = 1, None
        for part in self._parts():
            if part.first != next_step:
                raise LedgerError(
                    f"{self._folder} lacks steps {next_step} to {part.first - 1}; restore their files from a copy"
                )
            steps = verified_steps(part)
            global_batch_size = global_batch_size or steps.sample_ids_SG.shape[1]
            if steps.sample_ids_SG.shape[1] != global_batch_size:
                raise LedgerError(
                    f"{part.path}: its steps have {steps.sample_ids_SG.shape[1]} samples, those before have "
                    f"{global_batch_size}; it belongs to another run: restore the file from a copy"
                )
            yield steps
            next_step = part.last + 1

    def _parts(self) -> list[Part]:
        """Return the parts that count, in order, each cut to the steps that count."""
        end = min((part.first - 1 for part in parts_in(self._folder, "rolling_back")), default=None)
        kept: list[Part] = []
        for whole in sorted(parts_in(self._folder, "steps"), key=lambda part: (part.first, -part.last)):
            part = whole if end is None else dataclasses.replace(whole, last=min(whole.last, end))
            if part.last < part.first or (kept and part.last <= kept[-1].last):
                continue
            if kept and part.first <= kept[-1].last:
                raise LedgerError(
                    f"{part.path} overlaps {kept[-1].path.name}; one of them belongs to another run: remove it"
                )
            kept.append(part)
        return kept

    def _merge(self, group: Sequence[Part]) -> None:
        """Replace consecutive parts by a single one."""
        if len(group) < 2:
            return
        merged = pa.concat_tables([load_part(part) for part in group]).combine_chunks()
        write_part(self._folder / part_name("steps", group[0].first, group[-1].last), [merged])
        for part in group:
            part.path.unlink()

    def _finish_roll_back(self) -> int:
        """Remove the steps in `rolling_back` from the parts, then file it away; return its number of steps."""
        num_moved = 0
        for rolling in parts_in(self._folder, "rolling_back"):
            num_moved += part_metadata(rolling).num_rows
            if parts := self._parts():
                last = parts[-1]
                if last.last < last.last_in_file:
                    write_part(self._folder / part_name("steps", last.first, last.last), [load_part(last)])
            for part in parts_in(self._folder, "steps"):
                if part.last >= rolling.first:
                    part.path.unlink()
            flush_folder(self._folder)  # the removal must be permanent before the roll-back is filed away
            self._rolled_back.mkdir(exist_ok=True)
            numbers = [int(part.path.name.split("-")[0]) for part in parts_in(self._rolled_back, r"\d+-steps")]
            name = part_name(f"{max(numbers, default=0) + 1:04d}-steps", rolling.first, rolling.last)
            os.replace(rolling.path, self._rolled_back / name)
            flush_folder(self._rolled_back)
            flush_folder(self._folder)
        return num_moved


def _groups_to_merge(parts: Sequence[Part]) -> list[list[Part]]:
    """Return the parts after the last closed one, in groups that each become a single part.

    A group ends when it is large enough to be closed, and at a gap, which readers will report.
    """
    sizes = ((part, num_ids_of(part)) for part in reversed(parts))
    open_parts = list(itertools.takewhile(lambda size: size[1] < _IDS_OF_A_CLOSED_PART, sizes))
    groups: list[list[Part]] = [[]]
    num_ids = 0
    for part, num_more in reversed(open_parts):
        if groups[-1] and (num_ids >= _IDS_OF_A_CLOSED_PART or part.first != groups[-1][-1].last + 1):
            groups.append([])
            num_ids = 0
        groups[-1].append(part)
        num_ids += num_more
    return groups
