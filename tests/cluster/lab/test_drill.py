"""The kill drill: its plan, its table, each finding on a run that was tampered with; and a short one for real."""

import collections
import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import ALONE, CONFIG

from cluster import drill
from cluster.lab.drill import judge
from cluster.lab.drill_report import Outage, format_table, judge_restarts, judge_weights, plan, weight_difference
from cluster.lab.local_ray import environment
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Resumed, Started, Warned, only, read_metrics
from cluster.worker.training import Trainer
from pipeline.command import InputError
from pipeline.paths import CHECKOUT
from pipeline.system.files import write_json


def test_the_plan_is_a_function_of_the_seed():
    kinds = ("worker", "node", "driver") * 50
    planned = plan(kinds, seed=1)
    assert planned == plan(kinds, seed=1) != plan(kinds, seed=2)
    assert [p.event for p in planned[:4]] == ["worker", "node", "join", "driver"]
    fractions = np.array([p.fraction for p in planned])
    assert fractions.min() >= 0 and fractions.max() < 1 and fractions.std() > 0.2
    chosen = collections.Counter(p.choose(2) for p in planned)
    assert set(chosen) == {0, 1} and min(chosen.values()) > 50


def test_the_table_tells_what_each_event_cost():
    outage = Outage(
        event="replaced-node",
        step=120,
        at_seconds=61.3,
        noticed_seconds=2.44,
        first_step_seconds=14.06,
        all_workers_seconds=33.3,
        resumed_steps=(110, 130),
        num_recomputed_steps=7,
        num_workers=(2, 1, 2),
    )
    head, line, row = format_table([outage]).splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        *("node lost, another joins", "step 120, 61 s", "2.4 s", "14.1 s", "33.3 s", "110, 130", "7", "2 -> 1 -> 2"),
    ]
    assert len(head) == len(line) == len(row) and head.count("|") == row.count("|")


GOOD = [
    Started(step=0, world_size=2),
    Warned(message="something"),
    Resumed(step=20, num_rolled_back=10),
    Started(step=20, world_size=1),
]


def test_restarts_at_checkpoints_are_good():
    assert judge_restarts(GOOD, checkpoint_interval=10) == []


@pytest.mark.parametrize(
    ("lines", "finding"),
    [
        ([*GOOD, Started(step=0, world_size=1)], "restart 2 began at step 0"),
        ([*GOOD, Resumed(step=30, num_rolled_back=11)], "resume from step 30 undid 11 steps"),
        (GOOD[1:], "did not begin at step 0"),
        ([], "did not begin at step 0"),
    ],
)
def test_a_bad_restart_is_found(lines, finding):
    (found,) = judge_restarts(lines, checkpoint_interval=10)
    assert finding in found


def test_weights_are_compared_tensor_by_tensor():
    reference = {"large": torch.tensor([1e3, 1.0], dtype=torch.float64), "small": torch.tensor([1e-3, 0.0])}
    assert weight_difference(reference, reference) == 0
    changed = reference | {"small": torch.tensor([1e-3, 1e-8])}
    assert weight_difference(reference, changed) == pytest.approx(1e-5, rel=1e-3)
    assert judge_weights(9e-7) == []
    assert "differ from the undisturbed run's by 1.1e-06" in judge_weights(1.1e-6)[0]
    assert judge_weights(weight_difference(reference, reference | {"small": torch.tensor([torch.nan, 0.0])}))
    with pytest.raises(ValueError, match="other tensors"):
        weight_difference(reference, {"large": reference["large"]})


@pytest.fixture(scope="module")
def reference(raw_dataset, tmp_path_factory) -> RunFolder:
    run = RunFolder.create(tmp_path_factory.mktemp("drill") / "undisturbed", CONFIG, raw_dataset)
    trainer = Trainer(raw_dataset, run, ALONE)
    trainer.run()
    trainer.close()
    return run


@pytest.fixture
def run(reference, tmp_path) -> RunFolder:
    return RunFolder.open(shutil.copytree(reference.path, tmp_path / "run"))


