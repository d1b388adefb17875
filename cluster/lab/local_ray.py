"""A Ray of this machine alone, of one node or several, started from this environment.

It has ports and folders of its own, so it neither meets nor ends another Ray, and it is stopped by the ids of its own
processes: `ray stop` would end every Ray of the machine. It lets nobody in without its private token, which its
`environment` holds. A node can be killed as if its machine had lost its power.
"""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster.lab.linux import ended_with_parent
from pipeline.command import InputError
from pipeline.system.ray_quirks import OWN_RAY_VARIABLES, QUICK_HEALTH_CHECK_VARIABLES
from pipeline.system.ray_token import private_token
from pipeline.system.surroundings import folder_for_sockets, without_proxy

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# What `ray job stop` should give a job to write its last checkpoint. After RAY_JOB_STOP_WAIT_TIME_S, 3 s by default, it
# kills; the job supervisor's environment decides, which is the job's.
STOP_SECONDS = 60
_HOST = "127.0.0.1"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this machine's own address
_SOCKET_BYTES = 80  # ray-XXXXXXXX/session_DATE_TIME_PID/sockets/plasma_store, with a number at its end
_START_SECONDS = 90
_END_SECONDS = 5
_FIRST_PORT, _NUM_PORTS = 20_000, 10_000  # Ray's workers listen on 10,002 to 19,999, Linux gives away 32,768 and more
_OBJECT_STORE_BYTES = 100_000_000  # of an added node: training puts nothing into it, and all lie in the same memory
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


class Node:
    """One node: a `ray start --block`, and everything that it started."""

    def __init__(self, options: list[str], variables: dict[str, str], working_directory: Path | None = None) -> None:
        """Start it; see `wait_until_ready`.

        Args:
            options: Options of `ray start`.
            variables: The environment to start it in.
            working_directory: Directory to start it in.
        """
        self._token = variables["RAY_AUTH_TOKEN"]
        temporary = folder_for_sockets(_SOCKET_BYTES)
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir=temporary))
        self._agent_port = free_port()
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *options]
        command += [f"--temp-dir={self._folder}", f"--node-ip-address={_HOST}"]
        command += [f"--dashboard-agent-listen-port={self._agent_port}"]
        with open(self._log, "wb") as output:
            self._process = subprocess.Popen(
                command,
                env=variables | {"TMPDIR": str(temporary)},  # for sockets of Ray's dashboard
                cwd=working_directory,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the block; Ray is stopped by it
                preexec_fn=ended_with_parent(signal.SIGTERM),
            )

    @property
    def _log(self) -> Path:
        return self._folder / "start.log"

    def wait_until_ready(self, *urls: str) -> None:
        """Wait until the node's agent answers, which comes up last, and other addresses of it do.

        Raises:
            InputError: It did not start.
        """
        deadline = time.monotonic() + _START_SECONDS
        health = f"http://{_HOST}:{self._agent_port}/api/local_raylet_healthz"
        while not all(_answers(url, self._token) for url in (*urls, health)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise InputError(f"a local Ray did not start: {_last_line(self._log)}")
            time.sleep(0.2)

    def processes(self) -> list[psutil.Process]:
        """Return its living processes: workers, and on the head the drivers of submitted jobs too."""
        try:
            top = psutil.Process(self._process.pid)
            processes = [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            processes = []
        # Those that have left the tree (their parent died) are still in the session that the node began. Its id is not
        # given to others before `stop` has waited for the process.
        processes += [p for p in psutil.process_iter() if _session(p) == self._process.pid and p not in processes]
        return [process for process in processes if is_alive(process)]

    def kill(self) -> None:
        """End all of it at once by SIGKILL, as when a machine loses its power."""
        while processes := self.processes():  # including what was started meanwhile
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def kill_raylet(self) -> None:
        """End the node's raylet alone by SIGKILL: its workers live on for a while, out of the cluster's sight."""
        next(process for process in self.processes() if process.name() == "raylet").kill()

    def stop(self) -> None:
        """End all of it in order, and remove its folder."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(processes, timeout=_END_SECONDS)
        self.kill()
        for process in processes:  # out of tree and session: a job's driver
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class LocalRay:
    """A cluster of this machine.

    Attributes:
        address: Address of its job server.
        gcs_address: Address by which drivers and nodes join it, HOST:PORT.
        environment: Environment of commands that talk to it; it holds the token.
        head: First node.
    """

    def __init__(self, num_cpus: int | None, working_directory: Path | None) -> None:
        """Start the head; see `local_ray`."""
        port, dashboard_port = free_port(), free_port()
        self.address, self.gcs_address = f"http://{_HOST}:{dashboard_port}", f"{_HOST}:{port}"
        options = ["--head", f"--port={port}", f"--dashboard-port={dashboard_port}", f"--dashboard-host={_HOST}"]
        options += [f"--num-cpus={num_cpus}"] if num_cpus is not None else []
        # An address of another Ray would go before the one that `ray job submit` is given.
        others = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
        self.environment = {k: v for k, v in environment().items() if k not in others} | private_token()
        self.head = Node(options, self.environment, working_directory)
        self._others: list[Node] = []

    def wait_until_ready(self) -> None:
        """Wait until it takes jobs."""
        self.head.wait_until_ready(f"{self.address}/api/version")

    def add_node(self, num_cpus: int) -> Node:
        """Let another node join.

        Args:
            num_cpus: CPUs that the node offers.

        Raises:
            InputError: It did not start.
        """
        options = [f"--address={self.gcs_address}", f"--num-cpus={num_cpus}"]
        options += [f"--object-store-memory={_OBJECT_STORE_BYTES}"]
        # Any free ports: each node would give its workers the same ones of Ray's range.
        node = Node([*options, "--min-worker-port=0", "--max-worker-port=0"], self.environment)
        self._others.append(node)
        node.wait_until_ready()
        return node

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


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process (not another of the same id) runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _answers(url: str, token: str) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with _DIRECT.open(request, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException, ValueError):
        return False


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


_next_port = _FIRST_PORT + os.getpid() % _NUM_PORTS


def free_port() -> int:
    """Return a port that nobody listens on, below those that the kernel and Ray give to others at any moment."""
    global _next_port
    for _ in range(_NUM_PORTS):
        port, _next_port = _next_port, _FIRST_PORT + (_next_port + 1 - _FIRST_PORT) % _NUM_PORTS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((_HOST, port))
            return port
    raise InputError("no free port for a local Ray; end other programs that listen")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
