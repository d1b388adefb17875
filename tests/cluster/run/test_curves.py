"""Curves: what the log holds after all that was rolled back, smoothed as the axes say."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cluster.run.config import TrainingConfig
from cluster.run.curves import Curves, read_curves, samples_to_error, smoothed
from cluster.run.run_folder import RunFolder
from jobs import curves as job
from model.optim_config import OptimizerConfig
from model.registry import ModelConfig
from pipeline.command import InputError
from pipeline.online.augmentation import AugmentationConfig

CONFIG = TrainingConfig(
    name="test",
    model=ModelConfig(name="alexnet_small"),
    optimizer=OptimizerConfig(),
    augmentation=AugmentationConfig(crop_size=28),
    global_batch_size=10,
    precision="float32",
    num_epochs=10,
)


def _step(step: int, losses: list[float], top1: float) -> str:
    seen = step * 10
    speed = {"learning_rate": 0.1, "images_per_second": 9.0, "data_wait_fraction": 0.0, "eta_seconds": 1.0}
    values = {"step": step, "samples_seen": seen, "epoch": seen / 41, "losses": losses, "top1": top1}
    return json.dumps({"kind": "step", "loss": float(np.mean(losses)), **values, **speed})


def _evaluation(step: int, loss: float, top1: float) -> str:
    values = {"step": step, "split": "val", "num_samples": 10, "loss": loss, "top1": top1, "top5": 1.0}
    return json.dumps({"kind": "evaluation", **values})


def _run(dataset, path, lines: list[str]) -> RunFolder:
    run = RunFolder.create(path, CONFIG, dataset)
    run.metrics_path.write_text("\n".join(lines) + "\n")
    return run


def test_a_resume_replaces_what_was_rolled_back(raw_dataset, tmp_path):
    lines = [
        _step(1, [9.0], 0.0),
        _step(5, [8.0, 7.0, 6.5, 6.0], 0.1),
        _evaluation(5, 5.5, 0.2),
        '{"kind": "step", "ste',  # torn by a kill
        json.dumps({"kind": "resume", "step": 2, "num_rolled_back": 3}),
        _step(4, [5.0, 4.0], 0.5),
        json.dumps({"kind": "warning", "message": "a sample has changed"}),
        _evaluation(4, 3.5, 0.6),
    ]
    curves = read_curves(_run(raw_dataset, tmp_path, lines))
    assert curves.num_samples == 41 and curves.global_batch_size == 10
    assert curves.samples_seen.tolist() == [10, 20, 30, 40]
    assert curves.losses.tolist() == [9, 8, 5, 4]
    np.testing.assert_allclose(curves.top1_errors, [1, 0.9, 0.5, 0.5])
    assert curves.val_samples_seen.tolist() == [40] and curves.val_losses.tolist() == [3.5]
    np.testing.assert_allclose(curves.val_top1_errors, [0.4])


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.data())
def test_smoothing_is_the_mean_of_the_last_values(values, data):
    window = data.draw(st.integers(1, len(values)))
    seen, means = smoothed(np.arange(1, len(values) + 1) * 10, np.array(values), window)
    assert seen.tolist() == [10 * end for end in range(window, len(values) + 1)]
    expected = [np.mean(values[end - window : end]) for end in range(window, len(values) + 1)]
    np.testing.assert_allclose(means, expected, atol=1e-12)


def test_the_first_fall_of_the_smoothed_error_counts():
    errors = np.array([0.9, 0.2, 0.8, 0.3, 0.2, 0.4, 0.1])
    seen, none = np.arange(1, 8) * 10, np.array([])
    curves = Curves(70, 10, seen, errors, errors, none, none, none)
    assert samples_to_error(curves, 0.25, window=1) == 20
    assert samples_to_error(curves, 0.25, window=2) == 50  # (0.3 + 0.2) / 2
    assert samples_to_error(curves, 0.05, window=2) is None


@pytest.fixture
def runs(raw_dataset, tmp_path) -> list[str]:
    """One run falls to 0.25 in 70 steps, the other never; the second has no evaluation."""
    lines = {
        "relu": [_step(s, [300 / (s + 99)], min(1, s / 80)) for s in range(1, 101)] + [_evaluation(50, 2.0, 0.4)],
        "_tanh": [_step(s, [3.0], s / 400) for s in range(1, 101)],
    }
    return [str(_run(raw_dataset, tmp_path / name, content).path) for name, content in lines.items()]


@pytest.mark.parametrize("x", ["epochs", "samples"])
def test_the_command_draws_runs_and_tells_when_an_error_is_reached(runs, tmp_path, capsys, x):
    out = tmp_path / "out.png"
    options = ["--smoothing-samples", "10", "--samples-to-error", "0.25", "--x", x]
    assert job.main([*runs, "--out", str(out), *options]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1:3] == ["  relu: 600 (14.63 epochs)", "  _tanh: not reached in 1,000"]
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 1000 and picture.height > 500
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24)}
    assert {(31, 119, 180), (255, 127, 14)} <= colors  # a line of each run


def test_axes_and_legend_say_what_is_drawn(runs):
    curves = [read_curves(RunFolder.open(job.Path(path))) for path in runs]
    figure = job.draw_curves(curves, ["$relu", "_tanh"], "epochs", 200)
    loss_axes, error_axes = figure.axes
    assert "mean of the last 200 samples" in loss_axes.get_ylabel() and loss_axes.get_xlabel() == "epochs"
    training, validation = error_axes.lines[:2]
    assert training.get_xdata()[0] == pytest.approx(200 / 41)  # the first full window
    assert validation.get_xdata() == pytest.approx([500 / 41]) and validation.get_ydata() == pytest.approx([60])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation", r"\$relu", " _tanh"]


def test_the_default_smoothing_is_a_tenth_of_the_shortest_run(runs, tmp_path, capsys):
    job.main([*runs, "--out", str(tmp_path / "out.png"), "--samples-to-error", "0.25"])
    assert "mean of the last 100 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--out", "{tmp}/out.jpg"], "does not end in .png"),
        (["--out", "{tmp}/out.png"], "no run is named"),
        (["{tmp}", "--out", "{tmp}/out.png"], "holds no run"),
        (["{run}", "--out", "{tmp}/out.png", "--labels", "a", "b"], "--labels names 2 runs, there are 1"),
        (["{run}", "--out", "{tmp}/out.png", "--samples-to-error", "25"], "it must be a fraction"),
        (["{run}", "--out", "{tmp}/out.png", "--smoothing-samples", "0"], "it must be at least 1"),
        (["{run}", "--out", "{tmp}/out.png", "--smoothing-samples", "1010"], "relu has logged 1000 samples"),
        (["{new}", "--out", "{tmp}/out.png"], "has logged no step yet"),
    ],
)
def test_wrong_input_is_named(runs, raw_dataset, tmp_path, arguments, message):
    new = RunFolder.create(tmp_path / "new", CONFIG, raw_dataset).path
    with pytest.raises(InputError, match=message):
        job.main([argument.format(run=runs[0], tmp=tmp_path, new=new) for argument in arguments])
    assert not list(tmp_path.glob("out*"))
