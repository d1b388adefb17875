"""A report divides a step's time into the parts that the log has."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from reports import logged_run, step_line

from jobs.reporting import step_time
from jobs.reporting.drawings import BACKWARD, FORWARD, REST, UPDATE, WAIT
from jobs.reporting.reading import read_record
from jobs.reporting.step_time import step_legend, step_parts, step_time_chart

PARTS = {"forward_fraction": 0.25, "backward_fraction": 0.4, "update_fraction": 0.05}


def _record(tmp_path, dataset, *lines: str):
    return read_record(logged_run(tmp_path / "run", dataset, list(lines)).path, "run")


def test_the_parts_of_the_median_step_add_up_to_it(tmp_path, raw_dataset):
    odd = dict.fromkeys(PARTS, 0.0) | {"data_wait_fraction": 0.9}
    record = _record(tmp_path, raw_dataset, step_line(1, 1, **odd), step_line(4, 2, [1.0] * 3, **PARTS))
    assert {part.title: part.seconds for part in step_parts(record)} == {
        "forward": pytest.approx(0.025),
        "backward, exchange": pytest.approx(0.04),
        "update": pytest.approx(0.005),
        "rest": pytest.approx(0.005),
        "data wait": pytest.approx(0.025),
    }


def test_what_an_older_version_did_not_divide_is_the_rest(tmp_path, raw_dataset):
    record = _record(tmp_path, raw_dataset, step_line(3, 1, [1.0] * 3))
    assert [(part.title, part.seconds) for part in step_parts(record)] == [
        ("rest", pytest.approx(0.075)),
        ("data wait", pytest.approx(0.025)),
    ]
    assert [entry.text for entry in step_legend([record])] == ["rest", "data wait"]


@pytest.mark.parametrize("lines", [[], [step_line(1, 1), step_line(2, 2)]], ids=["none", "two"])
def test_a_run_without_a_median_step_has_no_parts(lines, tmp_path, raw_dataset):
    record = _record(tmp_path, raw_dataset, *lines)
    assert step_parts(record) == [] and step_legend([record]) == []


def test_the_drawing_stacks_the_parts(tmp_path, raw_dataset, monkeypatch):
    drawn = {}

    def draw(name, label, plot):
        axes = Figure().subplots()
        plot(axes)
        for area in axes.collections:
            heights = area.get_paths()[0].vertices[:, 1]
            drawn["#" + bytes((area.get_facecolor()[0, :3] * 255).round().astype(np.uint8)).hex()] = (
                heights.min(), heights.max(),
            )  # fmt: skip

    monkeypatch.setattr(step_time, "draw", draw)
    record = _record(tmp_path, raw_dataset, *(step_line(step, step, **PARTS) for step in (1, 2, 3)))
    step_time_chart(record, "run1")
    tops = {FORWARD: (0, 25), BACKWARD: (25, 65), UPDATE: (65, 70), REST: (70, 75), WAIT: (75, 100)}
    assert {color: pytest.approx(bounds) for color, bounds in tops.items()} == drawn
