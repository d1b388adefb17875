"""A run on a cluster that loses and gains workers, with a cluster of ours in place of Ray."""

import errno
import json
import threading
from pathlib import Path

import pytest
from runs import CONFIG

from cluster.launch import supervisor
from cluster.launch.placement import WorkerRange, place_workers
from cluster.launch.supervisor import MAX_RESTARTS, WorkersLost, supervise
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Lost, RunLog
from pipeline.command import Terminated, UserError


@pytest.fixture
def run(raw_dataset, tmp_path, monkeypatch) -> RunFolder:
    monkeypatch.setattr(supervisor, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(supervisor, "_SETTLE_SECONDS", 0.0)
    return RunFolder.create(tmp_path / "run", CONFIG, raw_dataset)


class FakeCluster:
    """Nodes of one CPU, and launches that do what a script says.

    Args:
        run: That the launches belong to.
        script: For each launch what happens: a list of callables, one a poll; the launch ends when one returns True.
        num_nodes: That are fit, at first.
    """

    def __init__(self, run, script, num_nodes=2):
        self.run, self.num_nodes, self.launches, self.num_looks = run, num_nodes, [], 0
        self._script = iter(script)

    def place(self, place, wait_seconds):
        self.num_looks += 1
        return place([{"CPU": 1.0}] * self.num_nodes)

    def start(self, placement):
        self.launches.append(placement.num_workers)
        self._polls = iter(next(self._script))
        return self

    def wait(self, seconds=None):
        return next(self._polls)(self)


def goes_on(cluster):
    with open(cluster.run.metrics_path, "a") as log:
        log.write("a line\n")
    return False


def reaches(step):
    def poll(cluster):
        cluster.run.checkpoints.save({"step": step}, step)
        return False

    return poll


def loses_a_node(cluster):
    cluster.num_nodes -= 1
    raise WorkersLost("a worker was lost (its node died)")


def loses_a_worker(cluster):
    raise WorkersLost("a worker was lost (killed)")


def gains_a_node(cluster):
    cluster.num_nodes += 1
    return False


def stops_if_asked(cluster):
    assert cluster.run.stop_request.is_made()
    return True


def finishes(cluster):
    assert not cluster.run.stop_request.is_made()
    cluster.run.finish({"num_steps": 10, "best_val_top1": None})
    return True


def supervised(run, cluster, workers="1:2"):
    log, allowed = RunLog(run.launches_path), WorkerRange.parse(workers)
    try:
        supervise(run, log, cluster, lambda nodes: place_workers(nodes, allowed, None), allowed.most)
    finally:
        log.close()
    return cluster.launches


def events(run):
    entries = [json.loads(line) for line in run.launches_path.read_text().splitlines()]
    return [entry["kind"] for entry in entries]


def test_a_quiet_run_is_launched_once(run):
    assert supervised(run, FakeCluster(run, [[goes_on, finishes]])) == [2]
    assert events(run) == ["launch", "finish"]


def test_a_lost_node_shrinks_the_run_and_a_new_one_grows_it_at_a_checkpoint(run, capsys):
    cluster = FakeCluster(
        run,
        [
            [goes_on, reaches(4), loses_a_node],
            [goes_on, gains_a_node, goes_on, goes_on, stops_if_asked],
            [finishes],
        ],
    )
    assert supervised(run, cluster) == [2, 1, 2]
    assert events(run) == ["launch", "lost", "launch", "resize", "launch", "finish"]
    shown = capsys.readouterr().out
    assert "its node died); going on from step 4" in shown and "the cluster holds 2 workers now" in shown


def test_a_run_does_not_grow_before_its_workers_have_begun(run):
    nothing_yet = [gains_a_node, *[lambda cluster: False] * 20]
    assert supervised(run, FakeCluster(run, [[*nothing_yet, finishes]], num_nodes=1)) == [1]
    assert "resize" not in events(run)


def test_a_node_that_joins_before_the_workers_have_begun_is_taken_in_afterwards(run):
    nothing_yet = [gains_a_node, *[lambda cluster: False] * 20]
    cluster = FakeCluster(run, [[*nothing_yet, goes_on, goes_on, stops_if_asked], [finishes]], num_nodes=1)
    assert supervised(run, cluster) == [1, 2]


def test_a_run_of_a_fixed_number_waits_for_a_replacement(run, monkeypatch):
    cluster = FakeCluster(run, [[reaches(4), loses_a_node], [finishes]])
    monkeypatch.setattr(supervisor.time, "sleep", lambda seconds: gains_a_node(cluster))
    assert supervised(run, cluster, workers="2") == [2, 2]


def test_waiting_for_nodes_ends(run, monkeypatch):
    monkeypatch.setattr(supervisor, "_PATIENCE_SECONDS", 0.01)
    cluster = FakeCluster(run, [[reaches(4), loses_a_node]])
    with pytest.raises(UserError, match="can't hold 2 workers"):
        supervised(run, cluster, workers="2")


def test_nodes_are_waited_for_only_where_others_may_come(run, monkeypatch):
    def refuses(place, wait_seconds):
        cluster.num_looks += 1
        raise UserError("no nodes would do")

    def loses_for_good(_):
        cluster.place = refuses
        return loses_a_worker(cluster)

    monkeypatch.setattr(supervisor, "_PATIENCE_SECONDS", 0.01)
    cluster = FakeCluster(run, [[reaches(4), loses_for_good]])
    with pytest.raises(UserError, match="no nodes would do"):
        supervised(run, cluster)
    assert cluster.num_looks == 2


def test_losses_without_a_checkpoint_between_end_the_run(run):
    cluster = FakeCluster(run, [[goes_on, loses_a_worker]] * 10)
    with pytest.raises(UserError, match=r"4 launches in a row .*--checkpoint-interval"):
        supervised(run, cluster)
    assert len(cluster.launches) == MAX_RESTARTS + 1


def test_losses_with_progress_are_retried_for_ever(run):
    cluster = FakeCluster(run, [*([reaches(4 * n), loses_a_worker] for n in range(1, 11)), [finishes]])
    assert len(supervised(run, cluster)) == 11


def test_an_exception_of_ours_ends_the_run_at_once(run):
    def refuses(cluster):
        raise UserError("the loss became NaN or infinite")

    cluster = FakeCluster(run, [[goes_on, refuses]])
    with pytest.raises(UserError, match="NaN or infinite"):
        supervised(run, cluster)
    assert cluster.launches == [2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated])
