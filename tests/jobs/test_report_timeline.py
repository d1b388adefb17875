"""What a report reads from a run's logs: what counts after a resume, and the workers over time."""

import pytest
from reports import evaluation_line, line, logged_run, step_line

from cluster.run.run_log import read_launches, read_metrics
from jobs.reporting.reading import read_record, read_records
from jobs.reporting.timeline import Stretch, read_timeline
from pipeline.command import InputError

METRICS = [
    line("start", 10, step=0, world_size=2),
    step_line(4, 20),
    line("start", 40, step=2, world_size=1),
    line("resume", 40, step=2, num_rolled_back=2),
    step_line(3, 50),
    line("stop", 60, step=3),
    line("start", 70, step=3, world_size=3),
    step_line(10, 100),
]
LAUNCHES = [
    line("launch", 0, num_workers=2),
    line("lost", 30, cause="node a died", step=2),
    line("launch", 31, num_workers=1),
    line("resize", 58, num_workers=3),
    line("launch", 61, num_workers=3),
    line("finish", 101),
]


def _timeline(tmp_path, metrics, launches):
    for name, lines in (("metrics.jsonl", metrics), ("launches.jsonl", launches)):
        (tmp_path / name).write_text("\n".join(lines))
    return read_timeline(read_metrics(tmp_path / "metrics.jsonl"), read_launches(tmp_path / "launches.jsonl"))


def test_losses_and_joins_are_found(tmp_path):
    timeline = _timeline(tmp_path, METRICS, LAUNCHES)
    assert timeline.stretches == [Stretch(10, 30, 2), Stretch(40, 60, 1), Stretch(70, 100, 3)]
    assert [(event.seconds, event.kind, event.text) for event in timeline.events] == [
        (10, "begin", "2 workers begin"),
        (30, "lost", "workers lost: node a died; on from step 2"),
        (40, "fewer", "1 worker, 1 fewer, from step 2"),
        (70, "joined", "2 joined: 3 workers, from step 3"),
        (101, "finish", "finished"),
    ]
    assert (timeline.training_seconds, timeline.wall_seconds) == (70, 101)


@pytest.mark.parametrize("asked", [[line("stop", 5.5)], []], ids=["on Ray", "elsewhere"])
def test_a_stop_on_request_is_no_resize(asked, tmp_path):
    metrics = [line("start", 1, step=0, world_size=2), step_line(4, 5), line("stop", 6, step=4)]
    timeline = _timeline(tmp_path, metrics, [line("launch", 0, num_workers=2), *asked])
    assert [(event.kind, event.text) for event in timeline.events][1:] == [("stop", "stopped on request at step 4")]
    resumed = [*metrics, line("start", 90, step=4, world_size=2), step_line(5, 95)]
    timeline = _timeline(tmp_path, resumed, [line("launch", 0, num_workers=2), *asked])
    assert timeline.events[-1].text == "2 workers again, from step 4"
    assert timeline.training_seconds == 10


def test_workers_that_were_killed_with_their_launcher_were_lost_at_their_last_sign(tmp_path):
    metrics = [
        line("start", 1, step=0, world_size=2),
        step_line(4, 5),
        line("warning", 58, message="a checkpoint is torn"),  # what the next launch says before its workers start
        line("resume", 59, step=3, num_rolled_back=1),
        line("start", 60, step=3, world_size=2),
        step_line(5, 70),
    ]
    launches = [line("launch", 0, num_workers=2), line("launch", 55, num_workers=2), line("finish", 71)]
    timeline = _timeline(tmp_path, metrics, launches)
    assert timeline.stretches == [Stretch(1, 5, 2), Stretch(60, 70, 2)]
    assert [(event.seconds, event.kind, event.text) for event in timeline.events][1:] == [
        (5, "lost", "workers lost without notice; on from step 3"),
        (60, "resumed", "2 workers again, from step 3"),
        (71, "finish", "finished"),
    ]


def test_an_error_ends_the_timeline_and_a_resume_goes_on(tmp_path):
    metrics = [line("start", 1, step=0, world_size=1), line("failure", 9, step=1200, message="the loss became NaN")]
    timeline = _timeline(tmp_path, metrics, [line("launch", 0, num_workers=1)])
    assert timeline.stretches == [Stretch(1, 9, 1)]
    assert timeline.events[-1].kind == "failed"
    assert timeline.events[-1].text == "ended by an error at step 1,200: the loss became NaN"
    resumed = _timeline(tmp_path, [*metrics, line("start", 20, step=0, world_size=1)], [])
    assert [event.kind for event in resumed.events] == ["begin", "failed", "resumed"]


def test_logs_without_times_have_no_timeline(tmp_path):
    untimed = ['{"kind": "start", "step": 0, "world_size": 2}', '{"kind": "stop", "step": 1}']
    assert _timeline(tmp_path, untimed, []).stretches == []


def test_what_a_resume_rolled_back_does_not_count(raw_dataset, tmp_path):
    lines = [
        *METRICS[:2],
        evaluation_line(4, 21, 0.9),
        *METRICS[2:5],
        evaluation_line(3, 55, 0.2),
        step_line(10, 100, [2.0] * 7, images_per_second=60.0),
        evaluation_line(10, 101, 0.4),
        evaluation_line(10, 102, 0.3),  # made again at the same step
    ]
    record = read_record(logged_run(tmp_path, raw_dataset, lines, LAUNCHES).path, "run")
    assert [step.step for step in record.steps] == [3, 10]
    assert [(one.step, one.top1) for one in record.evaluations] == [(3, 0.2), (10, 0.3)]
    assert record.best.step == 10 and record.last.step == 10
    assert record.images_per_second == 60 and record.step_seconds == pytest.approx(12 / 60)  # 7 of 8 steps
    assert record.num_steps == 10 and record.is_finished


def test_runs_are_named_by_what_tells_them_apart(raw_dataset, tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for path in paths:
        logged_run(path, raw_dataset, METRICS[:2])
    assert [record.label for record in read_records(paths)] == ["a/run", "b/run"]
    assert [record.label for record in read_records(paths[:1])] == ["run"]
    with pytest.raises(InputError, match="is named twice"):
        read_records([paths[0], paths[1], tmp_path / "b" / ".." / "a" / "run"])
    with pytest.raises(InputError, match=r"9 runs are named, .* at most 8"):
        read_records([tmp_path / str(index) for index in range(9)])
