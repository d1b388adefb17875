"""Which workers end because their launch is over, and which go on; they are real processes, without Ray Train."""

import contextlib
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

from ray import cloudpickle

from cluster.launch import ray_launch
from cluster.launch.placement import Placement
from cluster.launch.ray_launch import RayCluster
from pipeline.paths import CHECKOUT

# Runs what Ray Train would run. It looks once for each byte that it is sent, and answers with one.
_WORKER = """
import contextlib, os, sys, threading, types
from ray import cloudpickle
from cluster.launch import ray_launch

def sleep(seconds):
    if not sys.stdin.buffer.read(1):
        os._exit(3)
    os.write(1, b".")

ray_launch.time = types.SimpleNamespace(sleep=sleep)
with contextlib.suppress(Exception):  # outside of Ray Train it has no rank
    cloudpickle.load(sys.stdin.buffer)()
threading.Event().wait()
"""
_MANY = 20


@pytest.fixture
def workers(monkeypatch):
    """Yield a function that starts a worker; they are ended at the end."""
    monkeypatch.setattr(ray_launch, "remove_placement_groups", lambda: None)
    with contextlib.ExitStack() as stack:

        def start(worker):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", _WORKER], cwd=CHECKOUT, **pipes))
            stack.callback(process.kill)
            process.stdin.write(cloudpickle.dumps(worker))
            process.stdin.flush()
            assert _goes_on(process, 3)
            return process

        yield start


def _goes_on(process, num_looks=_MANY):
    with contextlib.suppress(BrokenPipeError):
        os.write(process.stdin.fileno(), b"." * num_looks)  # not to the buffer, which would be written as it is closed
    return len(process.stdout.read(num_looks)) == num_looks


def _launched(how, folder, monkeypatch, fit):
    """Launch workers, and return what `fit` returns, which takes Ray Train's place."""
    results = []
    monkeypatch.setattr(
        ray_launch, "_trainer", lambda worker, *_: SimpleNamespace(fit=lambda: results.append(fit(worker)))
    )
    launch = how(RayCluster(None, "run", folder, fit_nodes=None), Placement(1, 1.0, 0))
    if launch is not None:
        launch.wait()
    return results[0]


@pytest.mark.slow  # 5 s
def test_an_evaluation_that_ends_leaves_the_workers_of_another_alone(workers, tmp_path, monkeypatch):
    def evaluate(worker):
        process = workers(worker)
        assert _launched(RayCluster.run, tmp_path, monkeypatch, lambda other: _goes_on(workers(other)))
        return _goes_on(process)

    assert _launched(RayCluster.run, tmp_path, monkeypatch, evaluate)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # 5 s
def test_an_evaluation_leaves_the_workers_of_a_training_alone(workers, tmp_path, monkeypatch):
    def train(worker):
        process = workers(worker)
        assert _launched(RayCluster.run, tmp_path, monkeypatch, lambda other: _goes_on(workers(other)))
        return _goes_on(process)

    assert _launched(RayCluster.start, tmp_path, monkeypatch, train)


@pytest.mark.parametrize("how", [RayCluster.start, RayCluster.run])
def test_files_that_vanish_end_no_worker(how, workers, tmp_path, monkeypatch):
    def train(worker):
        process = workers(worker)
        for path in tmp_path.iterdir():
            path.unlink()
        return _goes_on(process)

    assert _launched(how, tmp_path, monkeypatch, train)


def test_a_given_up_worker_ends_with_its_launch(workers, tmp_path, monkeypatch):
    given_up = _launched(RayCluster.start, tmp_path, monkeypatch, workers)
    assert not _goes_on(given_up) and given_up.wait() == 1


def test_the_next_launch_ends_the_workers_that_a_killed_driver_left(workers, tmp_path, monkeypatch):
    def train(worker):
        left = workers(worker)

        def train_again(other):  # the first driver never gets to its end
            others = workers(other)
            return _goes_on(others) and not _goes_on(left)

        return _launched(RayCluster.start, tmp_path, monkeypatch, train_again)

    assert _launched(RayCluster.start, tmp_path, monkeypatch, train)
