"""Ray: who is let in, whether a cluster and its job server answer, and whether its nodes agree on the time."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from jobs.checks.findings import Finding
from jobs.checks.probes import Probe, ProbeError
from pipeline.system.surroundings import LOOPBACK, RAY_ADDRESS_VARIABLES, RAY_JOB_SERVER

_CONNECT_SECONDS = 3.0
_MAX_OFFSET_SECONDS = 1.0  # logs of several nodes are put in order by their clocks
_OPEN_TO_OTHERS, _PASSABLE_TO_OTHERS = 0o077, 0o011


def check_authentication() -> Iterator[Finding]:
    """Tell whether a Ray of this environment asks for a token, and whether only this user can read it."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode == "disabled":
        cause = "RAY_AUTH_MODE is disabled: whoever reaches the ports of a Ray started so can run code on it"
        yield Finding("Ray's token", "warning", cause, "set it to `token`, unless the network is closed")
    elif mode not in ("", "token"):
        cause = f"RAY_AUTH_MODE is {mode}, which Ray may not know"
        yield Finding("Ray's token", "warning", cause, "set it to `token`")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ.get("RAY_AUTH_TOKEN"):
        if mode in ("", "token"):
            yield Finding("Ray's token", "ok", "given by RAY_AUTH_TOKEN")
    elif path.exists():
        yield from _check_token_file(path, mode)
    elif mode == "token":
        advice = "make one: (umask 077; ray get-auth-token --generate > /dev/null), or copy that of the cluster's head"
        yield Finding("Ray's token", "problem", f"RAY_AUTH_MODE is token, but {path} does not exist", advice)
    elif mode == "":
        cause = "none is set up; a Ray that this project starts for itself has a private one"
        yield Finding("Ray's token", "ok", f"{cause} (before `ray start`, set RAY_AUTH_MODE=token and make one)")


def _check_token_file(path: Path, mode: str) -> Iterator[Finding]:
    permissions = path.stat().st_mode
    if permissions & _OPEN_TO_OTHERS:
        mode_text = f"its mode is {permissions & 0o777:o}"
        if all(folder.stat().st_mode & _PASSABLE_TO_OTHERS for folder in path.resolve().parents):
            cause = f"other users of this machine can read or change {path} ({mode_text})"
            yield Finding("Ray's token", "problem", cause, f"chmod 600 {path}, and make a new one")
        else:
            cause = f"only a folder above {path} keeps other users from it ({mode_text})"
            yield Finding("Ray's token", "warning", cause, f"chmod 600 {path}")
    elif not path.read_text().strip():
        yield Finding("Ray's token", "problem", f"{path} is empty", "make one: ray get-auth-token --generate")
    elif mode == "token":
        yield Finding("Ray's token", "ok", f"{path}, which only this user can read")
    elif mode == "":
        cause = f"{path} exists, but RAY_AUTH_MODE is not set, so Ray may not ask for it"
        yield Finding("Ray's token", "warning", cause, "export RAY_AUTH_MODE=token, here and where `ray start` runs")


def check_ray() -> Iterator[Finding]:
    """Ask the job server, and the cluster that a run would join, if there are any."""
    named = {name: value for name in RAY_ADDRESS_VARIABLES if (value := os.environ.get(name, "").strip())}
    server = next((value for value in named.values() if value.startswith(("http://", "https://"))), "")
    cluster = named.get("RAY_ADDRESS", "")
    if cluster == "local" or cluster.startswith(("http://", "https://")):
        cluster = ""
    # Only joining it tells whether a Ray runs here: on most nodes no job server does, or it has another port.
    is_default = not server and cluster in ("", "auto") and _is_open(RAY_JOB_SERVER)
    if is_default:
        server = RAY_JOB_SERVER
    if not server and not cluster:
        yield Finding("Ray", "ok", "no cluster is named, and no job server answers here; a run starts its own Ray")
    if server:
        with Probe("job-server", server) as probe:
            answer = list(_check_job_server(server, probe, is_named=not is_default))
        yield from answer
        is_here = "RAY_ADDRESS" not in named and urlsplit(server).hostname in LOOPBACK
        if is_here and answer[0].verdict == "ok":
            cluster = "auto"
    if cluster:
        with Probe("cluster") as probe:
            yield from _check_cluster("this machine's" if cluster == "auto" else cluster, probe)


def _check_job_server(address: str, probe: Probe, is_named: bool) -> Iterator[Finding]:
    try:
        versions = probe.answer()
    except ProbeError as error:
        cause, _, advice = str(error).partition("; ")
        yield Finding("Ray's job server", "problem" if is_named else "warning", cause, advice)
        return
    there, here = versions["server"], versions["here"]
    found = f"{address} answers: Ray{f' {there}' if there else ', version unknown'}, here {here}"
    if there and there.split(".")[:2] != here.split(".")[:2]:
        yield Finding("Ray's job server", "warning", found, "use the same version on the cluster and here")
    else:
        yield Finding("Ray's job server", "ok", found)


def _check_cluster(name: str, probe: Probe) -> Iterator[Finding]:
    try:
        clocks = probe.answer()["clocks"]
    except ProbeError as error:
        cause, _, advice = str(error).partition("; ")
        yield Finding("Ray cluster", "problem", cause, advice)
        return
    yield Finding("Ray cluster", "ok", f"{name}: joined, {len(clocks)} node{'s' * (len(clocks) != 1)}")
    for clock in clocks:
        offset, uncertainty = clock["offset_seconds"], clock["uncertainty_seconds"]
        if offset is None:
            yield Finding("Ray cluster", "problem", f"node {clock['node']} does not run a task", "see `ray status`")
        elif abs(offset) - uncertainty > _MAX_OFFSET_SECONDS:
            cause = f"that of node {clock['node']} is {abs(offset):.1f} s {'ahead' if offset > 0 else 'behind'}"
            yield Finding("clocks", "warning", cause, "let a time service (chrony, systemd-timesyncd) keep them")
    told = [clock for clock in clocks if clock["offset_seconds"] is not None]
    if told:
        largest = max(abs(clock["offset_seconds"]) + clock["uncertainty_seconds"] for clock in told)
        if largest <= _MAX_OFFSET_SECONDS:
            yield Finding("clocks", "ok", f"those of all nodes that answer agree within {largest:.2g} s")


def _is_open(address: str) -> bool:
    url = urlsplit(address)
    try:
        socket.create_connection((url.hostname, url.port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