def test_an_equal_run_is_proven(reference, run):
    proof, findings = judge(reference, run)
    assert findings == []
    assert proof["largest_weight_difference"] == 0 and "without gap" in proof["ledger"]


def _change_weights(run: RunFolder, factor: float) -> None:
    state = run.checkpoints.load_latest()
    for value in state["model"].values():
        value *= factor
    shutil.rmtree(run.path / "checkpoints")
    run.checkpoints.save(state, state["step"])


def test_other_weights_are_found(reference, run):
    _change_weights(run, 1 + 1e-8)
    assert judge(reference, run)[1] == []
    _change_weights(run, 1 + 1e-5)
    (finding,) = judge(reference, run)[1]
    assert "the final weights differ" in finding


def test_missing_weights_are_found(reference, run):
    shutil.rmtree(run.path / "checkpoints")
    assert "a run has no checkpoint to compare the weights of" in judge(reference, run)[1]


def test_a_bad_restart_in_the_log_is_found(reference, run):
    with open(run.metrics_path, "a") as file:
        file.write(json.dumps({"kind": "start", "step": 0, "world_size": 1}) + "\n")
    assert "began at step 0" in judge(reference, run)[1][0]


def test_another_order_is_found(reference, run, raw_dataset, tmp_path):
    other = RunFolder.create(tmp_path / "other", dataclasses.replace(CONFIG, seed=1), raw_dataset)
    trainer = Trainer(raw_dataset, other, ALONE)
    trainer.run()
    trainer.close()
    findings = judge(reference, other)[1]
    assert len(findings) == 2 and "the runs differ from position 0 on" in findings[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere"], "/nowhere does not exist"),
        (["--data", "{data}", "--out", "{data}"], "is not empty"),
    ],
)
def test_wrong_input_is_refused(arguments, message, raw_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match=message):
        drill.main([argument.format(data=raw_dataset.path) for argument in arguments])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--events"], ["--global-batch-size", "0"], ["--checkpoint-interval", "0"]])
def test_a_wrong_option_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        drill.main(arguments)
    assert ended.value.code == 2
    assert "must be at least" in capsys.readouterr().err


def _drill(data: Path, out: Path, exchange: str, *events: str) -> dict:
    """Drill, and return the report."""
    command = [sys.executable, "-m", "cluster.drill", "--data", str(data), "--out", str(out), "--events", *events]
    command += ["--exchange", exchange, "--minutes", "8"]
    answer = subprocess.run(command, cwd=CHECKOUT, env=environment(), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    report = json.loads((out / "drill.json").read_text())
    assert all(event["noticed_seconds"] < 10 for event in report["events"])
    assert min(step for event in report["events"] for step in event["resumed_steps"]) >= 5  # the first checkpoint
    assert report["findings"] == []
    assert report["proof"]["largest_weight_difference"] < 1e-6
    return report


@pytest.mark.slow
@pytest.mark.timeout(540)
def test_a_short_drill(raw_dataset, tmp_path):
    report = _drill(raw_dataset.path, tmp_path / "out", "allreduce", "worker", "replaced-node", "driver")
    assert [event["event"] for event in report["events"]] == ["worker", "replaced-node", "driver"]


@pytest.mark.slow
@pytest.mark.timeout(540)
def test_a_drill_with_shared_out_weights_and_fewer_workers(raw_dataset, tmp_path):
    report = _drill(raw_dataset.path, tmp_path / "out", "hybrid", "worker", "node")
    assert [event["event"] for event in report["events"]] == ["worker", "node", "join"]
    starts = only(Started, read_metrics(RunFolder.open(tmp_path / "out" / "run").metrics_path))
    assert {(start.world_size, start.exchange) for start in starts} == {(2, "hybrid"), (1, "allreduce")}


def test_weights_that_became_nan_are_found_and_their_difference_is_json(reference, run, tmp_path):
    _change_weights(run, math.nan)
    proof, (finding,) = judge(reference, run)
    assert "the final weights differ from the undisturbed run's by nan" in finding
    write_json(tmp_path / "drill.json", proof)
    assert proof["largest_weight_difference"] is None
