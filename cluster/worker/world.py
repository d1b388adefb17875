"""Where a worker stands among the others, whoever launched it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pipeline.command import InputError
from pipeline.online.batch import Decode, LoaderConfig, OnBadSample


def _never() -> bool:
    return False


@dataclass(frozen=True)
class World:
    """A worker's place. Alone (world size 1) there is no process group and nothing is exchanged.

    What the workers tell each other beside gradients travels between CPUs (gloo), also where gradients take NCCL:
    a launcher opens the process group with `process_group_backend`.

    Attributes:
        rank: Global, 0 <= rank < world_size.
        world_size: Number of workers.
        device: Of the model, e.g. `cpu` or `cuda:0`.
        wants_to_stop: Says whether this worker was asked to stop at a checkpoint; the launcher knows.
    """

    rank: int
    world_size: int
    device: torch.device
    wants_to_stop: Callable[[], bool] = _never

    @property
    def is_first(self) -> bool:
        """True on the one worker that writes."""
        return self.rank == 0

    @property
    def num_threads(self) -> int:
        """Threads that this worker may use: OMP_NUM_THREADS, else its share of the cores that the node's workers may.

        torchrun sets OMP_NUM_THREADS=1 for several workers where the user has set nothing, so 1 says nothing there. It
        may also bind each of them to cores of its own (`--numa-binding`).
        """
        num_workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_torchelastic_launched() else 1
        stated = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # may be a list, for nested regions
        if stated.isdigit() and int(stated) > (num_workers > 1):
            return int(stated)
        cores = os.sched_getaffinity(0)
        is_bound = num_workers > 1 and cores != os.sched_getaffinity(os.getppid())
        return len(cores) if is_bound else max(1, len(cores) // num_workers)

    def loader_config(
        self, decode: Decode | None, on_bad_sample: OnBadSample = "error", group_size: int = 1
    ) -> LoaderConfig:
        """Return how this worker makes its batches: on its device, with its threads, channels last.

        Raises:
            InputError: A GPU is to decode, and this worker has none.
        """
        if decode == "mixed" and self.device.type != "cuda":
            raise InputError("decode is `mixed`, but a worker has no GPU; train with --decode cpu")
        return LoaderConfig(
            device="gpu" if self.device.type == "cuda" else "cpu",
            decode=decode,
            device_id=self.device.index or 0,
            num_threads=self.num_threads,
            layout="NHWC",
            on_bad_sample=on_bad_sample,
            group_size=group_size,
        )

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all workers, on the CPU; all call it with a tensor of the same shape and dtype."""
        if self.world_size == 1:
            return values
        total = values.to("cpu", copy=True)
        dist.all_reduce(total)
        return total

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's value, by rank; all call it. What is pickled travels: no large tensors."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def first_says(self, answer: bool = False) -> bool:
        """Return the first worker's answer; every worker calls this, and waits for it."""
        return bool(self.sum(torch.tensor([int(answer and self.is_first)])).item())

    def agrees(self, value: int) -> bool:
        """Return whether all workers give the same value; every worker calls it, and gets the same answer."""
        total, squares = self.sum(torch.tensor([value, value**2])).tolist()
        return bool(total**2 == squares * self.world_size)  # equal only if all values are


def process_group_backend(device_type: str) -> str:
    """Return the backend of torch.distributed for workers on `cpu` or `cuda`."""
    return "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
