"""Errors of torch's collectives are known by their words; how a lost peer is met, test_stopping.py shows."""

import socket
from pathlib import Path

import pytest
import torch.distributed as dist

from cluster.worker.torch_quirks import SHARES_STORE, is_lost_peer, is_wrong_network, unreachable_workers


def test_an_interface_that_is_not_there_is_a_wrong_network(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(RuntimeError) as raised:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    assert is_wrong_network(raised.value) and not is_lost_peer(raised.value)
    assert "no0" in unreachable_workers(raised.value)


def test_a_bug_is_not_taken_for_a_lost_peer():
    assert not is_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"))
    assert not is_lost_peer(ValueError("gloo"))


def test_torchrun_tells_its_processes_whether_they_share_its_store():
    agent = Path(dist.__file__).parent / "elastic" / "agent" / "server" / "local_elastic_agent.py"
    assert f'"{SHARES_STORE}"' in agent.read_text()
