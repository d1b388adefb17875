"""One node of a Ray that this project starts: on this machine's own network, or on a host of a lab.

It has ports and a folder of its own, and is ended by the ids of its own processes. It can be killed as if its machine
had lost its power.
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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from cluster.lab.hosts import Host
from cluster.lab.linux import ended_with_parent
from cluster.lab.owner import is_dead, this_owner
from cluster.lab.program_log import last_line_of
from pipeline.command import InputError
from pipeline.system.surroundings import folder_for_sockets

_HOST = "127.0.0.1"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this machine's own address
_SOCKET_BYTES = 80  # ray-XXXXXXXX/session_DATE_TIME_PID/sockets/plasma_store, with a number at its end
_START_SECONDS = 90
_END_SECONDS = 5
_FIRST_PORT, _NUM_PORTS = 20_000, 10_000  # Ray's workers listen on 10,002 to 19,999, Linux gives away 32,768 and more
_FOLDER, _OWNER = "ray-", "owner"


class Node:
    """One node: a `ray start --block`, and everything that it started."""

    def __init__(
        self,
        options: list[str],
        variables: dict[str, str],
        working_directory: Path | None = None,
        host: Host | None = None,
    ) -> None:
        """Start it; see `wait_until_ready`.

        Args:
            options: Options of `ray start`.
            variables: The environment to start it in.
            working_directory: Directory to start it in.
            host: Host that it runs on; None: it shares this machine's network.
        """
        self._token, self._host = variables["RAY_AUTH_TOKEN"], host
        self._address = address_of(host)
        temporary = folder_for_sockets(_SOCKET_BYTES)
        self._folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=temporary))
        (self._folder / _OWNER).write_text(this_owner())
        self._agent_port = free_port()
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *options]
        command += [f"--temp-dir={self._folder}", f"--node-ip-address={self._address}"]
        command += [f"--dashboard-agent-listen-port={self._agent_port}"]
        variables = variables | {"TMPDIR": str(temporary)}  # for sockets of Ray's dashboard
        with open(self._log, "wb") as output:
            how: dict[str, Any] = {
                "cwd": working_directory,
                "stdout": output,
                "stderr": subprocess.STDOUT,
                "stdin": subprocess.DEVNULL,
                "start_new_session": True,  # Ctrl-C is for the block; Ray is stopped by it
            }
            if host is None:
                ended = ended_with_parent(signal.SIGTERM)
                self._process = subprocess.Popen(command, env=variables, preexec_fn=ended, **how)
            else:
                self._process = host.popen(command, variables, **how)

    @property
    def _log(self) -> Path:
        return self._folder / "start.log"

    @property
    def is_running(self) -> bool:
        """Whether its `ray start` still runs, which ends with the raylet."""
        return self._process.poll() is None

    def wait_until_ready(self, *urls: str) -> None:
        """Wait until the node's agent answers, which comes up last, and other addresses of it do.

        Raises:
            InputError: It did not start.
        """
        deadline = time.monotonic() + _START_SECONDS
        health = f"http://{self._address}:{self._agent_port}/api/local_raylet_healthz"
        while any(self.ask(url) is None for url in (*urls, health)):
            if not self.is_running or time.monotonic() > deadline:
                raise InputError(f"a local Ray did not start: {last_line_of(self._log)}")
            time.sleep(0.2)

    def ask(self, url: str) -> bytes | None:
        """Return the answer of a URL with the cluster's token, as seen from the node; None if it does not succeed."""
        with contextlib.nullcontext() if self._host is None else self._host.entered():
            return _answer(url, self._token)

    def processes(self) -> list[psutil.Process]:
        """Return its living processes: workers, and on the head the drivers of submitted jobs too."""
        if self._host is not None:
            return list(_living(self._host.process_ids()))
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


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process (not another of the same id) runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def remove_orphaned_folders() -> None:
    """Remove the folders of nodes whose owner has died."""
    for owner in folder_for_sockets(_SOCKET_BYTES).glob(f"{_FOLDER}*/{_OWNER}"):
        with contextlib.suppress(OSError):
            if is_dead(owner.read_text()):
                shutil.rmtree(owner.parent, ignore_errors=True)


def address_of(host: Host | None) -> str:
    """Return the address of a node on a host, or on this machine's own network."""
    return _HOST if host is None else host.address


def _living(process_ids: Iterable[int]) -> Iterator[psutil.Process]:
    for process_id in process_ids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if is_alive(process := psutil.Process(process_id)):
                yield process


def _answer(url: str, token: str) -> bytes | None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with _DIRECT.open(request, timeout=2) as answer:
            return bytes(answer.read()) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def _first_port(process_id: int) -> int:
    """Return the port from which a process looks for free ones.

    Ray listens on a port only seconds after it was chosen, so processes that work at the same time must choose others:
    those whose ids are near begin far from each other, by multiples of the golden ratio.
    """
    return _FIRST_PORT + process_id * 6_181 % _NUM_PORTS


_next_port = _first_port(os.getpid())


def free_port() -> int:
    """Return a port that nobody listens on, below those that the kernel and Ray give to others at any moment."""
    global _next_port
    for _ in range(_NUM_PORTS):
        port, _next_port = _next_port, _FIRST_PORT + (_next_port + 1 - _FIRST_PORT) % _NUM_PORTS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((_HOST, port))
            return port
    raise InputError("no free port for a local Ray; end other programs that listen")
