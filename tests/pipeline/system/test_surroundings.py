"""Temporary folders, proxies and addresses as a user's environment may have them."""

import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.command import InputError
from pipeline.paths import CHECKOUT
from pipeline.system import surroundings
from pipeline.system.surroundings import folder_for_sockets, short_temporary_names, variables_set, without_proxy

LONG = "a-folder-of-a-batch-system/with-the-number-of-a-job-0001355700/and-the-name-of-a-user-below-it-to-be-safe"
DEAD_PROXY = "http://127.0.0.1:9"
PROXIES = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "grpc_proxy"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in (*PROXIES, "no_proxy", "NO_PROXY", "RAY_ADDRESS", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def long_folder(tmp_path, monkeypatch) -> Path:
    """A temporary folder that is too long for sockets, and is the process's own."""
    folder = tmp_path / LONG
    folder.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


MAPS = """
from pipeline.command import run_command
from pipeline.offline.ordered_map import load_ahead, ordered_map
from pipeline.paths import CHECKOUT
def main(argv):
    load_ahead("json")
    with ordered_map(abs, [-1, -2, 3], 2) as results:
        print(list(results))
    return 0
if __name__ == "__main__":
    run_command(main)
"""


@pytest.mark.parametrize("folder", ["LONG", "/nonexistent/folder", "/proc/1", ""])
def test_worker_processes_start_whatever_tmpdir_is(tmp_path, folder):
    (tmp_path / LONG).mkdir(parents=True)
    (tmp_path / "maps.py").write_text(MAPS)
    environment = os.environ | {"TMPDIR": folder.replace("LONG", str(tmp_path / LONG)), "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, str(tmp_path / "maps.py")]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, "[1, 2, 3]\n"), answer.stderr


def test_a_long_temporary_folder_is_left_for_sockets_alone(long_folder):
    assert folder_for_sockets(48) == Path("/tmp")
    with short_temporary_names(48):
        assert tempfile.gettempdir() == "/tmp"
    assert tempfile.gettempdir() == str(long_folder)


def test_where_no_folder_will_do_tmpdir_is_named_with_what_would(long_folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda folder, _: str(folder) != "/tmp")
    told = (
        f"TMPDIR={long_folder} is too long for sockets below it, and /tmp can't be written to; set TMPDIR to a folder"
    )
    with pytest.raises(InputError, match=f"^{told} whose path has at most 59 characters$"):
        folder_for_sockets(48)


def test_where_nothing_can_be_written_tmpdir_is_named(monkeypatch):
    def fails():
        raise FileNotFoundError("No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", fails)
    with pytest.raises(InputError, match=r"no folder for temporary files is writable .*; set TMPDIR to one that is"):
        surroundings.usual_temporary_folder()


@pytest.mark.parametrize("name", PROXIES)
def test_loopback_is_never_asked_through_a_proxy(name):
    assert without_proxy({name: DEAD_PROXY})["no_proxy"].split(",") == ["localhost", "127.0.0.1", "::1"]
    stated = {name: DEAD_PROXY, "NO_PROXY": "intern, 10.0.0.0/8"}
    assert without_proxy(stated, "head")["NO_PROXY"] == "intern,10.0.0.0/8,localhost,127.0.0.1,::1,head"


@pytest.mark.parametrize("stated", [{"no_proxy": "*"}, {"NO_PROXY": " * "}])
def test_where_no_host_is_asked_through_a_proxy_none_is(stated):
    assert without_proxy({"http_proxy": DEAD_PROXY, **stated}) == {"no_proxy": "*", "NO_PROXY": "*"}


def test_without_a_proxy_nothing_is_set():
    assert without_proxy({"no_proxy": "intern", "http_proxy": ""}) == {}


def test_variables_are_put_back(monkeypatch):
    monkeypatch.setenv("STATED", "1")
    with variables_set({"STATED": "2", "NEW": "3"}, "ALSO"):
        os.environ["ALSO"] = "4"
        assert (os.environ["STATED"], os.environ["NEW"]) == ("2", "3")
    assert os.environ["STATED"] == "1" and not {"NEW", "ALSO"} & os.environ.keys()


@pytest.fixture
def server():
    """The address of a server on this machine that answers every question."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = b'{"ray_version": "2.60.0", "version": "4", "ray_commit": "", "session_name": ""}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_servers_of_this_machine_are_asked_past_a_proxy(server, monkeypatch, name):
    pytest.importorskip("ray")
    from cluster.lab.local_ray import environment
    from cluster.lab.ray_node import _answer
    from cluster.launch.ray_submission import job_server_version, needed_variables

    monkeypatch.setenv(name, DEAD_PROXY)
    assert _answer(server, "token") is not None
    assert job_server_version(server) == "2.60.0"
    assert environment()["no_proxy"] == "localhost,127.0.0.1,::1" and "no_proxy" not in os.environ
    assert needed_variables(server) == {"no_proxy": "localhost,127.0.0.1,::1"}
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert needed_variables(server) == {}


def test_a_proxy_before_a_job_server_that_does_not_answer_is_named(monkeypatch):
    pytest.importorskip("ray")
    from cluster.launch.ray_submission import job_server_version

    monkeypatch.setenv("HTTP_PROXY", DEAD_PROXY)
    monkeypatch.setattr("socket.create_connection", lambda *_: (_ for _ in ()).throw(OSError("unreachable")))
    with pytest.raises(InputError, match=r", or set no_proxy=head\.example, since HTTP_PROXY is set$"):
        job_server_version("http://head.example:8265")


COMMAND = """
import os, subprocess, sys
from pathlib import Path
from pipeline.command import run_command
def main(argv):
    with open("file", "w") as file:
        sys.stdout.write("to standard output\\n")
        sys.stderr.write("to standard error\\n")
        sys.stdout.flush()
        subprocess.run(["sh", "-c", "cat; echo a child"], check=True)
        file.write("in the file")
    return len(sys.stdin.read())
run_command(main)
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


def _run(folder: Path, code: str, shell: str = ":", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python code in a folder, from a shell that may do something first."""
    (folder / "code.py").write_text(code)
    command = ["bash", "-c", f'{shell}; exec "$0" "$@"', sys.executable, str(folder / "code.py")]
    variables = os.environ | {"PYTHONPATH": str(CHECKOUT)} | environment
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("closed", ["exec <&-", "exec >&-", "exec 2>&-", "exec <&- >&-", "exec <&- >&- 2>&-"])
def test_a_command_runs_with_standard_streams_closed(tmp_path, closed):
    answer = _run(tmp_path, COMMAND, closed)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "file").read_text() == "in the file"
    assert answer.stdout == (b"" if " >&-" in closed else b"to standard output\na child\n")
    assert answer.stderr == (b"" if "2>&-" in closed else b"to standard error\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_letters_that_a_locale_lacks_are_written_by_their_numbers(tmp_path, stream):
    code = "import sys\nfrom pipeline.command import run_command\nrun_command(lambda _: {}.write('M\u00fc') > 9)"
    answer = _run(tmp_path, code.format(f"sys.{stream}"), **ASCII)
    assert (answer.returncode, getattr(answer, stream)) == (0, b"M\\xfc")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_bytes_of_a_name_that_are_no_letters_are_written_by_their_numbers(tmp_path, stream):
    code = "import sys\nfrom pipeline.command import run_command\nrun_command(lambda _: {}.write('a\\udcff') > 9)"
    answer = _run(
        tmp_path, code.format(f"sys.{stream}"), PYTHONIOENCODING="utf-8:strict"
    )  # as in a locale of UTF-8 that is not C
    assert (answer.returncode, getattr(answer, stream)) == (0, b"a\\udcff")


def test_a_name_that_a_locale_lacks_is_told(tmp_path):
    code = "from pipeline.command import run_command\nrun_command(lambda _: open('\u00fc'))"
    answer = _run(tmp_path, code, **ASCII)
    assert (answer.returncode, answer.stdout) == (2, b"")
    told = (
        "error: this locale encodes file names in ascii, and a name has other letters; set LC_ALL=C.UTF-8, and unset "
        "PYTHONUTF8"
    )
    assert answer.stderr.decode() == f"{told}\n"


@pytest.mark.parametrize("command", ["jobs/train.py --help", "jobs/evaluate.py --help", "-m pipeline.verify data"])
def test_a_removed_working_directory_is_told(tmp_path, command):
    (tmp_path / "gone").mkdir()
    words = command.replace("jobs/", f"{CHECKOUT}/jobs/")
    shell = f"cd {tmp_path}/gone; rmdir {tmp_path}/gone; exec {sys.executable} {words}"
    answer = _run(tmp_path, "", shell)
    told = b"error: the working directory was removed; change to one that exists\n"
    assert (answer.returncode, answer.stderr) == (2, told)


@pytest.mark.parametrize("job", ["train", "evaluate", "predict"])
def test_python_without_docstrings_is_refused_by_what_needs_them(tmp_path, job):
    answer = _run(tmp_path, "", f"exec {sys.executable} -OO {CHECKOUT}/jobs/{job}.py --help")
    told = b"error: NVIDIA DALI can't be loaded without docstrings: leave out -OO, unset PYTHONOPTIMIZE\n"
    assert (answer.returncode, answer.stderr) == (2, told)


def test_sharding_does_without_docstrings(tmp_path):
    answer = _run(tmp_path, "", f"exec {sys.executable} -OO -m pipeline.shard --help")
    assert answer.returncode == 0 and b"--samples-per-shard" in answer.stdout
