"""A Ray that is started here lets nobody else in; one that runs is joined as it wants to be."""

import os
import subprocess
import sys
import tempfile

import pytest

ray = pytest.importorskip("ray")

from cluster.launch.ray_launch import training_session
from pipeline.command import InputError
from pipeline.paths import CHECKOUT
from pipeline.system import ray_session as sessions
from pipeline.system.ray_session import ray_session
from pipeline.system.ray_token import private_token


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


@pytest.mark.parametrize("address", ["", " ", "local", None])
def test_an_address_that_names_no_cluster_leaves_a_local_ray(entered, monkeypatch, address):
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with training_session() as is_local:
        assert is_local
    ((entered_at, environment),) = entered
    assert entered_at == "local" and "RAY_ADDRESS" not in environment
    assert os.environ.get("RAY_ADDRESS") == address


@pytest.mark.parametrize("address", ["http://head:8265", "https://head"])
def test_the_address_of_a_job_server_is_told_with_how_to_submit(entered, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError) as caught, training_session():
        pass
    told = str(caught.value)
    assert told.startswith(f"RAY_ADDRESS={address} is the address of a job server, which takes jobs: `ray job submit")
    assert f"--address {address} " in told and "RAY_ADDRESS=HOST:6379" in told and entered == []


@pytest.mark.parametrize("address", ["garbage", "head:", "head:x", ":6379", "head:70000", "a b", "local:1x"])
def test_an_address_that_is_none_is_told(entered, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    told = f"^RAY_ADDRESS={address} is not an address of a running cluster; set HOST:6379, or `auto` on one of its"
    with pytest.raises(InputError, match=told), training_session():
        pass
    assert entered == []


@pytest.mark.parametrize("address", ["", "auto"])
def test_sharding_on_ray_joins_the_cluster_of_this_machine(entered, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with ray_session("auto"):
        pass
    ((entered_at, environment),) = entered
    assert entered_at == "auto" and environment.get("RAY_ADDRESS", "auto") == "auto"


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("folder", ["LONG", "/nonexistent/folder", "/proc/1", "", "relative"])
def test_a_local_ray_has_a_folder_in_which_its_sockets_can_lie(monkeypatch, tmp_path, name, folder):
    long_folder = tmp_path / ("a-folder-of-a-batch-system-" * 4)
    long_folder.mkdir()
    monkeypatch.setenv(name, folder.replace("LONG", str(long_folder)))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert sessions._temporary_folder() == {"_temp_dir": f"/tmp/ray-{os.getuid()}"}
    monkeypatch.setenv(name, "/tmp")
    assert sessions._temporary_folder() == {}


def test_the_longest_socket_of_a_local_ray_has_room():
    socket = f"ray-{os.getuid()}/session_2026-11-28_04-33-32_665852_4194304/sockets/plasma_store.1"
    assert len(f"/{socket}") <= sessions._SOCKET_BYTES


LOCAL = """
import os, psutil, ray
from pipeline.system.ray_session import ray_session
with ray_session("local"):
    mode, nice = ray.get(ray.remote(lambda: (os.environ["RAY_AUTH_MODE"], os.nice(0))).remote())
    (raylet,) = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
    metrics = raylet.environ()["RAY_enable_metrics_collection"]
    print(ray.get_runtime_context().gcs_address, mode, nice, metrics, flush=True)
    input()
"""
STRANGER = """
from pipeline.command import run_command
from pipeline.system.ray_session import ray_session
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
    with subprocess.Popen([sys.executable, "-c", LOCAL], cwd=CHECKOUT, env=home, **pipes) as process:
        address, *settings = process.stdout.readline().split()
        assert settings == ["token", "0", "0"]
        stranger = [sys.executable, "-c", STRANGER]
        answer = subprocess.run(
            stranger, cwd=CHECKOUT, env=home | {"RAY_ADDRESS": address}, capture_output=True, text=True
        )
        _, errors = process.communicate("\n")
    assert process.returncode == 0 and errors == ""
    assert answer.returncode == 2 and f"the Ray cluster at RAY_ADDRESS={address} wants a token" in answer.stderr
    assert list(tmp_path.iterdir()) == []
