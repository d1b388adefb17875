"""`python -m cluster.lab`: what it refuses, and how its keeper answers. A lab that is up: test_lab_of_hosts.py."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from needs import makes_hosts

from cluster.lab import __main__ as lab
from cluster.lab import keeper
from cluster.lab.ray_lab import Entrance, LabConfig
from pipeline.command import InputError
from pipeline.paths import CHECKOUT


@pytest.fixture
def folder(tmp_path):
    return tmp_path / ("a-folder-with-a-path-that-is-longer-than-a-socket-of-this-system-may-have" * 2) / "lab"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bandwidth", "fast"], "fast is not a bandwidth; write a number and kbit, mbit or gbit"),
        (["--bandwidth", "0gbit"], "gigabits_per_second=0.0: must be above 0"),
        (["--latency", "2ms"], "--latency is for a shaped link; give its --bandwidth, too"),
        (["--bandwidth", "1gbit", "--latency", "2"], "--latency 2 is not a time; write a number and us, ms or s"),
    ],
)
def test_a_link_that_can_t_be_is_refused(options, message, folder, capfd):
    with pytest.raises(InputError, match=message):
        lab.main(["up", "--lab", str(folder), *options])
    assert not folder.exists()


@pytest.mark.parametrize("options", [["--cpus", "0"], ["--cpus", "nan"], ["--hosts", "many"]])
def test_a_wrong_option_is_refused(options, capsys):
    with pytest.raises(SystemExit) as ended:
        lab.main(["up", *options])
    assert ended.value.code == 2


@pytest.mark.parametrize("number", ["0", "251"])
def test_a_number_of_hosts_out_of_range_is_refused_by_the_command(number, folder):
    command = [sys.executable, "-m", "cluster.lab", "up", "--hosts", number, "--lab", str(folder)]
    answer = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["submit"], ["submit", "--"], ["run", "2"], ["cut", "2", "--", "ls"]])
def test_what_to_run_comes_after_two_dashes(words):
    with pytest.raises(InputError, match=r"what to run comes after `--`: `python -m cluster.lab submit -- python jobs"):
        lab.main(words)


@pytest.mark.parametrize(
    "words", [["status"], ["cut", "2"], ["join", "2"], ["kill", "2"], ["run", "1", "--", "ls"], ["submit", "--", "ls"]]
)
def test_without_a_lab_it_is_said_how_to_start_one(words, folder):
    with pytest.raises(InputError, match=r"no lab is up in .*lab; start one with `python -m cluster\.lab up`"):
        lab.main([words[0], "--lab", str(folder), *words[1:]])


def test_down_without_a_lab_is_done(folder, capsys):
    assert lab.main(["down", "--lab", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"no lab is up in {folder}")


@makes_hosts
def test_without_rights_nothing_is_written_and_it_is_said_what_to_do(folder):
    if os.geteuid() != 0:
        pytest.skip("needs to give up root's rights")
    os.seteuid(65534)
    try:
        with pytest.raises(InputError, match="may not make network namespaces; run the command as root"):
            keeper.keep(LabConfig(), folder, CHECKOUT, -1)
    finally:
        os.seteuid(0)
    assert not folder.exists()


@makes_hosts
def test_a_second_lab_in_a_folder_is_refused(folder):
    with keeper._locked(folder), pytest.raises(InputError, match=r"a lab is up already in .*; end it with `python -m"):
        keeper.keep(LabConfig(), folder, CHECKOUT, -1)


@makes_hosts
def test_a_file_in_the_folder_s_place_is_named(tmp_path):
    (tmp_path / "lab").touch()
    with pytest.raises(InputError, match="can't be a lab's folder, since a file is in its place"):
        keeper.keep(LabConfig(), tmp_path / "lab", CHECKOUT, -1)


class _Lab:
    """Answers as a lab does."""

    num_looks = 0

    def look_after(self):
        self.num_looks += 1

    def cut(self, host):
        if host == "9":
            raise InputError("there is no host 9")
        return f"host {host} is cut off"

    def status(self):
        return "host 1, up"

    def entrance(self, host):
        return Entrance("/proc/self/ns/net", {"GREETING": f"from host {host}"})

    def exit_status(self, job):
        return None


@contextlib.contextmanager
def _served(folder):
    """Let a keeper of such a lab answer until it is taken down."""
    folder.mkdir(parents=True)
    known, ended = _Lab(), []
    with keeper._listener(folder) as listener:

        def serve():
            with keeper._serve(known, listener) as asker:
                keeper._tell(asker, {"answer": "the lab is down"})
            ended.append(True)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield known
        finally:
            if not ended:
                keeper.ask(folder, "down")
            thread.join()


def test_a_keeper_answers_refuses_and_ends(folder, capsys):
    with _served(folder) as known:
        assert (folder / "socket").stat().st_mode & 0o777 == 0o600
        assert lab.main(["cut", "2", "--lab", str(folder)]) == 0
        with pytest.raises(InputError, match="there is no host 9"):
            lab.main(["cut", "9", "--lab", str(folder)])
        with pytest.raises(InputError, match="does not know `dance`; it is of another version"):
            keeper.ask(folder, "dance")
        assert lab.main(["status", "--lab", str(folder)]) == 0
        assert known.num_looks >= 3
        assert lab.main(["down", "--lab", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == ["host 2 is cut off", "host 1, up", "the lab is down"]
    assert list(folder.iterdir()) == []


def test_a_keeper_outlives_what_is_no_command(folder):
    with _served(folder):
        for sent in (b"", b"\n", b"[]\n", b'{"about": "2"}\n', b"\xff\n", json.dumps({"action": "status"}).encode()):
            with socket.socket(socket.AF_UNIX) as connection, keeper._short_path(folder) as path:
                connection.connect(path)
                connection.sendall(sent)
        assert keeper.ask(folder, "status") == "host 1, up"


@makes_hosts
def test_a_command_on_a_host_has_its_variables_and_its_status_is_returned(folder, capfd):
    script = "import os, sys; print(os.environ['GREETING']); sys.exit(7)"
    with _served(folder):
        assert lab.main(["run", "--lab", str(folder), "3", "--", sys.executable, "-c", script]) == 7
        with pytest.raises(InputError, match="there is no command not-a-command"):
            lab.main(["run", "--lab", str(folder), "3", "--", "not-a-command"])
    assert capfd.readouterr().out == "from host 3\n"
