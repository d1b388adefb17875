"""Processes of torch.distributed that all call one function of a test file.

They are forked by a server, `python worker_group.py`, which has loaded what takes seconds to load. Each process of
pytest has one of its own, which ends with it.
"""

import atexit
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from pipeline.paths import CHECKOUT

_TIMEOUT_SECONDS = 400
_PATHS = os.pathsep.join([str(CHECKOUT), str(Path(__file__).parent)])
_servers: list["_Server"] = []


def run_group(world_size: int, file: str, function: str, *arguments: str | Path) -> list[str]:
    """Call `function(*arguments)` of a file in that many processes; return what each printed, by rank.

    They begin with a process group, in this process's environment; the arguments are strings.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        request = {
            "world_size": world_size,
            "address": f"tcp://127.0.0.1:{port}",
            "call": [file, function, *map(str, arguments)],
            "environment": dict(os.environ),
            "folder": folder,
        }
        assert _server().ask(request) == [0] * world_size
        return [(Path(folder) / str(rank)).read_text() for rank in range(world_size)]


class _Server:
    def __init__(self) -> None:
        own = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": _PATHS}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__],
            env=os.environ | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # its processes can be killed with it
        )

    def ask(self, request: dict[str, Any]) -> list[int]:
        """Return the processes' exit statuses."""
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            assert select.select([self.process.stdout], [], [], _TIMEOUT_SECONDS)[0], "the workers do not end"
            return json.loads(self.process.stdout.readline())
        except BaseException:  # what it does is not what the next test asks for
            os.killpg(self.process.pid, signal.SIGKILL)
            self.close()
            raise

    def close(self) -> None:
        _servers.remove(self)
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def _server() -> _Server:
    if not _servers:
        _servers.append(_Server())
        atexit.register(lambda: [server.close() for server in tuple(_servers)])
    return _servers[0]


def _serve() -> None:
    import cluster.worker.evaluation_files
    import cluster.worker.training  # noqa: F401  (loaded here once, for all that are forked)

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        ranks = range(request["world_size"])
        processes = [os.fork() or _work(rank, request) for rank in ranks]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        answers.write(json.dumps(statuses) + "\n")
        answers.flush()


def _work(rank: int, request: dict[str, Any]) -> int:
    """Be one of the processes; never returns."""
    status = 1
    try:
        os.dup2(os.open(os.path.join(request["folder"], str(rank)), os.O_WRONLY | os.O_CREAT), 1)
        os.environ.update(request["environment"], GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1", PYTHONPATH=_PATHS)
        _call(rank, **{name: request[name] for name in ("world_size", "address", "call")})
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _call(rank: int, world_size: int, address: str, call: list[str]) -> None:
    import torch.distributed as dist

    file, function, *arguments = call
    specification = importlib.util.spec_from_file_location("called", file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    getattr(module, function)(*arguments)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    _serve()
