"""What is used of Ray beside its documented interface is there, does what it is used for, and can be done without."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

ray = pytest.importorskip("ray")

from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

from pipeline.paths import CHECKOUT
from pipeline.system import ray_quirks


def test_no_other_minor_version_of_ray_is_admitted_than_the_one_that_was_looked_into():
    dependencies = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    major, minor = map(int, ray_quirks.SEEN_IN.split("."))
    assert f"ray[default,train]>={major}.{minor},<{major}.{minor + 1}" in dependencies
    assert ray.__version__.startswith(f"{ray_quirks.SEEN_IN}.")


def test_the_variables_are_those_that_ray_reads():
    """A name that Ray no longer knows would be set in vain."""
    package = Path(ray.__file__).parent
    raylet = (package / "core/src/ray/raylet/raylet").read_bytes()
    gcs_server = (package / "core/src/ray/gcs/gcs_server").read_bytes()
    folders = ("train/v2", "_private", "_common", "dashboard/modules/reporter")
    sources = "".join(path.read_text() for folder in folders for path in (package / folder).rglob("*.py"))
    for name in (
        ray_quirks.SESSION_VARIABLES
        | ray_quirks.OWN_RAY_VARIABLES
        | ray_quirks.EMBEDDED_RAY_VARIABLES
        | ray_quirks.QUICK_HEALTH_CHECK_VARIABLES
    ):
        core = name.removeprefix("RAY_").encode()
        assert name in sources or core in raylet or core in gcs_server, name


def test_failures_of_ray_train_are_known_by_what_they_hold():
    died = ray.exceptions.ActorDiedError()
    assert ray_quirks.is_startup_timeout(WorkerGroupStartupTimeoutError(2)) and not ray_quirks.is_startup_timeout(died)
    assert ray_quirks.health_check_cause(WorkerHealthCheckFailedError("A worker health check failed.", died)) is died
    assert ray_quirks.health_check_cause(died) is died


def test_a_ray_without_these_insides_is_used_without_them(monkeypatch):
    assert ray_quirks.upload_rules() is not None and ray_quirks.controller_callbacks()
    for module in ("ray._private.ray_constants", "ray.train.v2._internal.execution.callback"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    monkeypatch.delattr("ray._private.worker")
    assert ray_quirks.upload_rules() is None and ray_quirks.controller_callbacks() == []
    assert ray_quirks.temporary_folder() is None
    assert ray_quirks.ray_version_at(object()) is None


def test_a_ray_whose_rules_are_called_otherwise_does_not_measure_an_upload(tmp_path, monkeypatch):
    assert ray_quirks.upload_rules().paths(tmp_path) is not None
    monkeypatch.setattr("ray._private.runtime_env.packaging._dir_travel", lambda path: None)
    assert ray_quirks.upload_rules().paths(tmp_path) is None


@pytest.mark.parametrize("table", [{"a01": {}}, {"a01": {"state": "CREATED"}}, [], None])
def test_a_table_of_placement_groups_of_another_layout_is_no_obstacle(monkeypatch, table):
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01"))
    monkeypatch.setattr(sys.modules["ray.util.placement_group"], "placement_group_table", lambda: table)
    ray_quirks.remove_placement_groups()


ON_A_RAY = """
import atexit, json, sys, threading, time
from pathlib import Path
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.placement_group import placement_group
from pipeline.system.ray_quirks import controller_callbacks, remove_placement_groups, temporary_folder
from pipeline.system.ray_session import ray_session

folder = Path(sys.argv[1])

def launch(name, callbacks):
    class Linger(type(controller_callbacks()[0]).__base__):
        def after_controller_start(self, train_run_context):
            atexit.register((folder / f"{name}-lingers").touch)  # run after what is registered later
    run_config = RunConfig(name=name, storage_path=str(folder), callbacks=[Linger(), *callbacks])
    trainer = TorchTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=1), run_config=run_config)
    thread = threading.Thread(target=trainer.fit)  # in the main thread Ray keeps the controller for its Ctrl-C
    thread.start()
    thread.join()

def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(condition())

found = {}
with ray_session("local"):
    launch("with", controller_callbacks())
    launch("without", [])
    found["lingers"] = wait_until((folder / "without-lingers").exists)
    found["lingers_nonetheless"] = (folder / "with-lingers").exists()
    logs = Path(ray.get_runtime_context().get_session_name()) / "logs"
    found["logs_there"] = (temporary_folder() / logs).is_dir()
    all_cpus = ray.cluster_resources()["CPU"]
    found["freed"] = wait_until(lambda: ray.available_resources().get("CPU", 0) == all_cpus)
    ray.get(placement_group([{"CPU": 1}]).ready())
    found["taken"] = wait_until(lambda: ray.available_resources().get("CPU", 0) == all_cpus - 1)
    remove_placement_groups()
    found["freed_again"] = wait_until(lambda: ray.available_resources().get("CPU", 0) == all_cpus)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_on_a_ray_each_does_what_it_is_used_for(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-c", ON_A_RAY, str(tmp_path)], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1]) == {
        "lingers": True, "lingers_nonetheless": False, "logs_there": True, "freed": True, "taken": True,
        "freed_again": True,
    }  # fmt: skip
