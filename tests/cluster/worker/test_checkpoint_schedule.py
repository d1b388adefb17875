"""Checkpoints are begun by steps and by seconds, the same on all workers."""

import dataclasses

import pytest
from runs import ALONE, CONFIG

from cluster.run.config import TrainingConfig
from cluster.run.run_folder import RunFolder
from cluster.worker.checkpoint_schedule import CheckpointSchedule
from cluster.worker.stopping import StopAgreement
from cluster.worker.training import Trainer


def _begun(config: TrainingConfig, step_seconds: float, num_steps: int, others: tuple[int, ...] = ()) -> list[int]:
    """Return the steps after which a checkpoint is begun; at `others` one is begun for another reason."""
    now = 0.0
    schedule = CheckpointSchedule(config, 0, lambda: now)
    agreement = StopAgreement(ALONE, lambda: now)
    begun = []
    for step in range(1, num_steps + 1):
        agreement.ask(schedule.is_time)
        now += step_seconds
        agreement.is_reached()
        if agreement.is_checkpoint_time:
            schedule.allow()
        if step in others or schedule.is_due(step):
            schedule.begin(step)
            begun.append(step)
    return begun


@pytest.mark.parametrize("step_seconds", [0.001, 10.0])
def test_without_a_least_time_the_steps_decide(step_seconds):
    config = dataclasses.replace(CONFIG, checkpoint_interval=10, checkpoint_seconds=0)
    assert _begun(config, step_seconds, 21) == [5, 10, 15, 20]
    assert _begun(config, step_seconds, 21, others=(7, 10)) == [5, 7, 10, 15, 20]


def test_slow_steps_follow_the_interval_and_fast_ones_the_seconds():
    config = dataclasses.replace(CONFIG, checkpoint_interval=10, checkpoint_seconds=30)
    assert _begun(config, 4.0, 30) == [5, 10, 15, 20, 25, 30]
    fast = _begun(config, 0.01, 20_000)  # 200 s: one every 15 s and up to one more until the next question
    gaps = [after - before for before, after in zip([0, *fast], fast, strict=False)]
    assert len(fast) >= 12 and min(gaps) >= 1500 and max(gaps) <= 1600


def test_a_checkpoint_for_another_reason_begins_the_time_anew():
    config = dataclasses.replace(CONFIG, checkpoint_interval=10, checkpoint_seconds=30)
    first, second, *_ = _begun(config, 0.01, 4000, others=(1400,))
    assert first == 1400 and 2900 <= second <= 3000


def test_an_interval_of_one_step_is_kept_whatever_the_seconds():
    config = dataclasses.replace(CONFIG, checkpoint_interval=1, checkpoint_seconds=30)
    assert _begun(config, 0.01, 5) == [1, 2, 3, 4, 5]


@pytest.mark.slow  # 4 s
def test_a_run_of_a_few_seconds_writes_its_best_and_its_last_checkpoint(raw_dataset, tmp_path, monkeypatch):
    saved = []
    save = Trainer.save_checkpoint
    monkeypatch.setattr(
        Trainer,
        "save_checkpoint",
        lambda trainer, is_best: saved.append((trainer.progress.step, is_best)) or save(trainer, is_best),
    )
    for seconds in (0, 1000):
        config = dataclasses.replace(CONFIG, checkpoint_seconds=seconds)
        trainer = Trainer(raw_dataset, RunFolder.create(tmp_path / str(seconds), config, raw_dataset), ALONE)
        trainer.run()
        trainer.close()
    by_interval, by_seconds = saved[: saved.index((10, saved[-1][1])) + 1], saved[saved.index((10, saved[-1][1])) + 1 :]
    assert {step for step, _ in by_interval} >= {2, 4, 6, 8, 10}
    assert by_seconds[-1][0] == 10 and all(is_best for _, is_best in by_seconds[:-1])


def test_a_negative_time_is_refused():
    with pytest.raises(ValueError, match="checkpoint_seconds=-1: must be at least 0"):
        dataclasses.replace(CONFIG, checkpoint_seconds=-1)
