"""One worker of a torch.distributed run, for tests.

python worker_process.py RANK WORLD_SIZE PORT DATASET RUN [MICRO_BATCH_SIZE]
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.training import train
from cluster.world import World

if __name__ == "__main__":
    rank, world_size, port = (int(argument) for argument in sys.argv[1:4])
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    micro_batch_size = int(sys.argv[6]) if len(sys.argv) > 6 else None
    world = World(rank, world_size, torch.device("cpu"), micro_batch_size)
    train(Path(sys.argv[4]), Path(sys.argv[5]), world)
    dist.destroy_process_group()
