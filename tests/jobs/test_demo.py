"""The demo uses the Ray that lets it in, and else starts one that has a token of its own."""

import contextlib
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

from cluster.launch.placement import WorkerRange, place_workers
from jobs import demo
from pipeline.command import InputError

ONE_GPU = {"CPU": 16.0, "GPU": 1.0}
OWN = SimpleNamespace(address="http://127.0.0.1:1", environment={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "own"})


@pytest.fixture(autouse=True)
def own_ray(monkeypatch):
    monkeypatch.setattr(demo, "local_ray", lambda working_directory: contextlib.nullcontext(OWN))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the user")


def test_a_ray_that_lets_the_user_in_is_used_with_the_users_token(monkeypatch, capsys):
    monkeypatch.setattr(demo, "job_server_version", lambda address: "2.60.0")
    with demo._ray() as (address, variables):
        assert address == "http://head:8265" and variables["RAY_AUTH_TOKEN"] == "of the user"
    assert "a Ray runs at http://head:8265: using it" in capsys.readouterr().out


@pytest.mark.parametrize(
    "cause", ["no job server answers at http://head:8265 (refused)", "http://head:8265 wants a token"]
)
def test_else_one_is_started_and_talked_to_with_its_own_token(monkeypatch, capsys, cause):
    def refuses(address):
        raise InputError(f"{cause}; do something")

    monkeypatch.setattr(demo, "job_server_version", refuses)
    with demo._ray() as (address, variables):
        assert (address, variables) == (OWN.address, OWN.environment)
    assert f"{cause}: starting a Ray, to be stopped at the end" in capsys.readouterr().out


@pytest.fixture
def commands(monkeypatch):
    """The commands of the demo, which are not run."""
    said = []
    monkeypatch.setattr(demo, "job_server_version", lambda address: "2.60.0")
    monkeypatch.setattr(demo, "_run", lambda *command, variables=None: said.append(command) or "top-1 100 %")
    return said


@pytest.mark.parametrize(
    ("num_gpus", "options", "workers"),
    [(0, [], "2"), (1, [], "1"), (2, [], "2"), (8, [], "2"), (1, ["--workers", "3"], "3")],
)
def test_there_are_two_workers_or_one_for_a_single_gpu(num_gpus, options, workers, commands, monkeypatch):
    monkeypatch.setattr(demo, "num_gpus", lambda: num_gpus)
    assert demo.main(options) == 0
    (train,) = [command for command in commands if "jobs/train.py" in command]
    assert train[-2:] == ("--workers", workers)


def test_a_number_of_workers_is_refused_before_anything_starts(commands):
    with pytest.raises(InputError, match="--workers is 0; it must be at least 1"):
        demo.main(["--workers", "0"])
    assert commands == []


def test_the_demo_fits_onto_a_machine_with_one_gpu(monkeypatch):
    workers = demo.num_workers(int(ONE_GPU["GPU"]))
    placement = place_workers([ONE_GPU], WorkerRange(workers, workers), None)
    assert (placement.num_workers, placement.gpus_per_worker, placement.cpus_per_worker) == (1, 1, 16)
