"""A Ray head on this machine, started from this environment and stopped by the ids of its own processes.

It has ports and a folder of its own, so it neither meets nor ends another Ray. `ray stop` would end every Ray of the
machine.
"""

import contextlib
import ctypes
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

from pipeline.command import InputError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_START_SECONDS = 90
_STOP_SECONDS = 5
_FIRST_PORT, _NUM_PORTS = 20_000, 10_000  # Ray's workers listen on 10,002 to 19,999, Linux gives away 32,768 and more


def environment() -> dict[str, str]:
    """Return the environment to start Ray in: this interpreter's folder is first on PATH, for jobs to find."""
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "RAY_AUTH_MODE": "disabled",  # else a token file of another Ray could lock this one
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return os.environ | own


def running_address() -> str | None:
    """Return the address of a Ray whose job server answers (RAY_API_SERVER_ADDRESS, or the default port), or None."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS", DEFAULT_ADDRESS)
    return address if _answers(f"{address}/api/version") else None


@contextlib.contextmanager
def local_ray(num_cpus: int | None = None, working_directory: Path | None = None) -> Iterator[str]:
    """Run a Ray head while the block runs.

    Args:
        num_cpus: That it says it has; by default those of the machine.
        working_directory: Where it is started; jobs without a `--working-dir` run there.

    Yields:
        The address of its job server.

    Raises:
        InputError: It did not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Unix sockets below it may have 107 characters
    port, dashboard_port, agent_port = _free_ports(3)
    address, agent = f"http://127.0.0.1:{dashboard_port}", f"http://127.0.0.1:{agent_port}"
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={port}", f"--dashboard-port={dashboard_port}", f"--temp-dir={folder}"]
    command += [f"--dashboard-agent-listen-port={agent_port}"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    command += [f"--num-cpus={num_cpus}"] if num_cpus is not None else []
    log = folder / "start.log"
    with open(log, "wb") as output:
        head = subprocess.Popen(
            command,
            env=environment(),
            cwd=working_directory,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the block; Ray is stopped below
            preexec_fn=_end_with_parent,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        # The node's agent runs submitted jobs; it comes up after the job server.
        while not (_answers(f"{address}/api/version") and _answers(f"{agent}/api/local_raylet_healthz")):
            if head.poll() is not None or time.monotonic() > deadline:
                raise InputError(f"a local Ray did not start: {_last_line(log)}")
            time.sleep(0.2)
        yield address
    finally:
        _stop(head)
        shutil.rmtree(folder, ignore_errors=True)


def _end_with_parent() -> None:
    """Ask the kernel (Linux) to send SIGTERM to this process when its parent dies, be it by SIGKILL."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException, ValueError):
        return False


def _stop(head: "subprocess.Popen[bytes]") -> None:
    """End the head and everything that it started."""
    try:
        processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        processes = []
    # Those that have left the tree (their parent died) are still in the session that the head began.
    processes += [p for p in psutil.process_iter() if _session(p) == head.pid and p not in processes]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait()


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, below those that the kernel and Ray give to others at any moment."""
    ports: list[int] = []
    for offset in range(_NUM_PORTS):
        port = _FIRST_PORT + (os.getpid() * count + offset) % _NUM_PORTS
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise InputError("no free port for a local Ray; end other programs that listen")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
