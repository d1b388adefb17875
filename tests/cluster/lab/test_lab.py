"""`python -m cluster.lab`: what it refuses, and how its keeper answers. A lab that is up: test_lab_of_hosts.py."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from needs import makes_hosts

from cluster.lab import __main__ as lab
from cluster.lab import keeper, ray_lab
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


@makes_hosts
def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    (tmp_path / "other").write_bytes(b"mine")
    (tmp_path / "lock").symlink_to("other")
    (tmp_path / "keeper.log").symlink_to("other")
    with pytest.raises(InputError, match=r"other users may write to .*; forbid it with `chmod go-w .*`, or choose"):
        keeper.keep(LabConfig(), tmp_path, CHECKOUT, -1)
    assert (tmp_path / "other").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_another_users_folder_is_refused(kind, tmp_path, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("needs to give files away")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    os.chown(tmp_path / {"folder": "real", "link": "link"}[kind], 65534, 65534, follow_symlinks=False)
    with pytest.raises(InputError, match="is another user's, who could replace the lab's files; choose another --lab"):
        with keeper._locked(tmp_path / {"folder": "real", "link": "link"}[kind]):
            pass
    assert list((tmp_path / "real").iterdir()) == []


def test_another_users_keeper_is_not_asked(folder, monkeypatch, capfd):
    with _served(folder), monkeypatch.context() as patch:
        user = os.geteuid()
        patch.setattr("os.geteuid", lambda: user + 1)
        with pytest.raises(InputError, match=r"the lab in .* is another user's; run the command as that user, or name"):
            lab.main(["run", "--lab", str(folder), "1", "--", "ls"])


class _Lab:
    """Answers as a lab does."""

    num_looks = 0

    def look_after(self):
        self.num_looks += 1

    def join(self, host):
        raise KeyError(host)

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


def test_a_keeper_outlives_errors_of_the_program_and_logs_them(folder, monkeypatch, capfd):
    def fail(known):
        known.num_looks += 1
        raise RuntimeError("look")

    monkeypatch.setattr(_Lab, "look_after", fail)
    with _served(folder) as known:
        for _ in range(2):
            with pytest.raises(InputError, match=r"`join` failed by an error of this program \(KeyError\('7'\)\),"):
                keeper.ask(folder, "join", "7")
        assert keeper.ask(folder, "status") == "host 1, up"
    assert known.num_looks >= 2
    log = capfd.readouterr().err
    assert log.count("KeyError: '7'") == 2 and log.count("RuntimeError: look") == 1


def test_a_keeper_that_is_busy_is_told_from_one_that_ended(folder, monkeypatch):
    monkeypatch.setattr(keeper, "_ANSWER_SECONDS", 0.05)
    folder.mkdir(parents=True)
    with keeper._listener(folder) as listener:
        with pytest.raises(InputError, match=r"has not answered for 0 s; it may be busy .*, and try again$"):
            keeper.ask(folder, "status")
        listener.accept()[0].close()
        monkeypatch.setattr(keeper, "_ANSWER_SECONDS", 30.0)
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(InputError, match=r"the keeper of the lab ended meanwhile"):
            keeper.ask(folder, "status")
        thread.join()


class _Cluster:
    """Says as much of its nodes as it is told to."""

    head = SimpleNamespace(is_running=True)

    def __init__(self, *answers):
        self.answers = list(answers)

    def begin_node(self, cpus, host):
        return SimpleNamespace(is_running=True)

    def living_addresses(self):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.mark.parametrize("answers", [[None], [{"10.0.0.2"}], [None, {"10.0.0.2"}]])
def test_a_host_is_said_to_be_part_of_the_cluster_only_if_ray_says_so(answers, monkeypatch):
    monkeypatch.setattr(ray_lab, "_STAYS_SECONDS", 0.1)
    monkeypatch.setattr(ray_lab, "_POLL_SECONDS", 0.06)
    hosts = [SimpleNamespace(address=f"10.0.0.{n}", is_cut=n == 2, reconnect=lambda: None) for n in (1, 2)]
    up = ray_lab.RayLab(LabConfig(hosts=2), hosts, _Cluster(*answers), None)
    if answers[-1] is None:
        with pytest.raises(InputError, match=r"host 2 is connected, but Ray does not say .*; `join 2` asks again"):
            up.join("2")
    else:
        assert up.join("2") == "host 2 is part of the cluster: it was not missed"


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
        kill = "import os; os.kill(os.getpid(), 15)"
        assert lab.main(["run", "--lab", str(folder), "3", "--", sys.executable, "-c", kill]) == 128 + 15
    assert capfd.readouterr().out == "from host 3\n"
