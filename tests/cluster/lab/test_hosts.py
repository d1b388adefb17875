"""Hosts on one machine: their own network, counted and shaped; and nothing of them outlives their owner."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from needs import MISSING_FOR_HOSTS, makes_hosts

from cluster.lab import linux
from cluster.lab.host_workers import run_workers
from cluster.lab.hosts import INTERFACE, end_orphans, hosts
from cluster.lab.linux import NetworkNamespace
from cluster.lab.shaped_link import ShapedLink, parse_bandwidth
from pipeline.command import InputError
from pipeline.paths import CHECKOUT

_SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
_MEGABYTES = 8
_TOTAL_RETRANS = 100  # place of tcpi_total_retrans in Linux's struct tcp_info


def _interfaces() -> list[str]:
    return sorted(os.listdir("/sys/class/net"))


def _wait(condition, what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def _send(lab, num_bytes: int) -> int:
    """Let the second host send bytes to the first; return the number of packets that TCP had to send again."""
    with lab[0].entered():
        listener = socket.create_server((lab[0].address, 0))
    with lab[1].entered():
        sender = socket.create_connection(listener.getsockname())
    receiver, _ = listener.accept()

    def receive() -> None:
        while receiver.recv(1 << 20):
            pass

    thread = threading.Thread(target=receive)
    thread.start()
    with listener, receiver, sender:
        sender.sendall(bytes(num_bytes))
        sender.shutdown(socket.SHUT_WR)
        thread.join()
        return struct.unpack_from("I", sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), _TOTAL_RETRANS)[0]


@makes_hosts
@pytest.mark.parametrize("link", [None, ShapedLink(gigabits_per_second=1.0)], ids=["unshaped", "shaped"])
def test_traffic_between_hosts_is_counted(link):
    with hosts(3, link) as lab:
        before = [host.counters() for host in lab]
        resent = _send(lab, _MEGABYTES << 20) * (1500 + 14)  # bytes; on a busy machine there are some
        receiver, sender, other = (
            (
                now.sent_bytes - then.sent_bytes,
                now.received_bytes - then.received_bytes,
                now.wire_bytes - then.wire_bytes,
            )
            for then, now in zip(before, (host.counters() for host in lab), strict=True)
        )
    payload = _MEGABYTES << 20
    for num_bytes in (sender[0], receiver[1]):
        assert payload <= num_bytes <= 1.01 * payload + resent
    assert receiver[0] < 0.02 * payload and sender[1] < 0.02 * payload  # acknowledgements
    packets = payload / 1448  # 1,500 bytes less the headers of IP and TCP
    assert sender[2] == pytest.approx(payload + packets * 66 + resent, rel=0.003)
    assert other[0] < 10_000 and other[1] < 10_000  # a bridge sends to all only what it does not know the way of


@makes_hosts
def test_hosts_are_apart_from_the_machines_network_and_from_other_labs():
    before = _interfaces()
    with hosts(2) as lab, hosts(2) as other:
        assert _interfaces() == before
        assert [host.address for host in lab] == [host.address for host in other]
        with lab[0].entered():
            listener = socket.create_server((lab[0].address, 0))
        with listener:
            port = listener.getsockname()[1]
            with pytest.raises(ConnectionRefusedError), other[1].entered():
                socket.create_connection((lab[0].address, port), timeout=10)
            with lab[0].entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outwards:
                with pytest.raises(OSError, match="unreachable"):
                    outwards.connect(("192.0.2.1", 9))
    assert _interfaces() == before


@makes_hosts
def test_a_process_on_a_host_has_its_network_and_is_told_its_interface():
    script = """
