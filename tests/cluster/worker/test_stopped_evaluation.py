"""Workers that are asked to stop while they evaluate do so at the next batch; the evaluation is made again."""

import dataclasses
import math
import time

import numpy as np
import pytest
import torch
from runs import ALONE, CONFIG, entries, losses
from worker_process import run_workers

from cluster.run.run_folder import RunFolder
from cluster.worker.evaluation import evaluate
from cluster.worker.stopping import StopAgreement
from cluster.worker.trained_model import load_model
from cluster.worker.training import Trainer
from cluster.worker.world import World


@pytest.fixture(autouse=True)
def _small_batches_each_asked(monkeypatch):
    monkeypatch.setattr("cluster.worker.stopping.ASK_SECONDS", 0)
    monkeypatch.setattr("cluster.worker.evaluation.BATCH_SIZE", 2)  # 5 of them in `val`


def trained(dataset, path, wants_to_stop=None) -> RunFolder:
    """Train the run in `path`, or go on with it."""
    run = RunFolder.resume(path, CONFIG, dataset) or RunFolder.create(path, CONFIG, dataset)
    world = ALONE if wants_to_stop is None else dataclasses.replace(ALONE, wants_to_stop=wants_to_stop)
    trainer = Trainer(dataset, run, world)
    trainer.run()
    trainer.close()
    return run


class AfterQuestions:
    """Wants to stop from the n-th time on that it is asked."""

    def __init__(self, number: int) -> None:
        self.number, self.num_asked = number, 0

    def __call__(self) -> bool:
        self.num_asked += 1
        return self.num_asked >= self.number


@pytest.fixture(scope="module")
def straight(raw_dataset, tmp_path_factory) -> RunFolder:
    return trained(raw_dataset, tmp_path_factory.mktemp("straight") / "run")


# Three steps, an evaluation of five batches, three steps, ... : asked once before each step and each batch.
@pytest.mark.parametrize(
    ("question", "step", "num_evaluations"),
    [(5, 3, 0), (8, 3, 0), (13, 6, 1), (3 * 8 + 1 + 2, 10, 3)],
    ids=["second batch", "last batch", "second evaluation", "after the last step"],
)
def test_a_stop_amid_an_evaluation_undoes_it(question, step, num_evaluations, straight, raw_dataset, tmp_path):
    wants_to_stop = AfterQuestions(question)
    run = trained(raw_dataset, tmp_path / "run", wants_to_stop)
    assert wants_to_stop.num_asked == question  # no further batch was read
    assert run.result is None and run.checkpoints.latest_step() == step
    assert [entry["step"] for entry in entries(run, "stop")] == [step]
    assert len(entries(run, "evaluation")) == num_evaluations
    trained(raw_dataset, tmp_path / "run")
    assert losses(run) == losses(straight) and run.result == straight.result
    told = ("step", "top1", "loss", "num_samples")
    mine, theirs = ([[entry[name] for name in told] for entry in entries(r, "evaluation")] for r in (run, straight))
    np.testing.assert_allclose(mine, theirs, rtol=1e-12)  # a product of small matrices may round by its address
    for kind in ("load_latest", "load_best"):
        left, right = getattr(run.checkpoints, kind)(), getattr(straight.checkpoints, kind)()
        assert all(torch.equal(weights, right["model"][name]) for name, weights in left["model"].items()), kind


def test_a_stop_before_the_step_of_an_evaluation_leaves_it_to_the_resume(straight, raw_dataset, tmp_path):
    run = trained(raw_dataset, tmp_path / "run", AfterQuestions(3))
    assert entries(run, "evaluation") == [] and run.checkpoints.latest_step() == 3
    trained(raw_dataset, tmp_path / "run")
    assert [entry["step"] for entry in entries(run, "evaluation")] == [3, 6, 9, 10]
    assert run.result == straight.result


def test_a_kill_while_the_evaluation_is_made_again_costs_nothing(straight, raw_dataset, tmp_path, monkeypatch):
    run = trained(raw_dataset, tmp_path / "run", AfterQuestions(5))
    before = (run.path / "checkpoints" / "step-00000003.pt").read_bytes()
    trainer = Trainer(raw_dataset, run, ALONE)
    assert trainer._evaluate()
    trainer.save_checkpoint(is_best=True)  # of the same step
    trainer.close()
    assert (run.path / "checkpoints" / "step-00000003.pt").read_bytes() == before
    assert run.checkpoints.load_best()["step"] == 3
    trained(raw_dataset, tmp_path / "run")
    assert run.result == straight.result


def test_the_time_of_a_stopped_evaluation_is_not_that_of_training(raw_dataset, tmp_path, monkeypatch):
    def slow(*_, **__):
        time.sleep(20)

    clock = [0.0]
    monkeypatch.setattr("cluster.worker.training.evaluate", slow)
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(time, "perf_counter", lambda: clock.__setitem__(0, clock[0] + 0.001) or clock[0])
    run = trained(raw_dataset, tmp_path / "run")
    assert entries(run, "evaluation") == [] and run.checkpoints.latest_step() == 3
    assert entries(run, "step")[-1]["images_per_second"] > 12 / 20


@pytest.mark.slow
def test_two_workers_stop_amid_an_evaluation_that_only_one_wants_to_stop(straight, raw_dataset, tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, raw_dataset)
    run_workers(2, "train-stopped", raw_dataset.path, run.path)
    assert run.result is None and run.checkpoints.latest_step() == 3 and entries(run, "evaluation") == []
    run_workers(2, "train", raw_dataset.path, run.path)
    np.testing.assert_allclose(losses(run), losses(straight), rtol=1e-8)
    assert [entry["step"] for entry in entries(run, "evaluation")] == [3, 6, 9, 10]
    assert run.result["num_steps"] == 10


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_workers_with_fewer_batches_are_asked_as_often(world_size, straight, raw_dataset, monkeypatch):
    model, _ = load_model(straight, ALONE.device)
    monkeypatch.setattr(World, "sum", lambda world, values: values)  # each alone sees its own samples
    counts = set()
    for rank in range(world_size):
        never = AfterQuestions(10**9)
        world = dataclasses.replace(ALONE, rank=rank, world_size=world_size)
        stop = StopAgreement(dataclasses.replace(ALONE, wants_to_stop=never))
        try:
            evaluate(model, raw_dataset, "train", world, straight, stop=stop)
        except RuntimeError as error:
            assert world_size > 1 and "were not evaluated exactly once" in str(error)
        counts.add(never.num_asked)
    assert counts == {math.ceil(math.ceil(41 / world_size) / 2)}


def test_fast_steps_before_do_not_delay_the_questions_of_an_evaluation(straight, raw_dataset, monkeypatch):
    monkeypatch.setattr("cluster.worker.stopping.ASK_SECONDS", 1e9)
    wants_to_stop = AfterQuestions(10**9)
    world = dataclasses.replace(ALONE, wants_to_stop=wants_to_stop)
    stop = StopAgreement(world)
    for _ in range(100):
        stop.ask()
        assert not stop.is_reached()
    wants_to_stop.number = wants_to_stop.num_asked + 1
    model, _ = load_model(straight, ALONE.device)
    assert evaluate(model, raw_dataset, "val", world, straight, stop=stop) is None
