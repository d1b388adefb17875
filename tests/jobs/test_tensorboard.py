"""Events for TensorBoard, read back by TensorBoard."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from pictures import decoded
from runs import CONFIG
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Evaluated, Line, Resumed, Started, Steps, Warned, only, read_metrics
from jobs.reporting.pictures import first_samples
from jobs.training.tensorboard import TensorBoard, check_tensorboard
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.paths import CHECKOUT


def steps(step: int, loss: float) -> Steps:
    """Return a line of the log."""
    return Steps(
        step=step,
        samples_seen=step * 8,
        epoch=step / 10,
        loss=loss,
        top1=0.5,
        learning_rate=0.1,
        images_per_second=100.0 + step,
        data_wait_fraction=0.25,
        eta_seconds=9.0,
        losses=[loss],
        time=1000.0 + step,
    )


VAL = Evaluated(step=3, split="val", num_samples=50, loss=1.5, top1=0.25, top5=0.75, time=1003.5)
LOG: list[Line] = [
    Started(step=0, world_size=2, time=1000.0),
    *[steps(number, loss=float(number)) for number in (1, 2, 3)],
    VAL,
    Warned(message="nothing to draw"),
    *[steps(number, loss=float(number)) for number in (4, 5)],
    Resumed(step=3, time=1010.0),
    Started(step=3, world_size=1, time=1010.0),
    *[steps(number, loss=10.0 * number) for number in (4, 5, 6)],
]


@pytest.fixture
def run(raw_dataset, tmp_path) -> RunFolder:
    """A run that has begun."""
    return RunFolder.create(tmp_path / "run", CONFIG, raw_dataset)


def write(run: RunFolder, lines: list[Line], dataset: Dataset) -> None:
    """Write the events of a log."""
    events = TensorBoard(run, dataset)
    for line in lines:
        events.see(line)
    events.close()


def read(run: RunFolder) -> EventAccumulator:
    return EventAccumulator(str(run.tensorboard_path)).Reload()


def test_the_numbers_of_the_log_without_the_steps_that_were_rolled_back(run, raw_dataset):
    write(run, LOG, raw_dataset)
    events = read(run)
    losses = [(event.step, event.value, event.wall_time) for event in events.Scalars("train/loss")]
    assert losses == [(n, n, 1000.0 + n) for n in (1, 2, 3)] + [(n, 10.0 * n, 1000.0 + n) for n in (4, 5, 6)]
    assert [(event.step, event.value) for event in events.Scalars("speed/workers")] == [(0, 2), (3, 1)]
    assert [(event.step, event.value) for event in events.Scalars("val/top5")] == [(3, 0.75)]
    assert set(events.Tags()["scalars"]) == {
        *("train/loss", "train/top1", "train/learning_rate", "val/loss", "val/top1", "val/top5"),
        *("speed/images_per_second", "speed/data_wait_fraction", "speed/workers"),
    }


def test_a_launch_after_a_kill_writes_the_whole_run_anew(run, raw_dataset):
    for lines in (LOG[:5], LOG):
        write(run, lines, raw_dataset)
    assert [event.step for event in read(run).Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_steps_are_forgotten_however_often_a_run_was_resumed(run, raw_dataset):
    lines: list[Line] = [Started(step=0, world_size=1)]
    for number in range(12):
        lines += [steps(10 * number + offset, loss=float(number)) for offset in range(1, 16)]
        lines.append(Started(step=10 * number + 10, world_size=1))
    write(run, lines, raw_dataset)
    losses = read(run).Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, 121))
    assert [event.value for event in losses] == [(step - 1) // 10 for step in range(1, 121)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_events_that_cannot_be_written_are_said_once_and_training_goes_on(run, raw_dataset, capsys, monkeypatch):
    events = TensorBoard(run, raw_dataset)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", fail)  # in TensorBoard's thread
    for line in LOG:
        events.see(line)
        time.sleep(0.01)
    events.close()
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "no more events for TensorBoard" in warning and "No space left" in warning


def test_a_folder_that_is_a_file_is_said_once_and_training_goes_on(run, raw_dataset, capsys):
    run.tensorboard_path.write_text("")
    write(run, LOG, raw_dataset)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: no more events for TensorBoard")


def test_the_first_samples_are_shown_as_the_network_sees_them(run, raw_dataset):
    write(run, LOG, raw_dataset)
    ((_, crops_NHWC), *_) = first_samples(raw_dataset, run, 1, 1)
    (event,) = read(run).Images("train/first_samples")
    sheet_HWC = decoded(event.encoded_image_string)
    assert sheet_HWC.shape[0] >= 28 and np.array_equal(sheet_HWC[:28, :28], crops_NHWC[0])


@pytest.mark.slow
def test_a_run_and_its_resume_are_written(raw_dataset, tmp_path):
    command = ["--data", str(raw_dataset.path), "--run", str(tmp_path / "run"), "--launcher", "alone"]
    command += ["--tensorboard", "--global-batch-size", "10", "--checkpoint-interval", "1"]
    command += ["--optimizer.learning-rate", "1e-4", "--stuck-after-epochs", "100"]
    script = [sys.executable, "jobs/train.py", *command, "--num-epochs", "30"]
    with subprocess.Popen(script, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step "):
                process.send_signal(signal.SIGINT)
                break
        process.communicate(timeout=60)
    subprocess.run(script, cwd=CHECKOUT, check=True, capture_output=True)
    logged = only(Steps, read_metrics(tmp_path / "run" / "metrics.jsonl"))
    run = RunFolder.open(tmp_path / "run")
    events = read(run)
    assert [event.step for event in events.Scalars("train/loss")] == sorted({line.step for line in logged})
    assert events.Images("model/first_filters")[-1].step == run.checkpoints.latest_step()


def test_without_tensorboard_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'alexnet-at-scale\[tensorboard\]'"):
        check_tensorboard()
