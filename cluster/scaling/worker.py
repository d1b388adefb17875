"""One worker of a launch: prepares each cell, warms up, and measures its steps, together with the others.

As a process on a host of the lab, `python -m cluster.scaling.worker JSON` takes orders from standard input, one per
line, which the first worker hands on to the others; it answers each on standard output. So whoever gives the orders can
shape links and limit CPUs in between.
"""

import ctypes
import dataclasses
import gc
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import IO, Any

import torch
import torch.distributed as dist

from cluster.exchange.collectives import leave_process_group
from cluster.lab.scaling_table import NO_EXCHANGE, Cell
from cluster.launch.node_checks import code_digest
from cluster.scaling.cells import num_warm_up_steps
from cluster.scaling.folder import Identity
from cluster.scaling.steps import Training
from cluster.scaling.watch import Watch
from cluster.worker.world import World
from pipeline.command import InputError, run_command
from pipeline.system.processor import this_processor

_CLEAR_PEAK = "5"  # what /proc/PID/clear_refs takes to forget the peak of the resident memory
_PARTS = ("step", "data_wait", "forward", "backward", "blocked", "update")  # of a step, as `Watch` names them


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all cells of an experiment have in common.

    Attributes:
        num_steps: Number of timed steps.
        num_warm_up_steps: Number of steps before, at least 1: in the first, libraries choose their kernels, and after
            it, DistributedDataParallel orders its buckets anew. See `cells.num_warm_up_steps`.
        seed: Seed of weights, order and augmentation.
        data: Dataset folders by their encoding.
    """

    num_steps: int
    num_warm_up_steps: int
    seed: int = 0
    data: Mapping[str, str] = field(default_factory=dict)


class CellWorker:
    """Measures cells; every worker makes the same calls in the same order.

    Args:
        world: Place of this worker.
        settings: What all cells have in common.
    """

    def __init__(self, world: World, settings: Settings) -> None:
        torch.set_num_threads(world.num_threads)
        self._world, self._settings = world, settings
        self._training: Training | None = None
        self._counts_bytes = self._can_count()

    def identity(self) -> Identity:
        """Return the code and the kind of machine of all workers.

        Raises:
            InputError: They differ.
        """
        found = set(_gathered(self._world, Identity(code_digest(), machine_kind(self._world.device))))
        if len(found) > 1:
            first, second = sorted(found, key=lambda identity: (identity.machine, identity.code))[:2]
            raise InputError(
                f"workers of one launch were measured {second.difference(first)}; let all nodes that may get a worker "
                "be of one kind, with one version of this project"
            )
        return found.pop()

    def _can_count(self) -> bool:
        """Return whether each worker has a network of its own, with one interface that its traffic passes.

        Gradients on GPUs are sent by NCCL, which may use other ways, that the kernel does not count.
        """
        if self._world.world_size > 1 and self._world.device.type == "cuda":
            return False
        networks = _gathered(self._world, _network())
        return len(set(networks)) == len(networks) and max(_gathered(self._world, len(_sent_by_interface()))) <= 1

    def prepare(self, cell: Cell) -> dict[str, Any]:
        """Build what trains a cell, and make a first step."""
        self.close()
        data = {name: Path(path) for name, path in self._settings.data.items()}
        num_steps = self._num_warm_up_steps(cell) + self._settings.num_steps
        self._training = Training(cell, self._world, num_steps, data, self._settings.seed)
        self._training.step()
        return {}

    def warm_up(self) -> dict[str, Any]:
        """Make the other steps of the warm-up."""
        assert self._training is not None
        for _ in range(self._num_warm_up_steps(self._training.cell) - 1):
            self._training.step()
        return {}

    def measure(self) -> dict[str, Any]:
        """Make the timed steps, and return the measured fields of a row."""
        assert self._training is not None
        num_steps, device = self._settings.num_steps, self._world.device
        began, sent = time.process_time(), _sent_bytes()
        watches = [self._training.step() for _ in range(num_steps)]
        if self._world.world_size > 1:
            dist.barrier()  # then all that was sent has arrived, and was counted
        exchanges, blocks_thread = self._training.cell.exchange != NO_EXCHANGE, device.type == "cpu"
        own = {
            "steps": [_seconds(watch, exchanges and blocks_thread) for watch in watches],
            "sent_bytes": (_sent_bytes() - sent) / num_steps,
            "cpu_seconds": (time.process_time() - began) / num_steps,
            "peak_memory_bytes": _peak_memory_bytes(device),
        }
        return self._summary(_gathered(self._world, own), sees_waits=blocks_thread or not exchanges)

    def close(self) -> None:
        """Give up the cell, and its memory."""
        if self._training is not None:
            self._training.close()
        self._training = None
        _free_memory(self._world.device)

    def _num_warm_up_steps(self, cell: Cell) -> int:
        return num_warm_up_steps(cell, self._settings.num_warm_up_steps)

    def _summary(self, of_workers: list[dict[str, Any]], sees_waits: bool) -> dict[str, Any]:
        """Return the fields of a row, from all workers' values."""
        by_step = list(zip(*(worker["steps"] for worker in of_workers), strict=True))
        # All parts of a step are those of the worker that the others wait for: so they are one step's.
        steps = [max(of_all, key=_own_seconds) for of_all in by_step]
        found: dict[str, Any] = {f"{part}_seconds": median(step[part] for step in steps) for part in _PARTS}
        whole = [step["step"] for step in steps]
        found["step_seconds_p90"] = quantiles(whole, n=10, method="inclusive")[-1] if len(whole) > 1 else whole[0]
        found["mean_step_seconds"] = median(fmean(map(_own_seconds, of_all)) for of_all in by_step)
        if not sees_waits:
            found["blocked_seconds"] = found["mean_step_seconds"] = None
        found["sent_bytes"] = fmean(worker["sent_bytes"] for worker in of_workers) if self._counts_bytes else None
        found["cpu_seconds"] = sum(worker["cpu_seconds"] for worker in of_workers)
        found["peak_memory_bytes"] = max(worker["peak_memory_bytes"] for worker in of_workers)
        return found


