"""The worker loop: the same numbers straight or resumed, alone or among others."""

import dataclasses
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import ALONE, CONFIG, entries, losses
from worker_process import run_workers

from cluster.run.checkpoint import CheckpointStore
from cluster.run.fit import check_fits
from cluster.run.run_folder import RunFolder
from cluster.worker.learning_check import LearningCheck
from cluster.worker.training import Trainer
from model.optim_config import OptimizerConfig
from model.registry import ModelConfig
from pipeline.command import InputError
from pipeline.online.augmentation import AugmentationConfig


@pytest.fixture(scope="module")
def straight(raw_dataset, tmp_path_factory) -> RunFolder:
    run = RunFolder.create(tmp_path_factory.mktemp("run") / "straight", CONFIG, raw_dataset)
    trainer = Trainer(raw_dataset, run, ALONE)
    trainer.run()
    trainer.close()
    return run


def _evaluation(top1: float) -> SimpleNamespace:
    values = {"split": "val", "num_samples": 10, "loss": 1.0, "top1": top1, "top5": 1.0}
    return SimpleNamespace(summary=lambda: values)


def no_evaluation(*_, **__):
    """Stand in for an evaluation that finds nothing new."""
    return _evaluation(0.0)


def test_a_run_logs_every_step_evaluates_and_finishes(straight, raw_dataset):
    assert len(losses(straight)) == CONFIG.total_steps(41) == 10
    assert straight.result["num_steps"] == 10
    evaluations = entries(straight, "evaluation")
    assert [entry["step"] for entry in evaluations] == [3, 6, 9, 10]
    assert {entry["num_samples"] for entry in evaluations} == {10}
    best = max(entry["top1"] for entry in evaluations)
    assert straight.result["best_val_top1"] == best


def test_a_line_divides_the_time_of_its_steps(straight):
    for entry in entries(straight, "step"):
        parts = [entry[f"{part}_fraction"] for part in ("data_wait", "forward", "backward", "update")]
        assert all(fraction > 0 for fraction in parts[1:]) and sum(parts) <= 1


def test_synthetic_data_trains_without_reading_a_picture(raw_dataset, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, synthetic_data=True, num_epochs=1, precision="float32")
    read = []
    monkeypatch.setattr("pipeline.online.shard_reader.ShardReader.read", lambda *arguments: read.append(arguments))
    monkeypatch.setattr("cluster.worker.training.evaluate", no_evaluation)
    run = RunFolder.create(tmp_path / "synthetic", config, raw_dataset)
    trainer = Trainer(raw_dataset, run, ALONE)
    trainer.run()
    trainer.close()
    assert len(losses(run)) == config.total_steps(41) and np.isfinite(losses(run)).all()
    assert not read
    assert entries(run, "step")[-1]["data_wait_fraction"] == 0


def test_a_run_that_learns_nothing_is_stopped_after_an_epoch_with_advice(raw_dataset, tmp_path):
    model = dataclasses.replace(CONFIG.model, initialization="caffe")  # all logits begin near 0
    config = dataclasses.replace(CONFIG, model=model, optimizer=OptimizerConfig(learning_rate=1e-12), num_epochs=20)
    trainer = Trainer(raw_dataset, RunFolder.create(tmp_path / "stuck", config, raw_dataset), ALONE)
    with pytest.raises(
        InputError, match=r"is 1\.38\d+ after 5\.9 epochs, that of a guess, ln 4 = 1\.3863.*initial-bias"
    ):
        trainer.run()
    trainer.close()
    assert trainer.progress.step == 20  # so many are judged together


def test_one_class_is_learnt_from_the_start():
    dataset = SimpleNamespace(num_classes=1, num_samples=lambda split: 41)
    LearningCheck(CONFIG, dataset)(100, torch.zeros(20))


