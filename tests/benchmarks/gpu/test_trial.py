"""What checks note: cases and rounds, those that fail, and those for which there is no time."""

import json
import math
import time

import pytest

from benchmarks.gpu.trial import Failed, Trial, merged_rounds


def _trial(tmp_path, **changes):
    values = {"is_dry": False, "seconds": 1.0, "planned_end": time.monotonic() + 100, "deadline": math.inf}
    folders = dict.fromkeys(("data", "out", "scratch"), tmp_path)
    return Trial(**(values | folders | changes))


def test_a_case_that_fails_is_noted_and_the_others_run(tmp_path):
    trial = _trial(tmp_path)
    trial.note_cases({"bad": lambda: 1 / 0, "good": lambda: {"images/s": 12.345678}}, 10)
    expected = {"bad": "ZeroDivisionError: division by zero", "good": {"images/s": 12.346}}
    assert trial.figures == json.loads(trial.figures_path.read_text()) == expected
    with pytest.raises(Failed, match="no case succeeded: bad: ZeroDivisionError: division by zero"):
        trial.note_cases({"bad": lambda: 1 / 0}, 10)


def test_a_case_without_time_is_noted(tmp_path):
    trial = _trial(tmp_path)
    with pytest.raises(Failed, match="no case succeeded: slow: no time"):
        trial.note_cases({"slow": lambda: 1}, 1000)
    dry = _trial(tmp_path, is_dry=True)
    dry.note_cases({"slow": lambda: 1}, 1000)
    assert dry.figures == {"slow": 1}


def test_a_figure_that_is_no_number_is_noted_as_text_and_the_next_ones_too(tmp_path):
    trial = _trial(tmp_path)
    trial.note("deviations", [math.nan, -math.inf])
    trial.note("seconds", 1.0)
    expected = {"deviations": ["nan", "-inf"], "seconds": 1.0}
    assert trial.figures == json.loads(trial.figures_path.read_text()) == expected


def test_no_case_needs_time_if_rounds_were_measured(tmp_path):
    trial = _trial(tmp_path)
    trial.note_rounds({"ours": lambda: lambda: {"seconds": 1}})
    trial.note_cases({"slow": lambda: 1}, 1000)
    assert trial.figures["slow"] == "no time"


def test_alternatives_are_prepared_once_and_measured_in_turn(tmp_path):
    calls = []

    def alternative(name):
        calls.append(f"prepare {name}")
        return lambda: calls.append(name) or {"count": float(len(calls))}

    trial = _trial(tmp_path)
    values = trial.note_rounds({name: lambda name=name: alternative(name) for name in "AB"})
    assert calls == ["prepare A", "prepare B", *"ABABAB"]
    assert values == {"A": {"count": [3, 5, 7]}, "B": {"count": [4, 6, 8]}}
    assert trial.figures == {"A": {"count": 5}, "B": {"count": 6}, "rounds": values}


def test_an_alternative_that_fails_is_noted_and_left_out_and_the_others_go_on(tmp_path):
    outcomes = iter([1.0, "broken", 3.0])

    def breaks_in_its_second_round():
        return {"seconds": float(next(outcomes))}

    def unprepared():
        raise ModuleNotFoundError("No module named 'torchvision'")

    trial = _trial(tmp_path)
    values = trial.note_rounds(
        {"peer": unprepared, "ours": lambda: lambda: {"seconds": 4}, "breaks": lambda: breaks_in_its_second_round}
    )
    assert values == {"ours": {"seconds": [4, 4, 4]}, "breaks": {"seconds": [1]}}
    assert trial.figures["peer"] == "ModuleNotFoundError: No module named 'torchvision'"
    assert trial.figures["ours"] == {"seconds": 4}
    error = "ValueError: could not convert string to float: 'broken'"
    assert trial.figures["breaks"] == {"seconds": 1, "error": error}
    with pytest.raises(Failed, match="nothing succeeded: peer: ModuleNotFoundError"):
        _trial(tmp_path).note_rounds({"peer": unprepared})


def test_rounds_of_several_checks_are_merged(tmp_path):
    first, second = _trial(tmp_path), _trial(tmp_path)
    first.add_rounds({"ours": {"seconds": [1.0]}})
    first.add_rounds({"theirs": {"seconds": [2.0]}})
    second.add_rounds({"parity": {"levels": [0.0]}})
    expected = {"ours": {"seconds": [1]}, "theirs": {"seconds": [2]}, "parity": {"levels": [0]}}
    assert merged_rounds([first.figures, {}, second.figures]) == expected
