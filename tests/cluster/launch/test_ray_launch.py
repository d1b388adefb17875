"""What is asked of Ray Train, and how its failures are told apart; no Ray is started."""

import errno
import os

import pytest

pytest.importorskip("ray")

import ray
from ray.train import ControllerError, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

from cluster.launch import ray_launch
from cluster.launch.placement import Placement
from cluster.launch.ray_failures import explained
from cluster.launch.ray_launch import RayCluster, _trainer
from cluster.launch.supervisor import WorkersLost
from pipeline.command import UserError

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
    lost = explained(WorkerGroupError("..", dict(enumerate(failures))))
    assert isinstance(lost, WorkersLost)
    with pytest.raises(WorkersLost, match=message):
        raise lost


def test_a_wrong_interface_ends_a_run_at_once_and_is_named(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no0")
    text = "\x1b[36mray::execute()\x1b[39m (pid=1)\n  File x\nRuntimeError: [enforce fail at a.cc:84] ifa != nullptr. "
    refused = explained(_worker_failed(RuntimeError(f"{text}Unable to find address for: no0")))
    assert isinstance(refused, UserError) and not isinstance(refused, WorkersLost)
    assert "(ifa != nullptr. Unable to find address for: no0); GLOO_SOCKET_IFNAME=no0 say how" in str(refused)


def test_of_a_traceback_the_cause_is_told():
    error = ray.exceptions.RayTaskError("execute", "ray::execute()\n  File x\nModuleNotFoundError: no module x", None)
    assert str(explained(_worker_failed(error))) == "a worker was lost (ModuleNotFoundError: no module x)"


def test_ray_is_given_a_name_that_every_locale_has(tmp_path):
    trainer = _trainer(lambda: None, Placement(1, 1.0, 0), "lauf-\u00fc [1] 'q'", str(tmp_path))
    assert trainer.run_config.name == "lauf-___1___q_"


def test_a_cluster_without_room_is_told():
    lost = explained(ControllerError(WorkerGroupStartupTimeoutError(2)))
    assert isinstance(lost, WorkersLost) and "gave no room to the workers in time" in str(lost)


@pytest.mark.parametrize("beside", [RuntimeError(GLOO), DIED])
def test_errors_of_ours_win_over_what_they_bring_about(beside):
    refused = UserError("the loss became NaN or infinite")
    assert explained(WorkerGroupError("..", {0: beside, 1: refused})) is refused
    full = explained(WorkerGroupError("..", {0: OSError(28, "No space left on device", "RUN/ledger"), 1: beside}))
    assert isinstance(full, UserError) and not isinstance(full, WorkersLost)
    assert "No space left on device: RUN/ledger; free some" in str(full)
    bug = WorkerGroupError("..", {0: beside, 1: BUG})
    assert explained(bug) is bug


def _worker_failed(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("..", dict(enumerate(failures)))


@pytest.mark.parametrize(
    ("code", "way_out"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "give the user"),
        (errno.EPERM, "give the user"),
        (errno.EROFS, "mount its file system for writing"),
        (errno.EFBIG, "ulimit -f"),
        (errno.ENAMETOOLONG, "shorter path"),
        (errno.ENOTDIR, "another folder"),
        (errno.EISDIR, "another folder"),
        (errno.ELOOP, "symbolic links"),
        (errno.ENOLCK, "file locks"),
        (errno.ENOSYS, "file locks"),
        (errno.EOPNOTSUPP, "file locks"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_an_error_of_the_system_that_lasts_ends_the_run_with_the_way_out(code, way_out):
    told = explained(_worker_failed(OSError(code, os.strerror(code), "RUN/x"), DIED), "SIGABRT")
    assert isinstance(told, UserError) and not isinstance(told, WorkersLost)
    assert f"a worker met: {os.strerror(code)}: RUN/x; " in str(told) and way_out in str(told)
    assert str(told).endswith("the same command goes on from the latest checkpoint")


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(code, os.strerror(code), "RUN/x") for code in (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ENOMEM)),
        *(
            OSError(code, os.strerror(code))
            for code in (errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ENOTCONN)
        ),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "DATA/train-000001.tar"),
        TimeoutError("timed out"),
        ray.exceptions.GetTimeoutError("Get timed out: some object(s) not ready."),
        ray.exceptions.RayChannelTimeoutError("Timed out."),
    ],
    ids=lambda error: f"{type(error).__name__}-{getattr(error, 'errno', None)}",
)
def test_an_error_of_the_system_that_may_pass_is_a_loss(error):
    for told in (explained(_worker_failed(error)), explained(ControllerError(error))):
        assert isinstance(told, WorkersLost)
        assert "a worker was lost (" in str(told) and str(getattr(error, "filename", None) or "") in str(told)


def test_an_error_that_the_driver_met_is_not_laid_to_a_worker():
    full = explained(OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), next_time="tries again")
    assert type(full) is UserError
    assert str(full) == "No space left on device: /tmp/x; free some space there, and the same command tries again"
    passing = explained(OSError(errno.EIO, "Input/output error", "/tmp/x"))
    assert type(passing) is WorkersLost and str(passing) == "Input/output error: /tmp/x"


def test_an_evaluation_does_not_promise_to_go_on(tmp_path, monkeypatch):
    failed = _worker_failed(OSError(errno.ENOSPC, "No space left on device", "OUT/x"))

    def fit(_):
        raise failed

    monkeypatch.setattr(ray_launch, "remove_placement_groups", lambda: None)
    monkeypatch.setattr(TorchTrainer, "fit", fit)
    cluster = RayCluster(lambda world: None, "run", tmp_path, fit_nodes=None)
    with pytest.raises(UserError, match=r"a worker met: No space .* the same command tries again$"):
        cluster.run(Placement(1, 1.0, 0))
    with pytest.raises(UserError, match=r"a worker met: No space .* goes on from the latest checkpoint$"):
        cluster.start(Placement(1, 1.0, 0)).wait()


def test_what_a_worker_met_is_told_rather_than_what_that_brought_about():
    told = explained(_worker_failed(RuntimeError(GLOO), DIED, OSError(errno.EIO, "Input/output error", "DATA/x")))
    assert str(told) == "a worker was lost (Input/output error: DATA/x)"


def test_a_bug_beside_an_error_that_may_pass_is_a_bug():
    bug = _worker_failed(OSError(errno.EIO, "Input/output error"), BUG)
    assert explained(bug) is bug


def test_a_signal_that_killed_a_worker_is_named():
    assert str(explained(_worker_failed(DIED, RuntimeError(GLOO)), "SIGSEGV")) == "a worker was lost (SIGSEGV)"


def test_workers_are_placed_on_the_nodes_of_their_placement_alone(tmp_path):
    anywhere = _trainer(lambda: None, Placement(2, 1.0, 0), "run", str(tmp_path)).scaling_config
    there = _trainer(lambda: None, Placement(2, 1.0, 0, node_ids=("a1", "b2")), "run", str(tmp_path)).scaling_config
    assert anywhere.label_selector is None and there.label_selector == {"ray.io/node-id": "in(a1,b2)"}