def test_a_resumed_run_has_the_same_losses_and_weights(straight, raw_dataset, tmp_path):
    run = RunFolder.create(tmp_path / "resumed", CONFIG, raw_dataset)
    interrupted = Trainer(raw_dataset, run, ALONE)
    for _ in range(6):  # past the checkpoint at step 4: two steps are lost and done again
        interrupted.make_step()
        if interrupted.progress.step == 4:
            interrupted.save_checkpoint()
    interrupted.close()
    resumed = Trainer(raw_dataset, run, ALONE)
    assert resumed.progress.step == 4
    resumed.run()
    resumed.close()
    assert losses(run) == losses(straight)
    left, right = straight.checkpoints.load_latest(), run.checkpoints.load_latest()
    assert left["samples_seen"] == right["samples_seen"] == 120
    for name, weights in left["model"].items():
        assert torch.equal(weights, right["model"][name]), name


def test_two_workers_train_the_same_run(straight, raw_dataset, tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, raw_dataset)
    run_workers(2, "train", raw_dataset.path, run.path)
    np.testing.assert_allclose(losses(run), losses(straight), rtol=1e-8)
    mine, theirs = entries(run, "evaluation"), entries(straight, "evaluation")
    assert [entry["num_samples"] for entry in mine] == [entry["num_samples"] for entry in theirs]
    np.testing.assert_allclose([e["loss"] for e in mine], [e["loss"] for e in theirs], rtol=1e-6)
    left, right = straight.checkpoints.load_latest()["model"], run.checkpoints.load_latest()["model"]
    for name, weights in left.items():
        torch.testing.assert_close(right[name], weights, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_other_precisions_train(raw_dataset, tmp_path, precision):
    config = dataclasses.replace(CONFIG, precision=precision, num_epochs=0.5)
    run = RunFolder.create(tmp_path, config, raw_dataset)
    trainer = Trainer(raw_dataset, run, ALONE)
    trainer.run()
    trainer.close()
    weights = run.checkpoints.load_latest()["model"]
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert np.isfinite(losses(run)).all()


def test_a_diverging_run_ends_with_advice(raw_dataset, tmp_path):
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1e12), precision="float32")
    trainer = Trainer(raw_dataset, RunFolder.create(tmp_path, config, raw_dataset), ALONE)
    with pytest.raises(InputError, match=r"lower the rate: --optimizer.learning-rate"):
        trainer.run()
    trainer.close()


def test_the_rate_follows_the_global_batch(raw_dataset, tmp_path):
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(learning_rate=0.01, reference_batch_size=4))
    trainer = Trainer(raw_dataset, RunFolder.create(tmp_path, config, raw_dataset), ALONE)
    trainer.make_step()
    trainer.close()
    assert trainer.learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.03, rel=1e-12)


def test_two_trainers_of_one_run_are_refused(raw_dataset, tmp_path):
    run = RunFolder.create(tmp_path, CONFIG, raw_dataset)
    first = Trainer(raw_dataset, run, ALONE)
    with pytest.raises(InputError, match="is being written by another job"):
        Trainer(raw_dataset, run, ALONE)
    first.close()
    Trainer(raw_dataset, run, ALONE).close()


def test_what_does_not_fit_is_refused_before_the_start(raw_dataset):
    with pytest.raises(InputError, match="20 workers can't share a global batch of 12"):
        check_fits(CONFIG, raw_dataset, num_workers=20)
    large = dataclasses.replace(CONFIG, augmentation=AugmentationConfig(crop_size=224))
    with pytest.raises(InputError, match=r"recipe test does not fit .*crop_size is 224"):
        check_fits(large, raw_dataset, num_workers=1)
    deep = dataclasses.replace(CONFIG, model=ModelConfig(name="alexnet_2012"))
    with pytest.raises(InputError, match="alexnet_2012 is made for 224"):
        check_fits(deep, raw_dataset, num_workers=1)


