"""What is asked of Ray Train, and how its failures are told apart; no Ray is started."""

import atexit
import os

import pytest

pytest.importorskip("ray")

import ray
from ray import cloudpickle
from ray.train import ControllerError, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from cluster import ray_launch
from cluster.placement import Placement
from cluster.ray_launch import RayCluster, _explained, _trainer
from cluster.stopping import StopRequest
from cluster.supervisor import WorkersLost
from pipeline.command import InputError

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234. Why"
BUG = RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")
DIED = ray.exceptions.ActorDiedError()


@pytest.mark.parametrize("strategy", ["pack", "spread"])
def test_ray_gets_the_placement_and_no_retries(tmp_path, strategy):
    trainer = _trainer(lambda: None, Placement(3, 2.0, 0, strategy), "run", str(tmp_path))
    scaling, failures = trainer.scaling_config, trainer.run_config.failure_config
    assert (scaling.num_workers, scaling.placement_strategy) == (3, strategy.upper())
    assert scaling.resources_per_worker == {"CPU": 2.0} and not scaling.use_gpu
    assert failures.max_failures == failures.controller_failure_limit == failures.max_preemption_failures == 0
    assert trainer.run_config.worker_runtime_env["env_vars"]["OMP_NUM_THREADS"] == "2"


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # Ray's own, of Ray's own settings
def test_no_actor_is_started_that_serves_nothing(tmp_path):
    callbacks = _trainer(lambda: None, Placement(2, 1.0, 0), "run", str(tmp_path))._create_default_callbacks()
    names = {type(callback).__name__ for callback in callbacks}
    assert "BackendSetupCallback" in names and not names & {"DatasetsCallback", "PlacementGroupCleanerCallback"}


def test_the_controller_asks_no_autoscaler_and_does_not_linger(tmp_path, monkeypatch):
    given, at_exit = {}, []
    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", lambda _, **arguments: given.update(arguments))
    monkeypatch.setattr(atexit, "register", lambda *call: at_exit.append(call))
    trainer = _trainer(lambda: None, Placement(2, 1.0, 0), "run", str(tmp_path))
    trainer._initialize_and_run_controller(scaling_policy=FixedScalingPolicy(ScalingConfig(num_workers=2)))
    policy = cloudpickle.loads(cloudpickle.dumps(given["scaling_policy"]))  # as it comes to the controller
    policy.after_controller_start(None)
    assert at_exit == [(os._exit, 0)]
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2  # and needs no coordinator


def test_a_gpu_takes_nccl_and_talks_over_gloo(tmp_path):
    trainer = _trainer(lambda: None, Placement(2, 4.0, 1), "run", str(tmp_path))
    assert trainer.scaling_config.resources_per_worker == {"CPU": 4.0, "GPU": 1.0}
    assert trainer.backend_config.backend == "cpu:gloo,cuda:nccl"


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ([RuntimeError(GLOO)], r"a worker was lost \(Connection closed by peer \[127\.0\.0\.1\]:1234\)$"),
        ([RuntimeError(GLOO), DIED], r"a worker was lost \(The actor died unexpectedly before finishing this task"),
        ([WorkerHealthCheckFailedError("A worker health check failed.", DIED)], r"lost \(The actor died unexpectedly"),
    ],
)
def test_a_lost_process_is_told_from_its_traces(failures, message):
    lost = _explained(WorkerGroupError("..", dict(enumerate(failures))))
    assert isinstance(lost, WorkersLost)
    with pytest.raises(WorkersLost, match=message):
        raise lost


def test_a_cluster_without_room_is_told():
    lost = _explained(ControllerError(WorkerGroupStartupTimeoutError(2)))
    assert isinstance(lost, WorkersLost) and "gave no room to the workers in time" in str(lost)


@pytest.mark.parametrize("beside", [RuntimeError(GLOO), DIED])
def test_errors_of_ours_win_over_what_they_bring_about(beside):
    refused = InputError("the loss is no number any more")
    assert _explained(WorkerGroupError("..", {0: beside, 1: refused})) is refused
    full = _explained(WorkerGroupError("..", {0: OSError(28, "No space left on device", "RUN/ledger"), 1: beside}))
    assert isinstance(full, InputError) and not isinstance(full, WorkersLost)
    assert "No space left on device: 'RUN/ledger'" in str(full)
    bug = WorkerGroupError("..", {0: beside, 1: BUG})
    assert _explained(bug) is bug


def test_nodes_are_asked_once(tmp_path, monkeypatch):
    nodes, asked = [{"NodeID": "a", "Alive": True}], []
    monkeypatch.setattr(ray_launch.ray, "nodes", lambda: nodes)
    placement = Placement(1, 1.0, 0)
    cluster = RayCluster(print, "run", StopRequest(tmp_path / "stop-request"), asked.append)
    cluster.check(placement)
    cluster.check(placement)
    assert asked == [placement]
    nodes.append({"NodeID": "b", "Alive": True})
    cluster.check(placement)
    assert asked == [placement] * 2
