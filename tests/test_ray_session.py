"""A Ray that is started here lets nobody else in; one that runs is joined as it wants to be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")

from pipeline import ray_session as sessions
from pipeline.command import InputError
from pipeline.ray_session import ray_session
from pipeline.ray_token import private_token

ROOT = Path(__file__).parent.parent


@pytest.fixture
def entered(monkeypatch):
    """The environments in which Ray was entered; none is started."""
    seen = []
    monkeypatch.setattr(ray, "init", lambda **options: seen.append((options["address"], dict(os.environ))))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return seen


@pytest.mark.parametrize("mode", [None, "disabled", "token"])
def test_a_running_cluster_keeps_its_own_rules(entered, monkeypatch, mode):
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with ray_session("auto"):
        pass
    ((address, environment),) = entered
    assert (address, environment.get("RAY_AUTH_MODE")) == ("auto", mode)
    assert "RAY_AUTH_TOKEN" not in environment and "RAY_worker_niceness" not in environment
    assert environment["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"


@pytest.mark.parametrize("mode", [None, "disabled", "token"])
def test_a_local_ray_has_a_token_of_its_own_and_a_session_leaves_nothing_behind(entered, monkeypatch, mode):
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the user")
    monkeypatch.setenv("RAY_worker_niceness", "3")
    before = dict(os.environ)
    with ray_session("local"):
        pass
    ((address, environment),) = entered
    assert address == "local" and "RAY_AUTH_MODE" not in environment  # Ray takes the token that it finds
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
    assert environment["RAY_worker_niceness"] == "3" and environment["RAY_prestart_worker_first_driver"] == "0"
    assert dict(os.environ) == before


def test_no_two_rays_share_a_token():
    assert private_token()["RAY_AUTH_TOKEN"] != private_token()["RAY_AUTH_TOKEN"]


@pytest.mark.parametrize(
    "error",
    [ray.exceptions.AuthenticationError("no token"), ConnectionError("Failed to connect to Ray cluster at head:1")],
)
def test_a_cluster_that_does_not_let_us_in_is_told(entered, monkeypatch, error):
    def refuses(**options):
        raise error from RuntimeError("Unauthenticated: RPC error: InvalidAuthToken: token is missing or incorrect")

    monkeypatch.setattr(ray, "init", refuses)
    with (
        pytest.raises(InputError, match="wants a token that this process does not give; set RAY_AUTH_MODE=token"),
        ray_session("auto"),
    ):
        pass


LOCAL = """
import os, psutil, ray
from pipeline.ray_session import ray_session
with ray_session("local"):
    mode, nice = ray.get(ray.remote(lambda: (os.environ["RAY_AUTH_MODE"], os.nice(0))).remote())
    (raylet,) = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
    metrics = raylet.environ()["RAY_enable_metrics_collection"]
    print(ray.get_runtime_context().gcs_address, mode, nice, metrics, flush=True)
    input()
"""
STRANGER = """
from pipeline.command import run_command
from pipeline.ray_session import ray_session
def main(argv):
    with ray_session("auto"):
        return 0
run_command(main)
"""


@pytest.mark.slow
def test_a_stranger_does_not_get_into_a_local_ray_and_nothing_is_written_to_the_home(tmp_path):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    home = plain | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", LOCAL], cwd=ROOT, env=home, **pipes) as process:
        address, *settings = process.stdout.readline().split()
        assert settings == ["token", "0", "0"]
        stranger = [sys.executable, "-c", STRANGER]
        answer = subprocess.run(stranger, cwd=ROOT, env=home | {"RAY_ADDRESS": address}, capture_output=True, text=True)
        _, errors = process.communicate("\n")
    assert process.returncode == 0 and errors == ""
    assert answer.returncode == 2 and f"the Ray cluster at RAY_ADDRESS={address} wants a token" in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_variables_are_those_that_ray_reads():
    """A name that Ray no longer knows would be set in vain."""
    package = Path(ray.__file__).parent
    raylet = (package / "core/src/ray/raylet/raylet").read_bytes()
    folders = ("train/v2", "_private", "_common", "dashboard/modules/reporter")
    sources = "".join(path.read_text() for folder in folders for path in (package / folder).rglob("*.py"))
    for name in sessions._DEFAULTS | sessions._LOCAL_DEFAULTS:
        assert name in sources or name.removeprefix("RAY_").encode() in raylet, name
