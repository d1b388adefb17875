"""A Ray cluster whose nodes are hosts on this machine: links of any bandwidth that can be cut, workers of any speed.

What `python -m cluster.lab` keeps up; see there.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.lab.cpu_quota import check_limit
from cluster.lab.hosts import Host, Hosts, hosts
from cluster.lab.local_ray import LocalRay
from cluster.lab.ray_node import Node
from cluster.lab.shaped_link import ShapedLink, parse_bandwidth
from cluster.lab.worker_limits import WorkerLimits
from pipeline.command import InputError

_HEAD = 1
_STAYS_SECONDS = 20.0  # in which a cluster gives up a node that does not answer; see QUICK_HEALTH_CHECK_VARIABLES
_ENDS_SECONDS = 15.0  # in which a raylet ends that learns that it was given up
_POLL_SECONDS = 0.5
_LATENCY = re.compile(r"(\d+\.?\d*|\.\d+) ?(us|ms|s)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, kw_only=True)
class LabConfig:
    """What a lab consists of."""

    hosts: int = 3
    """Number of hosts. The first is Ray's head; each has room for one worker."""
    cpus: float | None = None
    """CPUs that the workers of a host may use from their first step on, 0.1 or more. Default: no limit."""
    bandwidth: str | None = None
    """Bandwidth of each host's link, in both directions, such as 1gbit or 250mbit. Default: as the machine has it."""
    latency: str | None = None
    """Time that a packet takes from host to host, such as 2ms; needs --bandwidth, and a kernel with sch_netem."""
    check: bool = True
    """Measure the shaped link, and refuse it if latency + bytes / bandwidth does not fit it within 5 %."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: Names the field, its value and what would be right.
        """
        check_limit("cpus", self.cpus)

    def shaped_link(self) -> ShapedLink | None:
        """Return the link of each host.

        Raises:
            InputError: Bandwidth or latency can't be read, or are out of range.
        """
        if self.bandwidth is None:
            if self.latency is not None:
                raise InputError("--latency is for a shaped link; give its --bandwidth, too, such as 1gbit")
            return None
        found = _LATENCY.fullmatch(self.latency or "0s")
        if found is None:
            raise InputError(f"--latency {self.latency} is not a time; write a number and us, ms or s, such as 2ms")
        try:
            return ShapedLink(
                gigabits_per_second=parse_bandwidth(self.bandwidth),
                latency_seconds=float(found[1]) * _SECONDS[found[2]],
            )
        except ValueError as error:
            raise InputError(str(error)) from error


@dataclass(frozen=True)
class Entrance:
    """What another process needs to run a command on a host.

    Attributes:
        network: Path of the host's network namespace.
        environment: Variables of the command: those of the host, and Ray's addresses and token.
    """

    network: str
    environment: dict[str, str]


