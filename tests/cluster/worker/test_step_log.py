"""Lines of a worker whose device lags are those of one whose device does not, written a line later."""

import dataclasses
import json

import pytest
import torch
from gpu_timeline import Timeline
from runs import ALONE, CONFIG, entries, losses

from cluster.run.run_folder import RunFolder
from cluster.worker.device_clock import CudaClock
from cluster.worker.learner import Learner
from cluster.worker.training import Trainer
from model.optim_config import OptimizerConfig
from pipeline.command import InputError

RARELY = dataclasses.replace(CONFIG, checkpoint_interval=1000, evaluations_per_epoch=0.01)


@pytest.fixture
def timeline(monkeypatch) -> Timeline:
    """A GPU that needs a second for each step, for all that is trained in a test."""
    timeline, step = Timeline(monkeypatch), Learner.step

    def slow_step(*arguments):
        timeline.work(1.0)
        return step(*arguments)

    monkeypatch.setattr(Learner, "step", slow_step)
    monkeypatch.setattr("cluster.worker.training.clock_of", lambda device: CudaClock(torch.device("cuda", 1)))
    return timeline


def _trained(dataset, path, config=CONFIG) -> RunFolder:
    run = RunFolder.create(path, config, dataset)
    trainer = Trainer(dataset, run, ALONE)
    try:
        trainer.run()
    finally:
        trainer.close()
    return run


def _told(run: RunFolder) -> list[dict]:
    """Return the lines of the steps without what was measured."""
    parts = {f"{part}_fraction" for part in ("data_wait", "forward", "backward", "update")}
    measured = {"time", "images_per_second", "eta_seconds", *parts}
    return [{name: line[name] for name in line.keys() - measured} for line in entries(run, "step")]


def test_the_lines_are_those_of_a_device_that_does_not_lag(raw_dataset, tmp_path, request):
    config = dataclasses.replace(CONFIG, checkpoint_interval=1000)  # and at each evaluation that is the best so far
    straight = _trained(raw_dataset, tmp_path / "straight", config)
    request.getfixturevalue("timeline")
    run = _trained(raw_dataset, tmp_path / "lagging", config)
    assert _told(run) == _told(straight) and run.result == straight.result
    assert _order(run) == _order(straight)


def _order(run: RunFolder) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [(line["kind"], line["step"]) for line in lines]


def test_a_line_is_written_when_the_next_one_is_due_and_by_its_times_on_the_device(raw_dataset, tmp_path, timeline):
    run = RunFolder.create(tmp_path / "run", RARELY, raw_dataset)
    trainer = Trainer(raw_dataset, run, ALONE)
    for num_lines, num_steps in enumerate((1, 2, 3)):
        for _ in range(num_steps):
            trainer.make_step()
        trainer.write_line()
        assert len(entries(run, "step")) == num_lines
    assert timeline.now == 1 + 2  # the process waited for the lines that it wrote, three steps before the GPU's end
    assert sum(len(steps.sample_ids_SG) for steps in _recorded(trainer, run)) == 6  # the ledger knows all
    trainer.save_checkpoint()
    assert [line["step"] for line in entries(run, "step")] == [1, 3, 6]
    assert [line["images_per_second"] for line in entries(run, "step")] == pytest.approx([12] * 3)
    assert {line["data_wait_fraction"] for line in entries(run, "step")} == {0}
    trainer.close()
    assert len(losses(run)) == run.checkpoints.latest_step() == 6


def _recorded(trainer: Trainer, run: RunFolder) -> list:
    trainer._writer.wait()
    return list(run.ledger.read())


def test_what_is_left_out_does_not_count(raw_dataset, tmp_path, timeline):
    run = RunFolder.create(tmp_path / "run", RARELY, raw_dataset)
    trainer = Trainer(raw_dataset, run, ALONE)
    trainer.make_step()
    begin = trainer._clock.mark()
    timeline.work(50)  # an evaluation
    trainer._steps.leave_out(begin, trainer._clock.mark())
    trainer.make_step()
    trainer.save_checkpoint()
    trainer.close()
    (line,) = entries(run, "step")
    assert line["images_per_second"] == pytest.approx(12)


def test_no_checkpoint_follows_a_loss_that_is_no_number(raw_dataset, tmp_path, timeline):
    config = dataclasses.replace(
        RARELY, optimizer=OptimizerConfig(learning_rate=1e12), precision="float32", checkpoint_interval=4
    )
    with pytest.raises(InputError, match=r"the loss became NaN or infinite at step \d"):
        _trained(raw_dataset, tmp_path / "run", config)
    run = RunFolder.open(tmp_path / "run")
    (failure,) = entries(run, "failure")
    assert failure["message"].startswith(f"the loss became NaN or infinite at step {failure['step']}; lower the rate")
    state = run.checkpoints.load_latest()
    assert state is None or all(weights.isfinite().all() for weights in state["model"].values())
