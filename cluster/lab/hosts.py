"""Several hosts on one machine, for measurements: each a network namespace with an address, on links of any bandwidth.

    with hosts(2, ShapedLink(gigabits_per_second=1.0)) as lab:
        process = lab[0].popen([...])
        before = lab[0].counters()

The hosts are joined by a bridge in a further namespace, so nothing appears in the machine's own network, its addresses
can't collide with others, and any number of labs can exist at once. The namespaces have no names: the kernel removes
them with all their interfaces when the lab's owner and the processes on its hosts have ended, be it by SIGKILL. Those
that a host was told to start end with the owner; what they started in turn is ended by the next lab, or `end_orphans`.

Both directions of a link are shaped, by a token bucket each. A bucket that idles fills up again, so the first bytes
after a pause, up to the burst, are not shaped: messages far below the burst are faster than on a real link.

Linux only, by root only; needs `ip` and `tc` of the package iproute2.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from cluster.lab.linux import NetworkNamespace, ended_with_parent, network_entered, network_of
from cluster.lab.owner import is_dead, this_owner
from cluster.lab.shaped_link import ShapedLink
from pipeline.command import InputError

INTERFACE = "eth0"
MAX_HOSTS = 250
_NETWORK = "198.18.0"  # of the range for benchmarks of networks, RFC 2544
_GIVE_UP_SECONDS = 10.0


@dataclass(frozen=True)
class Counters:
    """Bytes that passed a host's interface since it was made.

    The kernel hands large packets to the interface, and they are cut to its MTU afterwards, so the first two count the
    headers of up to 64 KiB once; on a real wire each packet of 1,500 bytes has its own.

    Attributes:
        sent_bytes: Sent bytes, by the interface's counter.
        received_bytes: Received bytes, by the interface's counter.
        wire_bytes: Sent bytes as they would be on a wire, with the headers of every packet; counted anew if the host
            gets a link where it had none, or none where it had one.
    """

    sent_bytes: int
    received_bytes: int
    wire_bytes: int


class Host:
    """One host.

    Attributes:
        address: Its IPv4 address, which the other hosts reach it by.
    """

    def __init__(self, number: int, switch: NetworkNamespace) -> None:
        self.address = f"{_NETWORK}.{number + 1}"
        self._port, self._switch = f"port{number}", switch
        self._network = _network()
        self._started: list[subprocess.Popen[Any]] = []
        self._is_delayed = False

    def connect(self) -> None:
        """Connect it to the switch."""
        peer = ["peer", "name", INTERFACE, "netns", self._network.path]
        _run(self._switch, "ip", "link", "add", self._port, "type", "veth", *peer)
        _run(self._switch, "ip", "link", "set", self._port, "master", "bridge", "up")
        _run(self._network, "ip", "address", "add", f"{self.address}/24", "dev", INTERFACE)
        for name in ("lo", INTERFACE):
            _run(self._network, "ip", "link", "set", name, "up")

    @property
    def environment(self) -> dict[str, str]:
        """Variables for processes on this host: gloo takes an interface that leads to the others."""
        return {"GLOO_SOCKET_IFNAME": INTERFACE}

    def popen(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a process on this host, which is killed when this process's thread ends, however it ends.

        Args:
            command: Command and arguments.
            environment: Its environment, to which the host's variables are added; this process's by default.
            options: Further options of `subprocess.Popen`.
        """
        variables = {**(os.environ if environment is None else environment), **self.environment}
        with self._network.entered():
            process = subprocess.Popen(command, env=variables, preexec_fn=ended_with_parent(signal.SIGKILL), **options)
        self._started.append(process)
        return process

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which this thread is on the host: what it starts and opens belongs to it."""
        return self._network.entered()

    def counters(self) -> Counters:
        """Return what has passed its interface so far."""
        with self._network.entered():
            return own_counters()

    def shape(self, link: ShapedLink | None) -> None:
        """Give it a link of another bandwidth; None: as fast as the machine is."""
        if self._is_delayed:
            _run(self._network, "tc", "qdisc", "delete", "dev", INTERFACE, "root")
        # Even where nothing is shaped there is a queue, for its counter.
        kind = ["pfifo"]
        if link is not None:
            kind = ["tbf", "rate", f"{round(link.bytes_per_second * 8)}bit"]
            kind += ["burst", str(link.burst_bytes), "limit", str(link.queue_bytes)]
        for network, interface in ((self._network, INTERFACE), (self._switch, self._port)):
            _run(network, "tc", "qdisc", "replace", "dev", interface, "root", *kind)
        self._is_delayed = link is not None and link.latency_seconds > 0
        if link is not None and self._is_delayed:
            self._delay(link)

    def _delay(self, link: ShapedLink) -> None:
        """Let what it sends be late."""
        with self._network.entered():
            inner = f"{_root_queue()['handle']}1"
        delay = ["netem", "delay", f"{round(link.latency_seconds * 1e6)}us", "limit", str(link.queue_packets)]
        try:
            _run(self._network, "tc", "qdisc", "add", "dev", INTERFACE, "parent", inner, *delay)
        except InputError as error:
            cause = str(error).rpartition("failed: ")[2].partition("\n")[0]
            raise InputError(
                f"this kernel can't delay packets, since it lacks sch_netem ({cause}); leave out the latency"
            ) from error

    def cut(self) -> None:
        """Cut its link in both directions, like a pulled cable: nobody is told, what is sent is lost."""
        _run(self._switch, "ip", "link", "set", self._port, "down")

    def reconnect(self) -> None:
        """Let its link be as it was before `cut`."""
        _run(self._switch, "ip", "link", "set", self._port, "up")

    @property
    def is_cut(self) -> bool:
        """Whether its link is cut."""
        with self._switch.entered():
            (link,) = json.loads(_answer("ip", "-json", "link", "show", self._port))
        return "UP" not in link["flags"]

    @property
    def network_path(self) -> str:
        """Path of its network namespace, by which other processes enter it while this one lives."""
        return self._network.path

    def process_ids(self) -> list[int]:
        """Return the ids of the processes on it."""
        return self._network.process_ids()

    def kill(self) -> None:
        """End all processes on it by SIGKILL, as when a machine loses its power."""
        self._network.kill()

    def close(self) -> None:
        """End all processes on it, and give it up."""
        self._network.close()
        for process in self._started:
            process.wait()


class Hosts(Sequence[Host]):
    """The hosts of a lab; see `hosts`."""

    def __init__(self, members: Sequence[Host]) -> None:
        self._members = tuple(members)

    @overload
    def __getitem__(self, index: int) -> Host: ...

    @overload
    def __getitem__(self, index: slice) -> "Hosts": ...

    def __getitem__(self, index: int | slice) -> "Host | Hosts":
        """Return a host, or some of them."""
        return Hosts(self._members[index]) if isinstance(index, slice) else self._members[index]

    def __len__(self) -> int:
        """Return the number of hosts."""
        return len(self._members)

    def shape(self, link: ShapedLink | None) -> None:
        """Give each host a link of another bandwidth; None: as fast as the machine is."""
        for host in self._members:
            host.shape(link)


def own_counters() -> Counters:
    """Return the counters of the host that the calling process is on."""
    (link,) = json.loads(_answer("ip", "-json", "-statistics", "link", "show", INTERFACE))
    totals = link["stats64"]
    return Counters(totals["tx"]["bytes"], totals["rx"]["bytes"], _root_queue()["bytes"])


def _root_queue() -> dict[str, Any]:
    """Return what the kernel tells of the outermost queue of the interface."""
    queues = json.loads(_answer("tc", "-json", "-statistics", "qdisc", "show", "dev", INTERFACE))
    return next(queue for queue in queues if queue.get("root"))


def check_num_hosts(num_hosts: int) -> None:
    """Check that a lab may have so many hosts.

    Raises:
        InputError: It may not.
    """
    if not 1 <= num_hosts <= MAX_HOSTS:
        raise InputError(f"{num_hosts} hosts; a lab has 1 to {MAX_HOSTS}")


@contextlib.contextmanager
def hosts(num_hosts: int, link: ShapedLink | None = None) -> Iterator[Hosts]:
    """Make hosts that exist while the block runs; all processes on them are killed at its end.

    Args:
        num_hosts: Number of hosts.
        link: Each host's link; None: as fast as the machine is.

    Raises:
        InputError: This process is not root's, a tool is missing, or there are too many hosts.
    """
    check_num_hosts(num_hosts)
    check_rights()
    end_orphans()
    with contextlib.ExitStack() as stack:
        switch = _network()
        stack.callback(switch.close)
        _run(switch, "ip", "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
        _run(switch, "ip", "link", "set", "bridge", "up")
        members = []
        for number in range(num_hosts):
            members.append(host := Host(number, switch))
            stack.callback(host.close)
            host.connect()
        lab = Hosts(members)
        lab.shape(link)
        yield lab


def check_rights() -> None:
    """Check that this process can make hosts.

    Raises:
        InputError: It is not root's, or a tool is missing.
    """
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise InputError(f"hosts on this machine need the command `{tool}`; install the package iproute2")
    NetworkNamespace().close()


def end_orphans() -> list[int]:
    """Kill what still runs on hosts of labs whose owner has died; return the process ids. Each lab begins with this."""
    found = []
    deadline = time.monotonic() + _GIVE_UP_SECONDS
    while (orphans := _orphans()) and time.monotonic() < deadline:  # including what was started meanwhile
        for orphan in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGKILL)
        found += orphans
    return sorted(set(found))


def _orphans() -> list[int]:
    """Return the processes on hosts whose owner has died."""
    own, networks = network_of("self"), defaultdict(list)
    for name in os.listdir("/proc"):
        if name.isdecimal() and (network := network_of(name)) not in (None, own):
            networks[network].append(int(name))
    return [
        process_id for process_ids in networks.values() if is_dead(_owner(process_ids)) for process_id in process_ids
    ]


def _owner(process_ids: Sequence[int]) -> str:
    """Return the owner of the network that processes share; empty if it is no host's, or they end."""
    for process_id in process_ids:
        with contextlib.suppress(OSError, InputError), network_entered(f"/proc/{process_id}/ns/net"):
            (link,) = json.loads(_answer("ip", "-json", "link", "show", "lo"))
            return str(link.get("ifalias", ""))
    return ""


def _network() -> NetworkNamespace:
    """Return a new namespace whose interfaces send nothing by themselves."""
    network = NetworkNamespace()
    # IPv6 looks for neighbours and routers by itself.
    with network.entered(), contextlib.suppress(OSError):
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    # Not by a variable of the processes: Ray's write their titles over their environment.
    _run(network, "ip", "link", "set", "lo", "alias", this_owner())
    return network


def _run(network: NetworkNamespace, *command: str) -> None:
    """Run a command of iproute2 in a namespace."""
    with network.entered():
        _answer(*command)


def _answer(*command: str) -> str:
    """Run a command of iproute2, and return what it prints."""
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        raise InputError(f"`{' '.join(command)}` failed: {answer.stderr.strip() or answer.returncode}")
    return answer.stdout
