"""Proofs from a run's ledger: which samples the run consumed, and that two runs consumed the same ones.

The ledger (`cluster/run/ledger_files.py`) has the ids of all samples that entered the loss, noted at that moment.
"""

import collections
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cluster.run.ledger_parts import LedgerError
from cluster.run.run_folder import RunFolder
from pipeline.command import InputError


@dataclass(frozen=True)
class Consumption:
    """Samples that a run is proved to have consumed.

    Attributes:
        num_steps: Number of steps that count.
        num_rolled_back: Number of steps undone by resumes, which do not count.
        global_batch_size: Samples per step.
        num_samples: Number of samples in the training set.
        steps_by_world_size: Number of workers -> number of steps they made, in ascending order.
        sha256: SHA-256 of the ids of all positions, as little-endian int64; the same for any global batch size.
    """

    num_steps: int
    num_rolled_back: int
    global_batch_size: int
    num_samples: int
    steps_by_world_size: dict[int, int]
    sha256: str

    def __str__(self) -> str:
        """Return three lines for a person."""
        consumed = self.num_steps * self.global_batch_size
        num_epochs, num_begun = divmod(consumed, self.num_samples)
        workers = ", ".join(
            f"{steps:,} on {_count(size, 'worker')}" for size, steps in self.steps_by_world_size.items()
        )
        whole = f"{_count(num_epochs, 'epoch')}, each of the {self.num_samples:,} samples exactly once in each"
        return (
            f"{_count(self.num_steps, 'step')} of {self.global_batch_size:,} samples without gap: {workers}; "
            f"{self.num_rolled_back:,} more were rolled back\n"
            f"  {whole if num_epochs else 'no whole epoch'}; {num_begun:,} samples of the next, none twice\n"
            f"  sha256 of the {consumed:,} sample ids: {self.sha256}"
        )


def prove(run: RunFolder) -> Consumption:
    """Prove that a run has consumed each sample exactly once per epoch so far.

    Raises:
        LedgerError: It has not, or its ledger does not prove it.
        InputError: The run has not begun.
    """
    num_saved = run.checkpoints.latest_step()  # read before the ledger, to which a run in training still appends
    num_finished = run.result["num_steps"] if run.result else None
    config, num_steps, workers = run.config, 0, collections.Counter[int]()
    consumed_at = np.full(run.num_samples, -1, dtype=np.int64)
    digest = hashlib.sha256()
    for steps in run.ledger.read():
        size = steps.sample_ids_SG.shape[1]
        if size != config.global_batch_size:
            raise LedgerError(
                f"{run.path}: the ledger's steps have {size} samples, the recipe's {config.global_batch_size}; the "
                "ledger belongs to another run: restore its files from a copy"
            )
        _consume(run, steps.sample_ids_SG.ravel(), num_steps * size, consumed_at)
        digest.update(np.ascontiguousarray(steps.sample_ids_SG, dtype="<i8").data)
        workers.update(steps.world_sizes_S.tolist())
        num_steps += len(steps.sample_ids_SG)
    if not (num_steps or num_saved or num_finished):
        raise InputError(f"{run.path} has not logged a step yet; train it first: jobs/train.py")
    if num_steps < num_saved or (num_finished is not None and num_steps != num_finished):
        said = (
            f"the newest checkpoint was made at step {num_saved}"
            if num_finished is None
            else f"the run has {num_finished} steps"
        )
        raise LedgerError(f"{run.path}: the ledger ends at step {num_steps}, but {said}; restore its files from a copy")
    return Consumption(
        num_steps=num_steps,
        num_rolled_back=run.ledger.num_rolled_back,
        global_batch_size=config.global_batch_size,
        num_samples=run.num_samples,
        steps_by_world_size=dict(sorted(workers.items())),
        sha256=digest.hexdigest(),
    )


