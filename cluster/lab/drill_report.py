"""What a kill drill does and finds: the plan of its events, what each cost, and what is wrong afterwards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from cluster.run.run_log import Evaluated, Line, Resumed, Started, Stopped, only

if TYPE_CHECKING:
    import torch

Kind = Literal["worker", "node", "replaced-node", "raylet", "driver"]
Event = Literal["worker", "node", "join", "replaced-node", "raylet", "driver"]
_TOLERANCE = 1e-6
_WORDS: dict[Event, str] = {
    "worker": "worker killed",
    "node": "node lost",
    "join": "node joined",
    "replaced-node": "node lost, another joins",
    "raylet": "raylet killed, node joins",
    "driver": "driver killed",
}


@dataclass(frozen=True)
class PlannedEvent:
    """An event of a drill, its moment and its target.

    Attributes:
        event: Kind of the event.
        fraction: Time between the first checkpoint since workers were (re)started and the event, in checkpoint
            intervals, in [0, 1).
        choice: Place of the target among those that may be hit, in [0, 1).
    """

    event: Event
    fraction: float
    choice: float

    def choose(self, count: int) -> int:
        """Return an index below `count`."""
        return int(self.choice * count)


def plan(kinds: Sequence[Kind], seed: int) -> list[PlannedEvent]:
    """Return the events of a drill; the same seed gives the same.

    Args:
        kinds: Kinds of events, in their order. After `node`, which is not replaced at once, another node joins at a
            moment of its own.
        seed: Seed of the moments and the choices.
    """
    events: list[Event] = []
    for kind in kinds:
        events += ["node", "join"] if kind == "node" else [kind]
    draws = np.random.Generator(np.random.Philox(seed)).random((len(events), 2))
    return [PlannedEvent(event, *map(float, draw)) for event, draw in zip(events, draws, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Outage:
    """The cost of an event.

    Attributes:
        event: Kind of the event.
        step: Latest step that was logged before it.
        at_seconds: Time since the run began.
        noticed_seconds: Time until the launcher knew it; for the driver's death, until Ray said that its job had
            failed.
        first_step_seconds: Time until a step after it was logged.
        all_workers_seconds: Time until a step by all workers that the cluster could hold was logged.
        resumed_steps: Checkpoint of each restart.
        num_recomputed_steps: Number of steps that were logged, and undone by the restarts. Steps since the latest line
            are not known to anyone; a line is written at least each time a checkpoint is begun.
        num_workers: Number of workers before, and after each restart.
    """

    event: Event
    step: int
    at_seconds: float
    noticed_seconds: float
    first_step_seconds: float
    all_workers_seconds: float
    resumed_steps: tuple[int, ...]
    num_recomputed_steps: int
    num_workers: tuple[int, ...]


def format_outage(outage: Outage) -> str:
    """Return a line for a person who waits."""
    workers = " -> ".join(map(str, outage.num_workers))
    return (
        f"{outage.at_seconds:4.0f} s, step {outage.step}: {_WORDS[outage.event]}; noticed after "
        f"{outage.noticed_seconds:.1f} s, a step after {outage.first_step_seconds:.1f} s; workers {workers}"
    )


def format_table(outages: Sequence[Outage]) -> str:
    """Return the outages as a Markdown table."""
    rows = [
        [
            _WORDS[outage.event],
            f"step {outage.step}, {outage.at_seconds:.0f} s",
            f"{outage.noticed_seconds:.1f} s",
            f"{outage.first_step_seconds:.1f} s",
            f"{outage.all_workers_seconds:.1f} s",
            ", ".join(map(str, outage.resumed_steps)),
            str(outage.num_recomputed_steps),
            " -> ".join(map(str, outage.num_workers)),
        ]
        for outage in outages
    ]
    head = ["event", "at", "noticed after", "first step after", "all workers after", "resumed from", "recomputed"]
    table = [[*head, "workers"], *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def judge_restarts(lines: Sequence[Line], checkpoint_interval: int) -> list[str]:
    """Return what is wrong with a run's restarts, a line each.

    Args:
        lines: Of the run's `metrics.jsonl`.
        checkpoint_interval: Most steps that a restart may undo; checkpoints are begun twice as often.
    """
    # Where checkpoints were written: each interval, at each evaluation's best, and where the workers were stopped.
    stops = {line.step for line in lines if isinstance(line, Stopped | Evaluated)}
    starts = [line.step for line in only(Started, lines)]
    undone = [(line.step, line.num_rolled_back) for line in only(Resumed, lines)]
    findings = []
    if not starts or starts[0] != 0:
        findings.append("the run did not begin at step 0")
    findings += [
        f"restart {i} began at step {step}, where no checkpoint was written"
        for i, step in enumerate(starts[1:], 1)
        if not step or (step % max(1, checkpoint_interval // 2) and step not in stops)
    ]
    findings += [
        f"the resume from step {step} undid {num_steps} steps, more than the interval of {checkpoint_interval}"
        for step, num_steps in undone
        if num_steps > checkpoint_interval
    ]
    return findings


def weight_difference(reference: Mapping[str, "torch.Tensor"], weights: Mapping[str, "torch.Tensor"]) -> float:
    """Return the largest difference of two models, each tensor's in relation to its largest weight.

    Raises:
        ValueError: They have other tensors.
    """
    if {name: value.shape for name, value in reference.items()} != {
        name: value.shape for name, value in weights.items()
    }:
        raise ValueError("the two models have other tensors")
    differences = [0.0]
    for name, expected in reference.items():
        difference = (weights[name].double() - expected.double()).abs().max().item()
        scale = expected.double().abs().max().item()
        differences.append(difference / scale if scale else difference)
    return float(np.max(differences))  # NaN where one of them is


def judge_weights(difference: float) -> list[str]:
    """Return what is wrong with the final weights' difference from the reference's."""
    if difference <= _TOLERANCE:  # not so where it is NaN
        return []
    return [f"the final weights differ from the undisturbed run's by {difference:.1e}, more than {_TOLERANCE:.0e}"]
