"""The seam of the gradients: another exchange than all-reduce fits it, and gives the same training."""

import contextlib
import dataclasses

import pytest
import torch
import torch.distributed as dist
from by_hand import ByHand
from runs import ALONE, CONFIG, entries, losses
from torch import nn
from worker_process import run_workers

from cluster.exchange.allreduce import AllReduce
from cluster.run.run_folder import RunFolder
from cluster.worker.training import Trainer
from pipeline.online.order import RankShare

UNEVEN = dataclasses.replace(CONFIG, global_batch_size=13, num_epochs=2)


def _weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return run.checkpoints.load_latest()["model"]


@pytest.mark.slow
def test_another_exchange_trains_the_same_run_keeps_its_state_and_resumes(raw_dataset, tmp_path):
    by_allreduce, by_hand = (RunFolder.create(tmp_path / name, UNEVEN, raw_dataset) for name in ("a", "b"))
    run_workers(2, "train", raw_dataset.path, by_allreduce.path, 3)
    run_workers(2, "train-stopped-by-hand", raw_dataset.path, by_hand.path, 3)
    assert by_hand.result is None and 0 < by_hand.checkpoints.latest_step() < by_allreduce.result["num_steps"]
    run_workers(2, "train-by-hand", raw_dataset.path, by_hand.path, 3)
    num_steps = by_allreduce.result["num_steps"]
    assert by_hand.result["num_steps"] == num_steps
    assert losses(by_hand) == pytest.approx(losses(by_allreduce), rel=1e-12)
    for name, expected in _weights(by_allreduce).items():
        torch.testing.assert_close(_weights(by_hand)[name], expected, rtol=1e-10, atol=1e-12)
    kept = by_hand.checkpoints.load_latest()["exchange"]
    assert kept == [{"rank": rank, "num_exchanges": num_steps} for rank in range(2)]
    assert "exchange" not in by_allreduce.checkpoints.load_latest()


def test_a_state_of_another_number_of_workers_is_begun_anew_and_that_is_told(raw_dataset, tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, raw_dataset)
    for make_exchange in (AllReduce, ByHand):
        trainer = Trainer(raw_dataset, run, ALONE, make_exchange=make_exchange)
        trainer.make_step()
        trainer.save_checkpoint()
        trainer.close()
    (warning,) = entries(run, "warning")
    assert warning["message"].startswith("the exchange of gradients begins anew")
    assert run.checkpoints.load_latest()["exchange"] == [{"rank": 0, "num_exchanges": 1}]


@pytest.mark.slow  # 12 s
def test_a_run_may_change_its_exchange_at_a_resume(raw_dataset, tmp_path):
    run, alone = (RunFolder.create(tmp_path / name, UNEVEN, raw_dataset) for name in ("run", "alone"))
    run_workers(2, "train-stopped", raw_dataset.path, run.path, "3", "hybrid")
    run_workers(2, "train", raw_dataset.path, run.path, "", "factors")
    with contextlib.closing(Trainer(raw_dataset, alone, ALONE)) as trainer:
        trainer.run()
    first, second = entries(run, "start")
    assert (first["exchange"], second["exchange"]) == ("hybrid", "factors") and second["step"] > 0
    for name, expected in _weights(alone).items():
        torch.testing.assert_close(_weights(run)[name], expected, rtol=1e-10, atol=1e-12)


def test_buffers_are_not_exchanged_in_a_forward_pass():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = AllReduce(RankShare(2, 0, 2)).wrap(nn.BatchNorm1d(3))
        assert not wrapped.will_sync_module_buffers()
    finally:
        dist.destroy_process_group()
