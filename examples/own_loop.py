"""The project's loader in a plain PyTorch loop, on any number of processes.

    torchrun --nproc-per-node 2 examples/own_loop.py DATASET

Each process takes its slice of the same global batch. Its loss is a sum, scaled so that the mean of the workers'
gradients, which DistributedDataParallel makes, is the gradient of the global batch, also if the slices are unequal. The
positions select the masks of dropout. On a GPU, give the loader `config=LoaderConfig(device="gpu",
device_id=LOCAL_RANK)`, and move the network there.
"""

import sys

import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from model.alexnet import build_model
from pipeline.dataset import Dataset
from pipeline.loader import TrainLoader

dist.init_process_group()
dataset = Dataset.open(sys.argv[1])
loader = TrainLoader(dataset, global_batch_size=64, rank=dist.get_rank(), world_size=dist.get_world_size())
network = DistributedDataParallel(build_model("alexnet_small", num_classes=dataset.num_classes))
optimizer = SGD(network.parameters(), lr=0.01, momentum=0.9)
for step, batch in zip(range(20), loader, strict=False):
    loss = cross_entropy(network(batch.images, batch.positions), batch.labels, reduction="sum")
    optimizer.zero_grad()
    (loss * dist.get_world_size() / 64).backward()
    optimizer.step()
    print(f"step {step}, rank {dist.get_rank()}: loss {loss / 64:.4f}, samples {batch.sample_ids.tolist()}")
dist.destroy_process_group()