import json, os, socket
names = [name for _, name in socket.if_nameindex()]
print(json.dumps([names, os.environ["GLOO_SOCKET_IFNAME"], os.environ.get("A"), "HOME" in os.environ]))
"""
    with hosts(1) as lab:
        command = [sys.executable, "-c", script]
        process = lab[0].popen(command, environment={"A": "1"}, stdout=subprocess.PIPE, text=True)
        names, interface, variable, has_others = json.loads(process.communicate()[0])
    assert sorted(names) == [interface, "lo"] and interface == INTERFACE
    assert variable == "1" and not has_others


def _rates(lab) -> set[int | None]:
    """Return the rates of both ends of each link, in bits per second."""
    found = set()
    for host in lab:
        for network, interface in ((host._network, INTERFACE), (host._switch, host._port)):
            with network.entered():
                shown = subprocess.run(["tc", "-j", "qdisc", "show", "dev", interface], capture_output=True)
            (queue,) = json.loads(shown.stdout)
            found.add(queue["options"].get("rate", 0) * 8 or None)
    return found


@makes_hosts
def test_links_change_without_new_hosts():
    with hosts(2, ShapedLink(gigabits_per_second=0.1)) as lab:
        assert _rates(lab) == {100_000_000}
        sleeper = lab[0].popen(_SLEEP)
        for gigabits, expected in ((1.0, 1_000_000_000), (None, None), (0.5, 500_000_000)):
            lab.shape(gigabits and ShapedLink(gigabits_per_second=gigabits))
            assert _rates(lab) == {expected}
        assert sleeper.poll() is None
    assert sleeper.wait() == -signal.SIGKILL


@makes_hosts
def test_a_cut_link_is_silent_in_both_directions_until_it_is_connected_again():
    with hosts(2, ShapedLink(gigabits_per_second=0.1)) as lab:
        with lab[0].entered():
            listener = socket.create_server((lab[0].address, 0))
        with lab[1].entered():
            there = socket.create_connection(listener.getsockname())
        here, _ = listener.accept()
        with listener, here, there:
            for host in lab:
                host.cut()
                assert [each.is_cut for each in lab] == [each is host for each in lab]
                here.send(b"a")
                there.send(b"b")
                for end in (here, there):
                    end.settimeout(0.3)
                    with pytest.raises(TimeoutError):
                        end.recv(1)
                host.reconnect()
                here.settimeout(30)
                there.settimeout(30)
                assert (there.recv(1), here.recv(1)) == (b"a", b"b")  # what was lost is sent again
        assert _rates(lab) == {100_000_000} and not any(host.is_cut for host in lab)


@makes_hosts
def test_a_latency_is_that_of_the_link_or_it_is_said_that_this_kernel_has_none():
    link = ShapedLink(gigabits_per_second=1.0, latency_seconds=0.05)
    try:
        with hosts(2, link) as lab:
            with lab[0].entered():
                listener = socket.create_server((lab[0].address, 0))
            began = time.monotonic()
            with listener, lab[1].entered():
                socket.create_connection(listener.getsockname()).close()
            assert time.monotonic() - began >= 2 * link.latency_seconds
            lab.shape(ShapedLink(gigabits_per_second=0.1))
            assert _rates(lab) == {100_000_000}
    except InputError as error:
        assert re.fullmatch(
            r"this kernel can't delay packets, since it lacks sch_netem \(.+\); leave out .+", str(error)
        )


@makes_hosts
def test_what_processes_have_started_ends_with_the_lab():
    with _family() as (command, read_grandchild), hosts(1) as lab:
        child = lab[0].popen(command, stdout=subprocess.PIPE)
        grandchild = read_grandchild(child)
        assert {child.pid, grandchild.pid} <= set(lab[0].process_ids())
    assert child.wait() == -signal.SIGKILL
    _wait(lambda: not _is_alive(grandchild), "the grandchild ended")


@contextlib.contextmanager
def _family() -> Iterator[tuple]:
    """Yield a command that starts a process in a session of its own, and a function that reads that process."""
    script = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({_SLEEP!r}, start_new_session=True, env={{}})\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    found = []

    def read(process) -> psutil.Process:
        found.append(psutil.Process(int(process.stdout.readline())))
        process.stdout.close()
        return found[-1]

    try:
        yield [sys.executable, "-c", script], read
    finally:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


_OWNER = """
import json, subprocess, sys, time
from cluster.lab.hosts import hosts
with hosts(2) as lab:
    child = lab[0].popen(json.loads(sys.argv[1]), stdout=subprocess.PIPE, text=True)
    print(json.dumps([child.pid, int(child.stdout.readline()), lab[0]._switch.path]), flush=True)
    time.sleep(600)