def test_a_stopped_run_ends_at_a_checkpoint(run, error):
    def interrupted(cluster):
        raise error

    cluster = FakeCluster(run, [[goes_on, interrupted, stops_if_asked]])
    with pytest.raises(error):
        supervised(run, cluster)
    assert events(run) == ["launch", "stop"]


def test_a_run_that_has_not_begun_is_stopped_at_once(run):
    def interrupted(cluster):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervised(run, FakeCluster(run, [[interrupted]]))  # a further poll would end the script
    assert not run.stop_request.is_made()


def test_too_few_fit_nodes_at_first_end_the_run(run):
    with pytest.raises(UserError, match="can't hold 2 workers"):
        supervised(run, FakeCluster(run, [], num_nodes=1), workers="2")


@pytest.mark.parametrize("workers", ["2", "1:2"])
def test_a_launch_of_as_many_workers_as_are_allowed_looks_at_no_node(run, workers):
    cluster = FakeCluster(run, [[goes_on] * 20 + [finishes]])
    assert supervised(run, cluster, workers) == [2]
    assert cluster.num_looks == 1


@pytest.fixture
def broken_disk(monkeypatch):
    """Lets the next reads of a file, named by its suffix, fail with an error."""
    failures, read_text = [], Path.read_text

    def failing(path, *arguments, **options):
        if failures and path.name == "result.json":
            raise failures.pop()
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", failing)
    return failures


def test_a_file_system_that_is_out_of_reach_for_a_while_does_not_end_the_run(run, broken_disk, capsys):
    def finishes_unseen(cluster):
        broken_disk.extend(OSError(code, "out of reach", "RUN") for code in (errno.ESTALE, errno.EIO, errno.ETIMEDOUT))
        return finishes(cluster)

    assert supervised(run, FakeCluster(run, [[goes_on, finishes_unseen]])) == [2]
    assert broken_disk == [] and capsys.readouterr().out.count("out of reach: RUN; trying again for up to") == 1


def test_an_error_of_the_run_folder_that_lasts_ends_the_run_with_the_way_out(run, broken_disk):
    def finishes_unseen(cluster):
        broken_disk.append(OSError(errno.EACCES, "Permission denied", "RUN"))
        return finishes(cluster)

    with pytest.raises(UserError, match=r"^Permission denied: RUN; give the user .+ the same command goes on from"):
        supervised(run, FakeCluster(run, [[goes_on, finishes_unseen]]))


def test_a_log_of_launches_that_can_not_be_written_for_a_while_does_not_end_the_run(run, monkeypatch, capsys):
    write = RunLog.write

    def fails(log, line):
        if isinstance(line, Lost):
            raise OSError(errno.ESTALE, "Stale file handle")
        write(log, line)

    monkeypatch.setattr(RunLog, "write", fails)
    assert supervised(run, FakeCluster(run, [[goes_on, reaches(4), loses_a_worker], [finishes]])) == [2, 2]
    assert events(run) == ["launch", "launch", "finish"]
    assert "launches.jsonl lacks `lost`: Stale file handle" in capsys.readouterr().out


def test_a_launch_that_ended_well_forgets_the_losses_before(run):
    unlucky = [goes_on, loses_a_worker]
    grown = [goes_on, gains_a_node, goes_on, goes_on, stops_if_asked]
    script = [unlucky, unlucky, unlucky, grown, unlucky, unlucky, unlucky, [finishes]]
    assert supervised(run, FakeCluster(run, script, num_nodes=1)) == [1, 1, 1, 1, 2, 2, 2, 2]


def test_a_signal_during_the_last_step_does_not_undo_the_end(run):
    def interrupted(cluster):
        raise Terminated

    def finishes_all_the_same(cluster):
        cluster.run.finish({"num_steps": 10, "best_val_top1": None})
        return True

    supervised(run, FakeCluster(run, [[goes_on, interrupted, finishes_all_the_same]]))
    assert events(run) == ["launch", "stop", "finish"]


def test_a_result_that_is_seen_late_is_waited_for(run):
    def ends(cluster):
        threading.Timer(0.2, cluster.run.finish, [{"num_steps": 10, "best_val_top1": None}]).start()
        return True

    assert supervised(run, FakeCluster(run, [[goes_on, ends]])) == [2]


def test_a_run_has_one_supervisor(run):
    log = RunLog(run.launches_path)
    with pytest.raises(UserError, match="is being written by another job"):
        supervised(run, FakeCluster(run, []))
    log.close()
