"""What ends with the process group."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from worker_group import run_group

from cluster.exchange.bf16 import Bf16
from cluster.exchange.collectives import leave_process_group
from pipeline.online.order import RankShare


def _gloo_threads() -> list[str]:
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]


def exchange_and_leave() -> None:
    model = Bf16(RankShare(2, dist.get_rank(), 2)).wrap(torch.nn.Linear(8, 4))
    model.itself = model  # as hooks make such cycles
    model(torch.ones(1, 8)).sum().backward()
    before = _gloo_threads()
    del model
    leave_process_group()
    sys.stdout.write(f"{len(before) > 0} {_gloo_threads()}")


@pytest.mark.slow  # 6 s
def test_gloos_threads_end_before_python_does():
    assert run_group(2, __file__, "exchange_and_leave") == ["True []"] * 2