"""


@makes_hosts
def test_nothing_is_left_of_a_lab_whose_owner_was_killed():
    with _family() as (command, _):
        arguments = [sys.executable, "-c", _OWNER, json.dumps(command)]
        owner = subprocess.Popen(arguments, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
        child_id, grandchild_id, switch = json.loads(owner.stdout.readline())
        owner.stdout.close()
        child, grandchild = psutil.Process(child_id), psutil.Process(grandchild_id)
        ports = ["nsenter", f"--net={switch}", "ip", "-json", "link", "show", "type", "veth"]
        assert len(json.loads(subprocess.check_output(ports))) == 2
        held = os.open(switch, os.O_RDONLY)  # the switch stays, to look at what becomes of its ports
        ports[1] = f"--net=/proc/{os.getpid()}/fd/{held}"
        owner.kill()
        owner.wait()
        try:
            _wait(lambda: not _is_alive(child), "the host's process ended")
            _wait(lambda: len(json.loads(subprocess.check_output(ports))) <= 1, "the kernel removed the empty host")
            with hosts(1):  # or a lab of another test
                _wait(lambda: not _is_alive(grandchild), "the next lab ended it")
            _wait(lambda: not any(json.loads(subprocess.check_output(ports))), "the kernel removed the other host")
        finally:
            os.close(held)


@makes_hosts
def test_a_living_owner_has_no_orphans():
    with hosts(1) as lab:
        sleeper = lab[0].popen(_SLEEP)
        assert end_orphans() == [] and sleeper.poll() is None


@makes_hosts
@pytest.mark.parametrize("owner", ["", "alice", "12", "999999999-1-1"])
def test_what_runs_in_a_network_of_another_program_or_another_container_is_left_alone(owner):
    network = NetworkNamespace()
    with network.entered():
        subprocess.run(["ip", "link", "set", "lo", "alias", owner], check=True)
        sleeper = subprocess.Popen(_SLEEP)
    try:
        assert sleeper.pid not in end_orphans() and sleeper.poll() is None
    finally:
        network.close()
        sleeper.wait()


@makes_hosts
def test_without_the_right_to_make_namespaces_it_is_said_what_to_do():
    if os.geteuid() != 0:
        pytest.skip("needs to give up root's rights")
    os.seteuid(65534)
    try:
        with pytest.raises(InputError, match="may not make network namespaces; run the command as root"), hosts(1):
            pass
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("missing", ["ip", "tc"])
def test_a_missing_tool_is_named_with_its_package(missing, tmp_path, monkeypatch):
    (tmp_path / ("tc" if missing == "ip" else "ip")).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=f"`{missing}`; install the package iproute2"), hosts(1):
        pass


@pytest.mark.parametrize("number", [0, 251])
def test_a_number_of_hosts_has_bounds(number):
    with pytest.raises(InputError, match="1 to 250"), hosts(number):
        pass


@pytest.mark.parametrize(
    ("text", "gigabits"),
    [("1gbit", 1.0), ("250 mbit", 0.25), ("0.5 Gbit/s", 0.5), ("100000kbit", 0.1), (".5gbit", 0.5)],
)
def test_a_bandwidth_is_read_with_its_unit(text, gigabits):
    assert parse_bandwidth(text) == pytest.approx(gigabits)


@pytest.mark.parametrize("text", ["1", "fast", "1gb", "-1gbit", "1e3gbit", "", "gbit"])
def test_another_bandwidth_is_refused(text):
    with pytest.raises(InputError, match="write a number and kbit, mbit or gbit, such as 1gbit"):
        parse_bandwidth(text)


@pytest.mark.parametrize("gigabits", [0, -1.0, 101])
def test_a_bandwidth_has_bounds(gigabits):
    with pytest.raises(ValueError, match="gigabits_per_second"):
        ShapedLink(gigabits_per_second=gigabits)


def test_the_burst_holds_the_kernels_largest_packet_and_a_millisecond():
    assert ShapedLink(gigabits_per_second=0.1).burst_bytes == 70_000
    assert ShapedLink(gigabits_per_second=10).burst_bytes == 1_250_000


def test_this_thread_returns_to_its_network():
    before = os.stat(linux._THIS_THREADS).st_ino
    if MISSING_FOR_HOSTS is None:
        network = NetworkNamespace()
        with network.entered():
            assert os.stat(linux._THIS_THREADS).st_ino != before
        network.close()
    assert os.stat(linux._THIS_THREADS).st_ino == before


@makes_hosts
def test_a_worker_that_fails_ends_the_others():
    failing = "import os, sys, time\nsys.exit(3) if os.environ['RANK'] == '1' else time.sleep(600)"
    with hosts(2) as lab:
        with pytest.raises(InputError, match=r"\{1: 3\}"):
            run_workers(lab, ["-c", failing])
        with pytest.raises(InputError, match="did not end within 0 s"):
            run_workers(lab, ["-c", "import time; time.sleep(600)"], timeout=0)
