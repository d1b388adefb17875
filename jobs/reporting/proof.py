"""The verdict of a run's sample ledger, and of two ledgers beside each other."""

from dataclasses import dataclass
from typing import Literal

from cluster.run.ledger_parts import LedgerError
from cluster.run.ledger_proof import Consumption, compare, prove
from cluster.run.run_folder import RunFolder
from jobs.reporting.words import plural
from pipeline.command import InputError

Verdict = Literal["proven", "fault", "absent"]


@dataclass(frozen=True)
class Proof:
    """What a run's ledger proves.

    Attributes:
        verdict: `proven`; `fault`, if the ledger shows a fault or does not prove what it should; or `absent`.
        text: The verdict in words.
        consumption: What was consumed, if it is proven.
    """

    verdict: Verdict
    text: str
    consumption: Consumption | None = None


def prove_run(run: RunFolder) -> Proof:
    """Check a run's ledger."""
    try:
        consumption = prove(run)
    except LedgerError as error:
        return Proof("fault", str(error))
    except InputError as error:
        return Proof("absent", str(error))
    except OSError as error:
        return Proof("absent", f"{error.filename or 'the ledger'} can't be read: {error.strerror or error}")
    if not consumption.num_steps:
        return Proof("absent", f"{run.path} has no ledger; versions before the ledger wrote none")
    return Proof("proven", _in_words(consumption), consumption)


def _in_words(consumption: Consumption) -> str:
    num_epochs, num_begun = divmod(consumption.num_steps * consumption.global_batch_size, consumption.num_samples)
    if not num_epochs:
        return f"{num_begun:,} of the {plural(consumption.num_samples, 'sample')} were consumed, none twice."
    begun = f"; {plural(num_begun, 'sample')} of the next, none twice" if num_begun else ""
    return (
        f"Each of the {consumption.num_samples:,} samples was consumed exactly once in "
        f"{'the whole epoch' if num_epochs == 1 else f'each of {num_epochs:,} whole epochs'}{begun}."
    )


def prove_order(first: RunFolder, other: RunFolder) -> Proof:
    """Check that two runs consumed the same samples in the same order, over the length that both have."""
    try:
        num_positions = compare(first, other)
    except LedgerError as error:
        reason = _why_other(first, other)
        return Proof("absent", reason) if reason else Proof("fault", str(error))
    if not num_positions:
        return Proof("absent", "no step in common")
    return Proof("proven", f"the same samples at all {num_positions:,} common positions")


def _why_other(first: RunFolder, other: RunFolder) -> str:
    """Return what gives two runs orders of their own; empty if they should have the same."""
    if first.document["dataset"]["sha256"] != other.document["dataset"]["sha256"]:
        return "another dataset"
    if first.config.seed != other.config.seed:
        return "another seed"
    streams = (first.config.streams, other.config.streams)
    return "other streams" if streams[0] != streams[1] and any(one.num_streams for one in streams) else ""