class RayLab:
    """A lab that is up."""

    def __init__(self, config: LabConfig, lab: Hosts, cluster: LocalRay, limits: WorkerLimits | None) -> None:
        """Start Ray on the other hosts; see `ray_lab`."""
        self._config, self._lab, self._cluster, self._limits = config, lab, cluster, limits
        self._nodes: list[Node | None] = [cluster.head, *(cluster.begin_node(1, host) for host in lab[1:])]

    def wait_until_ready(self) -> None:
        """Wait until all hosts are part of the cluster."""
        self._cluster.wait_until_ready()
        for node in self._nodes[1:]:
            assert node is not None
            node.wait_until_ready()

    def look_after(self) -> None:
        """Do what is due; to be called about once a second."""
        if self._limits is not None:
            self._limits.update()

    def cut(self, name: str) -> str:
        """Cut a host off, as if its cable were pulled; return what to tell.

        Raises:
            InputError: There is no such host, it is the head, or it is cut off already.
        """
        number, host = self._other(name, "cut off")
        if host.is_cut:
            raise InputError(f"host {number} is cut off already; `join {number}` connects it again")
        host.cut()
        return f"host {number} is cut off"

    def kill(self, name: str) -> str:
        """End everything on a host, as if it lost its power; return what to tell.

        Raises:
            InputError: There is no such host, or it is the head.
        """
        number, _ = self._other(name, "killed")
        self._end_node(number)
        return f"host {number} has lost its power"

    def join(self, name: str) -> str:
        """Connect a host again, and start Ray on it unless the cluster did not miss it; return what to tell.

        Raises:
            InputError: There is no such host, it is the head, or Ray did not start or does not answer.
        """
        number, host = self._other(name, "joined again")
        was_cut, node = host.is_cut, self._nodes[number - 1]
        host.reconnect()
        stays = node is not None and self._stays(node, host, was_cut)
        if stays is None:
            raise InputError(
                f"host {number} is connected, but Ray does not say whether it is part of the cluster; `join {number}` "
                "asks again"
            )
        if stays:
            return f"host {number} is part of the cluster" + (": it was not missed" if was_cut else " already")
        self._end_node(number)
        self._nodes[number - 1] = self._cluster.add_node(1, host)
        return f"host {number} has joined"

    def status(self) -> str:
        """Return what there is, a line for each host."""
        living, bandwidth = self._cluster.living_addresses(), self._config.bandwidth
        throttled = None if self._limits is None else self._limits.throttled_seconds()
        lines = []
        for index, host in enumerate(self._lab):
            words = [f"host {index + 1}", host.address + " (head)" * (index + 1 == _HEAD)]
            words.append("cut off" if host.is_cut else f"link of {bandwidth}" if bandwidth else "link not shaped")
            ray = "Ray does not say" if living is None else "in the cluster" if host.address in living else "missed"
            words.append("no Ray" if self._nodes[index] is None else ray)
            if throttled is not None:
                words.append(
                    f"workers of {self._config.cpus:g} CPUs, held up for {throttled[index]:.1f} s over all CPUs"
                )
            lines.append(", ".join(words))
        return "\n".join(lines)

    def exit_status(self, job: str) -> int | None:
        """Return the exit status of a job's command; None if Ray does not know it."""
        answer = self._cluster.head.ask(f"{self._cluster.address}/api/jobs/{job}")
        status = json.loads(answer or "{}").get("driver_exit_code")
        return None if status is None else int(status)

    def entrance(self, name: str) -> Entrance:
        """Return what another process needs to run a command on a host.

        Raises:
            InputError: There is no such host.
        """
        host, cluster = self._lab[self._number(name) - 1], self._cluster
        kept = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "no_proxy", "NO_PROXY")
        variables = {key: value for key, value in cluster.environment.items() if key in kept}
        variables |= {"RAY_ADDRESS": cluster.gcs_address, "RAY_API_SERVER_ADDRESS": cluster.address}
        return Entrance(host.network_path, {**variables, **host.environment})

    def _other(self, name: str, what: str) -> tuple[int, Host]:
        """Return number and host by its name, which is not the head."""
        if (number := self._number(name)) == _HEAD:
            raise InputError(
                f"host {_HEAD} is Ray's head, without which there is no cluster, so it can't be {what}; choose another "
                "host, or take the lab down"
            )
        return number, self._lab[number - 1]

    def _number(self, name: str) -> int:
        number = int(name.removeprefix("host")) if name.removeprefix("host").isdecimal() else 0
        if not 1 <= number <= len(self._lab):
            raise InputError(f"there is no host {name}; the lab has the hosts 1 to {len(self._lab)}")
        return number

    def _end_node(self, number: int) -> None:
        self._lab[number - 1].kill()
        node = self._nodes[number - 1]
        if node is not None:
            node.stop()
        self._nodes[number - 1] = None

    def _stays(self, node: Node, host: Host, was_cut: bool) -> bool | None:
        """Return whether a host's Ray is still part of the cluster, once that is settled; None if Ray does not say."""
        ends = time.monotonic() + (_STAYS_SECONDS if was_cut else 0)
        is_known, is_missed = False, False
        while node.is_running:
            living = self._cluster.living_addresses()
            is_known = is_known or living is not None
            if living is not None and host.address not in living and not is_missed:
                is_missed, ends = True, time.monotonic() + _ENDS_SECONDS
            if time.monotonic() > ends:
                return not is_missed if is_known else None
            time.sleep(_POLL_SECONDS)
        return False


@contextlib.contextmanager
def ray_lab(config: LabConfig, working_directory: Path, say: Callable[[str], None]) -> Iterator[RayLab]:
    """Make a lab that exists while the block runs.

    Args:
        config: What it consists of.
        working_directory: Directory that submitted jobs run in.
        say: Is told how far it is.

    Raises:
        InputError: This process may not, the link is not as it should be, or Ray did not start.
    """
    link = config.shaped_link()
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(hosts(config.hosts, link))
        limits = None
        if config.cpus is not None:
            limits = WorkerLimits(lab, config.cpus)
            stack.callback(limits.close)
        if link is not None and config.check and config.hosts > 1:
            say(f"measuring the link of {config.bandwidth}")
            _check(lab, say)
        say(f"starting Ray on {config.hosts} host{'s' * (config.hosts > 1)}")
        cluster = LocalRay(1, working_directory, lab[0], [host.address for host in lab])
        stack.callback(cluster.stop)
        cluster.wait_until_ready()
        up = RayLab(config, lab, cluster, limits)
        up.wait_until_ready()
        yield up


def _check(lab: Hosts, say: Callable[[str], None]) -> None:
    from cluster.lab.link_sweep import accepted_link  # here: it loads torch

    fit = accepted_link(lab)
    megabytes, milliseconds = fit.link.bytes_per_second / 1e6, fit.link.latency_seconds * 1e3
    say(f"  {milliseconds:.2f} ms + bytes / {megabytes:.1f} MB/s, which fits within {fit.largest_deviation:.1%}")
