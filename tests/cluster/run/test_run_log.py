"""The lines of a run's logs: what stands in the files stays what it was, and is read back as it was written."""

import json
import re
import time

import pytest

from cluster.run.run_log import (
    Changed,
    DecodingChosen,
    Evaluated,
    Failed,
    Finished,
    Launched,
    Line,
    Lost,
    Resizing,
    Resumed,
    RunLog,
    Stalled,
    Started,
    Steps,
    Stopped,
    Stopping,
    Warned,
    only,
    read_launches,
    read_metrics,
)
from pipeline.paths import CHECKOUT

STEPS = Steps(
    step=2,
    samples_seen=24,
    epoch=0.5,
    loss=1.5,
    top1=0.25,
    learning_rate=0.01,
    images_per_second=100.0,
    data_wait_fraction=0.1,
    forward_fraction=0.2,
    backward_fraction=0.4,
    update_fraction=0.25,
    eta_seconds=60.0,
    losses=[2.0, 1.0],
)
METRICS: list[tuple[Line, str]] = [
    (
        Started(step=0, world_size=2, exchange="factors"),
        '{"kind": "start", "step": 0, "world_size": 2, "exchange": "factors", "time": ',
    ),
    (
        DecodingChosen(decode="split", gpu_share=0.25, hw_decoder_load=1.0),
        '{"kind": "decoding", "decode": "split", "gpu_share": 0.25, "hw_decoder_load": 1.0, "time": ',
    ),
    (
        STEPS,
        '{"kind": "step", "step": 2, "samples_seen": 24, "epoch": 0.5, "loss": 1.5, "top1": 0.25, '
        '"learning_rate": 0.01, "images_per_second": 100.0, "data_wait_fraction": 0.1, "forward_fraction": 0.2, '
        '"backward_fraction": 0.4, "update_fraction": 0.25, "eta_seconds": 60.0, "losses": [2.0, 1.0], "time": ',
    ),
    (
        Evaluated(step=2, split="val", num_samples=10, loss=1.5, top1=0.1, top5=0.5),
        '{"kind": "evaluation", "step": 2, "split": "val", "num_samples": 10, "loss": 1.5, "top1": 0.1, "top5": 0.5, ',
    ),
    (
        Stalled(step=2, num_reductions=1, is_over=False),
        '{"kind": "plateau", "step": 2, "num_reductions": 1, "is_over": false, "time": ',
    ),
    (Warned(message="a sample"), '{"kind": "warning", "message": "a sample", "time": '),
    (Resumed(step=2, num_rolled_back=7), '{"kind": "resume", "step": 2, "num_rolled_back": 7, "time": '),
    (Failed(step=2, message="NaN"), '{"kind": "failure", "step": 2, "message": "NaN", "time": '),
    (Stopped(step=2), '{"kind": "stop", "step": 2, "time": '),
]
LAUNCHES: list[tuple[Line, str]] = [
    (Launched(num_workers=2), '{"kind": "launch", "num_workers": 2, "time": '),
    (Lost(cause="SIGBUS", step=5), '{"kind": "lost", "cause": "SIGBUS", "step": 5, "time": '),
    (
        Changed(changes={"checkpoint_interval": [500, 100]}),
        '{"kind": "change", "checkpoint_interval": [500, 100], "time": ',
    ),
    (Resizing(num_workers=3), '{"kind": "resize", "num_workers": 3, "time": '),
    (Stopping(), '{"kind": "stop", "time": '),
    (Finished(), '{"kind": "finish", "time": '),
]


@pytest.mark.parametrize(("pairs", "read"), [(METRICS, read_metrics), (LAUNCHES, read_launches)])
def test_each_line_stands_in_the_file_as_before_and_is_read_back(pairs, read, tmp_path):
    began, log = time.time(), RunLog(tmp_path / "log.jsonl")
    for line, _ in pairs:
        log.write(line)
    log.close()
    texts = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [text.startswith(start) for text, (_, start) in zip(texts, pairs, strict=True)] == [True] * len(pairs)
    lines = read(tmp_path / "log.jsonl")
    assert lines == [line for line, _ in pairs]
    assert all(began - 0.01 <= line.time <= time.time() + 0.01 for line in lines)


def test_lines_that_are_torn_or_of_a_later_version_are_passed_over(tmp_path):
    path = tmp_path / "log.jsonl"
    whole = json.dumps({"kind": "stop", "step": 3, "later": 1, "time": 2.5})
    path.write_text(f'{whole}\n{{"kind": "st\n[]\n{{"step": 1}}\n{{"kind": "later"}}\n{{"kind": "stop"}}\n')
    assert read_metrics(path) == [Stopped(step=3)] and read_metrics(path)[0].time == 2.5
    assert read_metrics(tmp_path / "absent") == []


def test_a_resume_that_an_older_version_logged_counts(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"kind": "resume", "step": 500}\n')
    assert read_metrics(tmp_path / "log.jsonl") == [Resumed(step=500, num_rolled_back=0)]


def test_lines_of_one_kind_are_picked():
    assert only(Stopped, [Started(step=0, world_size=1), Stopped(step=1), Stopped(step=2)]) == [
        Stopped(step=1),
        Stopped(step=2),
    ]


def test_no_other_module_knows_the_files():
    packages = ("pipeline", "model", "cluster", "jobs", "benchmarks")
    modules = [path for package in packages for path in (CHECKOUT / package).rglob("*.py")]
    mentions = [p for p in modules if re.search(r"\"(metrics|launches)\.jsonl\"", p.read_text())]
    assert mentions == [CHECKOUT / "cluster" / "run" / "run_log.py"]
