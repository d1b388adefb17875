"""Check of a process group with gloo and NCCL."""

import warnings

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu.timing import synchronize
from benchmarks.gpu.trial import Trial
from cluster.worker.world import process_group_backend
from model.alexnet import build_model


def check_ddp(trial: Trial) -> None:
    """Open a process group with one member and run DistributedDataParallel in it; note the warnings."""
    device = trial.device
    store = dist.FileStore(str(trial.scratch / "store"), 1)
    dist.init_process_group(process_group_backend(device.type), store=store, rank=0, world_size=1)
    try:
        model = build_model("alexnet_owt", num_classes=1000).to(device).to(memory_format=torch.channels_last)
        parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
        images = torch.randn(2 if trial.is_dry else 64, 3, 224, 224, device=device)
        positions = torch.arange(len(images), device=device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                parallel(images.contiguous(memory_format=torch.channels_last), positions).sum().backward()
        total = torch.ones(1)
        dist.all_reduce(total)  # between CPUs, like the workers' counts
        synchronize()
    finally:
        dist.destroy_process_group()
    trial.note("sum over gloo", total.item())
    trial.note("parameters with a gradient", sum(parameter.grad is not None for parameter in model.parameters()))
    trial.note("warnings", sorted({str(warning.message)[:200] for warning in caught}))