def compare(first: RunFolder, second: RunFolder) -> int:
    """Prove that two runs consumed the same sample at each position that both have reached.

    Returns:
        Number of these positions.

    Raises:
        LedgerError: The runs differ; the message names the first difference.
    """
    if first.document["dataset"]["sha256"] != second.document["dataset"]["sha256"]:
        raise LedgerError(
            f"{first.path} and {second.path} were trained on different datasets ({first.document['dataset']['path']}, "
            f"{second.document['dataset']['path']}): equal ids would not be equal samples"
        )
    position, streams = 0, [_stream(run) for run in (first, second)]
    rest: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * 2
    while True:
        rest = [ids if len(ids) else next(stream, ids) for ids, stream in zip(rest, streams, strict=True)]
        num_common = min(map(len, rest))
        if not num_common:
            return position
        differing = np.flatnonzero(rest[0][:num_common] != rest[1][:num_common])
        if len(differing):
            place = int(differing[0])
            consumed = " and ".join(
                f"sample {ids[place]} in step {(position + place) // run.config.global_batch_size + 1} of {run.path}"
                for ids, run in zip(rest, (first, second), strict=True)
            )
            raise LedgerError(f"the runs differ from position {position + place} on: {consumed}")
        position += num_common
        rest = [ids[num_common:] for ids in rest]


def _stream(run: RunFolder) -> Iterator[np.ndarray]:
    """Yield a run's sample ids in the order of the positions, many at a time."""
    for steps in run.ledger.read():
        yield steps.sample_ids_SG.ravel()


def _consume(run: RunFolder, ids_N: np.ndarray, first_position: int, consumed_at: np.ndarray) -> None:
    """Note the positions at which samples were consumed.

    Args:
        run: The run that consumed them.
        ids_N: Sample ids of consecutive positions.
        first_position: Position of the first id.
        consumed_at: Position at which each sample was last consumed, -1 if never; updated.

    Raises:
        LedgerError: A sample was consumed twice in one epoch, or does not exist.
    """
    num_samples, size = len(consumed_at), run.config.global_batch_size
    unknown = np.flatnonzero((ids_N < 0) | (ids_N >= num_samples))
    if len(unknown):
        step = (first_position + int(unknown[0])) // size + 1
        raise LedgerError(
            f"{run.path}: step {step} consumed sample {ids_N[unknown[0]]}, "
            f"which the training set of {num_samples:,} lacks"
        )
    positions_N = np.arange(first_position, first_position + len(ids_N))
    epoch_ends = np.flatnonzero(np.diff(positions_N // num_samples)) + 1
    for ids, positions in zip(np.split(ids_N, epoch_ends), np.split(positions_N, epoch_ends), strict=True):
        twice = _consume_in_epoch(ids, positions, consumed_at)
        if twice is not None:
            sample, steps = int(ids[twice[0]]), [position // size + 1 for position in twice[1]]
            replaced = "; its recipe replaces samples that have changed" * (run.config.on_bad_sample != "error")
            raise LedgerError(
                f"{run.path}: epoch {positions[0] // num_samples} consumed sample {sample} twice, in steps {steps[0]} "
                f"and {steps[1]}{replaced}"
            )


def _consume_in_epoch(
    ids_N: np.ndarray, positions_N: np.ndarray, consumed_at: np.ndarray
) -> tuple[int, tuple[int, int]] | None:
    """Note positions of one epoch; return the index of the first id consumed twice, and both positions, or None."""
    epoch_begin = positions_N[0] // len(consumed_at) * len(consumed_at)
    before_N = consumed_at[ids_N]
    consumed_at[ids_N] = positions_N  # if a sample occurs twice, its last position remains
    repeated = np.flatnonzero((before_N >= epoch_begin) | (consumed_at[ids_N] != positions_N))
    if not len(repeated):
        return None
    place = int(repeated[0])
    places = [before_N[place], *positions_N[ids_N == ids_N[place]]]
    first, second = [int(position) for position in places if position >= epoch_begin][:2]
    return place, (first, second)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