def test_a_run_folder_refuses_another_recipe_dataset_or_content(straight, raw_dataset, jpeg_dataset, tmp_path):
    assert RunFolder.resume(straight.path, CONFIG, raw_dataset).config == CONFIG
    assert RunFolder.resume(tmp_path / "new", CONFIG, raw_dataset) is None
    other = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, learning_rate=0.5))
    with pytest.raises(InputError, match=r"another recipe \(optimizer.learning_rate 0.01 -> 0.5\)"):
        RunFolder.resume(straight.path, other, raw_dataset)
    with pytest.raises(InputError, match="on another dataset"):
        RunFolder.resume(straight.path, CONFIG, jpeg_dataset)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="in use but holds no run"):
        RunFolder.resume(tmp_path, CONFIG, raw_dataset)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"global_batch_size": 0}, "global_batch_size=0"),
        ({"num_epochs": 0}, "num_epochs=0"),
        ({"precision": "float16"}, "precision='float16': must be one of auto, float32, bfloat16, float64"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_fields_of_a_recipe_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **fields)


def test_a_run_stops_early_when_val_no_longer_improves(raw_dataset, tmp_path, monkeypatch):
    top1s = iter([0.2, 0.5, 0.5, 0.4, 0.6])
    monkeypatch.setattr("cluster.worker.training.evaluate", lambda *_, **__: _evaluation(next(top1s)))
    config = dataclasses.replace(CONFIG, num_epochs=10, early_stop_patience=2)
    run = RunFolder.create(tmp_path, config, raw_dataset)
    trainer = Trainer(raw_dataset, run, ALONE)
    trainer.run()
    trainer.close()
    assert [entry["top1"] for entry in entries(run, "evaluation")] == [0.2, 0.5, 0.5, 0.4]
    assert run.result == {"num_steps": 12, "best_val_top1": 0.5}
    assert run.checkpoints.load_best()["step"] == 6 and run.checkpoints.latest_step() == 12
    again = Trainer(raw_dataset, run, ALONE)
    assert again.progress.is_last  # as a worker that was lost just before it wrote the result
    again.close()


def test_workers_that_are_asked_to_stop_do_so_at_a_checkpoint(straight, raw_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("cluster.worker.stopping.ASK_SECONDS", 0)  # asked before each step
    run = RunFolder.create(tmp_path, CONFIG, raw_dataset)
    run.stop_request.clear()
    seen = []

    def wants_to_stop() -> bool:
        seen.append(None)
        if len(seen) == 3:
            run.stop_request.make()
        return run.stop_request.is_made()

    trainer = Trainer(raw_dataset, run, dataclasses.replace(ALONE, wants_to_stop=wants_to_stop))
    trainer.run()
    trainer.close()
    assert run.result is None and run.checkpoints.latest_step() == 3
    assert [entry["step"] for entry in entries(run, "stop")] == [3]
    resumed = Trainer(raw_dataset, run, ALONE)
    resumed.run()
    resumed.close()
    assert losses(run) == losses(straight)
    assert [(entry["step"], entry["num_rolled_back"]) for entry in entries(run, "resume")] == [(3, 0)]


def test_training_goes_no_further_than_an_interval_beyond_the_last_whole_checkpoint(raw_dataset, tmp_path, monkeypatch):
    disk_works, save = threading.Event(), CheckpointStore.save
    monkeypatch.setattr(CheckpointStore, "save", lambda *arguments: disk_works.wait(60) and save(*arguments))
    monkeypatch.setattr("cluster.worker.training.evaluate", no_evaluation)
    config = dataclasses.replace(CONFIG, evaluations_per_epoch=0.01)  # a best one is a checkpoint too
    run = RunFolder.create(tmp_path, config, raw_dataset)  # of a checkpoint interval of 4
    trainer = Trainer(raw_dataset, run, ALONE)
    thread = threading.Thread(target=trainer.run)
    thread.start()
    deadline = time.monotonic() + 60
    while trainer.progress.step < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)  # it would go on here
    assert trainer.progress.step == 4 and run.checkpoints.latest_step() == 0
    disk_works.set()
    thread.join(60)
    trainer.close()
    assert run.result["num_steps"] == 10
