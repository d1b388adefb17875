"""A Ray of this machine alone, of one node or several, started from this environment.

It has ports and folders of its own, so it neither meets nor ends another Ray, and it is stopped by the ids of its own
processes: `ray stop` would end every Ray of the machine. It lets nobody in without its private token, which its
`environment` holds. A node can be killed as if its machine had lost its power.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from cluster.lab.hosts import Host
from cluster.lab.ray_node import Node, address_of, free_port, remove_orphaned_folders
from pipeline.system.ray_quirks import OWN_RAY_VARIABLES, QUICK_HEALTH_CHECK_VARIABLES
from pipeline.system.ray_token import private_token
from pipeline.system.surroundings import RAY_ADDRESS_VARIABLES, without_proxy

# What `ray job stop` should give a job to write its last checkpoint. After RAY_JOB_STOP_WAIT_TIME_S, 3 s by default, it
# kills; the job supervisor's environment decides, which is the job's.
STOP_SECONDS = 60
_OBJECT_STORE_BYTES = 100_000_000  # of a node of several: training puts nothing into it, and all lie in the same memory
_MOST_NODES = 1_000  # that are listed
_DEFAULTS = {
    **QUICK_HEALTH_CHECK_VARIABLES,
    **OWN_RAY_VARIABLES,
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
}


def environment() -> dict[str, str]:
    """Return the environment to run a command in: this interpreter's folder is first on PATH, for jobs to find.

    Whether a token is needed, and which, is as this process was told. No proxy is asked for this machine itself.
    """
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return _DEFAULTS | os.environ | own | without_proxy(os.environ)


class LocalRay:
    """A cluster of this machine.

    Attributes:
        address: Address of its job server.
        gcs_address: Address by which drivers and nodes join it, HOST:PORT.
        environment: Environment of commands that talk to it; it holds the token.
        head: First node.
    """

    def __init__(
        self,
        num_cpus: int | None,
        working_directory: Path | None,
        host: Host | None = None,
        addresses: Sequence[str] = (),
    ) -> None:
        """Start the head; see `local_ray`.

        Args:
            num_cpus: See `local_ray`.
            working_directory: See `local_ray`.
            host: Host of the head; None: it shares this machine's network.
            addresses: Addresses of all hosts, which are not reached through a proxy.
        """
        remove_orphaned_folders()
        port, dashboard_port, address = free_port(), free_port(), address_of(host)
        self.address, self.gcs_address = f"http://{address}:{dashboard_port}", f"{address}:{port}"
        options = ["--head", f"--port={port}", f"--dashboard-port={dashboard_port}", f"--dashboard-host={address}"]
        options += [f"--num-cpus={num_cpus}"] if num_cpus is not None else []
        options += [] if host is None else [f"--object-store-memory={_OBJECT_STORE_BYTES}"]
        # An address of another Ray would go before the one that `ray job submit` is given.
        own = private_token() | without_proxy(os.environ, *addresses)
        self.environment = {k: v for k, v in environment().items() if k not in RAY_ADDRESS_VARIABLES} | own
        self.head = Node(options, self.environment, working_directory, host)
        self._others: list[Node] = []

    def wait_until_ready(self) -> None:
        """Wait until it takes jobs."""
        self.head.wait_until_ready(f"{self.address}/api/version")

    def add_node(self, num_cpus: int, host: Host | None = None) -> Node:
        """Let another node join.

        Args:
            num_cpus: CPUs that the node offers.
            host: Host that it runs on; None: it shares this machine's network.

        Raises:
            InputError: It did not start.
        """
        node = self.begin_node(num_cpus, host)
        node.wait_until_ready()
        return node

    def begin_node(self, num_cpus: int, host: Host | None = None) -> Node:
        """Begin to let another node join; see `add_node` and `Node.wait_until_ready`."""
        options = [f"--address={self.gcs_address}", f"--num-cpus={num_cpus}"]
        options += [f"--object-store-memory={_OBJECT_STORE_BYTES}"]
        # Any free ports: each node would give its workers the same ones of Ray's range.
        options += ["--min-worker-port=0", "--max-worker-port=0"]
        node = Node(options, self.environment, host=host)
        self._others.append(node)
        return node

    def living_addresses(self) -> list[str] | None:
        """Return the addresses of the nodes that the cluster takes for alive; None if it does not say."""
        query = f"detail=false&limit={_MOST_NODES}&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        answer = self.head.ask(f"{self.address}/api/v0/nodes?{query}")
        try:
            nodes = json.loads(answer or "")["data"]["result"]["result"]
            return [str(node["node_ip"]) for node in nodes]
        except (ValueError, KeyError, TypeError):
            return None

    def processes(self) -> list[psutil.Process]:
        """Return the living processes of all nodes."""
        return [process for node in (self.head, *self._others) for process in node.processes()]

    def stop(self) -> None:
        """End all nodes; those that joined hold nothing that would need an order."""
        for node in self._others:
            node.kill()
            node.stop()
        self.head.stop()


@contextlib.contextmanager
def local_ray(num_cpus: int | None = None, working_directory: Path | None = None) -> Iterator[LocalRay]:
    """Run a Ray of this machine while the block runs.

    Args:
        num_cpus: CPUs that the head offers; by default those of the machine.
        working_directory: Directory to start it in; jobs without a `--working-dir` run there.

    Raises:
        InputError: It did not start.
    """
    cluster = LocalRay(num_cpus, working_directory)
    try:
        cluster.wait_until_ready()
        yield cluster
    finally:
        cluster.stop()
