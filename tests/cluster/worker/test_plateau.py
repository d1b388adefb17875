"""The schedule `plateau` in the worker loop: reductions, the early end, resuming, the same decisions on every rank."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import ALONE, CONFIG, entries, losses
from worker_process import run_workers

from cluster.run.fit import check_fits, check_images_fit
from cluster.run.run_folder import RunFolder
from cluster.worker.training import Trainer
from model.optim_config import OptimizerConfig
from pipeline.command import InputError

# An evaluation after each of at most 63 steps of 13; on noise the error soon falls no more.
PLATEAU = dataclasses.replace(
    CONFIG,
    optimizer=OptimizerConfig(
        name="sgd_paper", learning_rate=0.01, schedule="plateau", patience=2, max_reductions=1, step_factor=0.5
    ),
    global_batch_size=13,
    num_epochs=20,
    evaluations_per_epoch=3,
    stuck_after_epochs=100,
)


@pytest.fixture(scope="module")
def straight(raw_dataset, tmp_path_factory) -> RunFolder:
    run = RunFolder.create(tmp_path_factory.mktemp("run") / "straight", PLATEAU, raw_dataset)
    trainer = Trainer(raw_dataset, run, ALONE)
    trainer.run()
    trainer.close()
    return run


def _decisions(run: RunFolder) -> list[tuple[int, int, bool]]:
    return [(entry["step"], entry["num_reductions"], entry["is_over"]) for entry in entries(run, "plateau")]


def test_a_stall_reduces_the_rate_and_the_next_ends_the_run(straight):
    decisions = _decisions(straight)
    assert [decision[1:] for decision in decisions] == [(1, False), (1, True)]
    last = decisions[-1][0]
    assert last < PLATEAU.total_steps(41)
    assert straight.result["num_steps"] == len(losses(straight)) == last
    assert straight.checkpoints.load_latest()["step"] == last
    errors = [1 - entry["top1"] for entry in entries(straight, "evaluation")]
    before = 0
    for step, *_ in decisions:
        assert step - before >= 2
        assert min(errors[step - 2 : step]) >= min(errors[: step - 2])
        before = step
    rates = {entry["step"]: entry["learning_rate"] for entry in entries(straight, "step")}
    assert rates == {step: 0.01 * 0.5 ** sum(reduced_at < step for reduced_at, *_ in decisions[:1]) for step in rates}


def test_a_run_resumed_between_two_stalls_decides_the_same(straight, raw_dataset, tmp_path):
    run = RunFolder.create(tmp_path / "resumed", PLATEAU, raw_dataset)
    interrupted = Trainer(raw_dataset, run, ALONE)
    cut = _decisions(straight)[0][0] + 1
    for _ in range(cut):
        interrupted.make_step()
        interrupted._evaluate()
    interrupted.save_checkpoint()
    interrupted.close()
    resumed = Trainer(raw_dataset, run, ALONE)
    assert resumed.progress.step == cut and resumed.progress.plateau.num_reductions == 1
    resumed.run()
    resumed.close()
    assert _decisions(run) == _decisions(straight)
    left, right = straight.checkpoints.load_latest(), run.checkpoints.load_latest()
    assert left["plateau"] == right["plateau"]
    for name, weights in left["model"].items():
        assert torch.equal(weights, right["model"][name]), name


def test_a_run_killed_before_it_was_marked_as_finished_takes_no_more_step(straight, raw_dataset, tmp_path):
    run = RunFolder.create(tmp_path / "killed", PLATEAU, raw_dataset)
    state = straight.checkpoints.load_latest()
    run.checkpoints.save(state, state["step"])
    trainer = Trainer(raw_dataset, run, ALONE)
    trainer.run()
    trainer.close()
    assert run.result["num_steps"] == state["step"] and losses(run) == []


@pytest.mark.slow  # 6 s
def test_two_workers_with_micro_batches_decide_the_same(straight, raw_dataset, tmp_path):
    run = RunFolder.create(tmp_path / "two", PLATEAU, raw_dataset)
    # Of the slices of 6 and 7 samples, only one is cut.
    run_workers(2, "train", raw_dataset.path, run.path, "6")
    assert _decisions(run) == _decisions(straight)
    np.testing.assert_allclose(losses(run), losses(straight), rtol=1e-8)


def test_a_dataset_without_val_is_refused(raw_dataset):
    without = SimpleNamespace(splits=("train",), path="DATASET", stored_size=raw_dataset.stored_size)
    with pytest.raises(InputError, match=r"by the error on val, which DATASET lacks; choose another schedule"):
        check_fits(PLATEAU, without, num_workers=1)
    check_fits(CONFIG, without, num_workers=1)
    check_images_fit(PLATEAU, without)
