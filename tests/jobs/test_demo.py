"""The demo uses the Ray that lets it in, and else starts one that has a token of its own."""

import contextlib
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")

from jobs import demo
from pipeline.command import InputError

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
