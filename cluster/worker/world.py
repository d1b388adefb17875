"""A worker's place among the others, whatever launched it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

from cluster.worker.options import WorkerOptions
from pipeline.command import InputError
from pipeline.online.batch import Decode, LoaderConfig, OnBadSample


def _never() -> bool:
    return False


@dataclass(frozen=True)
class World:
    """A worker's place. With a single worker there is no process group and nothing is exchanged.

    Apart from gradients, the workers exchange everything between CPUs (gloo), even if gradients use NCCL: a launcher
    opens the process group with `process_group_backend`.

    Attributes:
        rank: Global rank of this worker, 0 <= rank < world_size.
        world_size: Number of workers.
        device: Device of the model, e.g. `cpu` or `cuda:0`.
        wants_to_stop: Function from the launcher that returns whether this worker was asked to stop at a checkpoint.
    """

    rank: int
    world_size: int
    device: torch.device
    wants_to_stop: Callable[[], bool] = _never

    @property
    def is_first(self) -> bool:
        """Whether this is the first worker, the only one that writes."""
        return self.rank == 0

    @property
    def num_threads(self) -> int:
        """Number of threads for this worker: OMP_NUM_THREADS, or else its share of the cores of the node's workers.

        For several workers, torchrun sets OMP_NUM_THREADS=1 if the user has not set it, so a 1 is ignored there. It may
        also bind each worker to its own cores (`--numa-binding`).
        """
        num_workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_torchelastic_launched() else 1
        stated = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # may be a list, for nested parallel regions
        if stated.isdigit() and int(stated) > (num_workers > 1):
            return int(stated)
        cores = os.sched_getaffinity(0)
        is_bound = num_workers > 1 and cores != os.sched_getaffinity(os.getppid())
        return len(cores) if is_bound else max(1, len(cores) // num_workers)

    def loader_config(
        self,
        decode: Decode | Literal["auto"] | None,
        on_bad_sample: OnBadSample = "error",
        group_size: int = 1,
        options: WorkerOptions | None = None,
    ) -> LoaderConfig:
        """Return this worker's settings for making batches: its device, its threads, channels last.

        Raises:
            InputError: `decode` or the cache requires a GPU, and this worker has none.
        """
        cache = "none" if options is None else options.cache
        if decode == "mixed" and self.device.type != "cuda":
            raise InputError("decode is `mixed`, but a worker has no GPU; train with --decode cpu")
        if cache == "gpu" and self.device.type != "cuda":
            raise InputError("--cache is `gpu`, but a worker has no GPU; train with --cache host, or none")
        return LoaderConfig(
            device="gpu" if self.device.type == "cuda" else "cpu",
            decode=None if decode == "auto" else decode,
            device_id=self.device.index or 0,
            num_threads=self.num_threads,
            layout="NHWC",
            on_bad_sample=on_bad_sample,
            group_size=group_size,
            micro_batch_size=None if options is None else options.micro_batch_size,
            cache=cache,
        )

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all workers, on the CPU; all workers pass a tensor of the same shape and dtype."""
        if self.world_size == 1:
            return values
        total = values.to("cpu", copy=True)
        dist.all_reduce(total)
        return total

    def gather(self, value: Any) -> list[Any]:
        """Return all workers' values, by rank, on the first one, and nothing on the others; every worker calls this.

        Values are pickled, with tensors on the CPU.
        """
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size if self.is_first else []
        dist.gather_object(value, values if self.is_first else None)
        return values

    def first_says(self, answer: bool = False) -> bool:
        """Return the first worker's answer; every worker calls this and waits for the answer."""
        return bool(self.sum(torch.tensor([int(answer and self.is_first)])).item())

    def agrees(self, value: int) -> bool:
        """Return whether all workers pass the same value; every worker calls this and gets the same answer."""
        if self.world_size == 1:
            return True
        extremes = torch.tensor([value, -value])
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        return bool(extremes[0] == -extremes[1])


def process_group_backend(device_type: str) -> str:
    """Return the backend of torch.distributed for workers on `cpu` or `cuda`."""
    return "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