def machine_kind(device: torch.device) -> str:
    """Return what kind of machine a worker runs on: its card, or the processor and the number of its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{len(os.sched_getaffinity(0))} cores of {this_processor()}"


def serve(worker: CellWorker, world: World, orders: IO[str], answers: IO[str]) -> None:
    """Follow the orders that the first worker reads, until they end.

    Args:
        worker: Does what is ordered.
        world: Place of this worker.
        orders: Lines of JSON, `{"order": "prepare", "cell": {...}}` and so on, for the first worker.
        answers: Where the first worker writes a line for each.
    """
    _answer(world, answers, dataclasses.asdict(worker.identity()))
    while (order := _handed_on(world, orders)) is not None:
        calls: dict[str, Callable[[], dict[str, Any]]] = {
            "prepare": lambda: worker.prepare(Cell(**order["cell"])),  # called at once
            "warm_up": worker.warm_up,
            "measure": worker.measure,
        }
        _answer(world, answers, calls[order["order"]]())
    worker.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve as a process on a host of the lab."""
    settings = Settings(**json.loads(sys.argv[1]))
    dist.init_process_group("gloo")
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    serve(CellWorker(world, settings), world, sys.stdin, sys.stdout)
    dist.barrier()
    leave_process_group()
    return 0


def _handed_on(world: World, orders: IO[str]) -> dict[str, Any] | None:
    """Return the next order, which the first worker reads and hands on; None: there are no more."""
    line = orders.readline() if world.is_first else ""
    lines = [line]
    dist.broadcast_object_list(lines, src=0)
    return dict(json.loads(lines[0])) if lines[0] else None


def _answer(world: World, answers: IO[str], answer: dict[str, Any]) -> None:
    """Let the first worker write an answer, once all have done what was ordered."""
    dist.barrier()
    if world.is_first:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _gathered(world: World, value: Any) -> list[Any]:
    """Return all workers' values, by rank, on each."""
    if world.world_size == 1:
        return [value]
    values: list[Any] = [None] * world.world_size
    dist.all_gather_object(values, value)
    return values


def _seconds(watch: Watch, sees_waits: bool) -> dict[str, float]:
    """Return the parts of a step; it is held up by nothing where there is no exchange, or none can be seen."""
    seconds = {part: getattr(watch, f"{part}_seconds") for part in _PARTS}
    return seconds if sees_waits else seconds | {"blocked": 0.0}


def _own_seconds(step: dict[str, float]) -> float:
    """Return the time of a worker's own step, without its waits for the exchange."""
    return step["step"] - step["blocked"]


def _network() -> str:
    """Return what tells this worker's network from another's: machine and namespace."""
    return f"{socket.gethostname()} {os.stat('/proc/self/ns/net').st_ino}"


def _sent_by_interface() -> dict[str, int]:
    """Return the bytes that each interface but loopback has sent, of those that sent anything."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    sent = {name.strip(): int(values.split()[8]) for name, _, values in (line.partition(":") for line in lines)}
    return {name: num_bytes for name, num_bytes in sent.items() if name != "lo" and num_bytes}


def _sent_bytes() -> int:
    return sum(_sent_by_interface().values())


def _free_memory(device: torch.device) -> None:
    """Give memory back to the system, and forget the peak so far, so that the next cell's is its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if platform.libc_ver()[0] == "glibc":  # told to keep what is free, it gives it back only when asked
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    except OSError:
        pass  # then the peak is that of all cells so far


def _peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory since `_free_memory`: of a GPU what tensors took, else what the process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    run_command(main)
