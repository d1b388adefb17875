"""A Ray cluster of several hosts on this machine: links of any bandwidth, which can be cut, and workers of any speed.

    python -m cluster.lab up --hosts 3 --cpus 0.4 --bandwidth 1gbit
    python -m cluster.lab submit -- python jobs/train.py --data DATASET --run RUN --workers 2:3
    python -m cluster.lab cut 2
    python -m cluster.lab join 2
    python -m cluster.lab down

Each host is a network namespace with its own address and its own Ray; the first is the head. They share this machine's
files. Linux only, by root only. A process in the background keeps the lab up until `down`. Jobs run in the directory in
which `up` was called.
"""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cluster.lab import keeper
from cluster.lab.linux import network_entered
from cluster.lab.local_ray import environment
from cluster.lab.ray_lab import LabConfig
from pipeline import embedded
from pipeline.command import InputError, called_as, run_command

_MODULE = "cluster.lab"
_BY_SIGNAL = 128  # status of a command that a signal ended, less the signal
_Host = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HOST")]


@dataclass(frozen=True, kw_only=True)
class InLab:
    """Which lab is meant."""

    lab: Path | None = None
    """Folder of the lab. Default: one in the user's cache; another lab beside it needs another folder."""

    @property
    def folder(self) -> Path:
        """The folder."""
        return (self.lab or embedded.cache_folder() / "lab").absolute()

    def command(self, words: str) -> str:
        """Return a command line for the same lab."""
        name, _, rest = words.partition(" ")
        of_lab = [f"--lab {self.lab}"] if self.lab else []
        return " ".join([called_as(_MODULE), name, *of_lab, *([rest] if rest else [])])


@dataclass(frozen=True, kw_only=True)
class Up(LabConfig, InLab):
    """Start a lab, and wait until all its hosts are up."""


@dataclass(frozen=True, kw_only=True)
class Submit(InLab):
    """Run a command as a job, by `ray job submit`: `submit -- python jobs/train.py ...`. Its status is the job's."""


@dataclass(frozen=True, kw_only=True)
class Run(InLab):
    """Run a command on a host, such as `run 1 -- ray job stop JOB`. Its status is the command's."""

    host: _Host
    """Number of the host."""


@dataclass(frozen=True, kw_only=True)
class Cut(InLab):
    """Cut a host off, as if its cable were pulled."""

    host: _Host
    """Number of the host, from 2; 1 is the head."""


@dataclass(frozen=True, kw_only=True)
class Join(InLab):
    """Connect a host again that was cut off or killed, and start Ray on it anew if that has ended."""

    host: _Host
    """Number of the host, from 2; 1 is the head."""


@dataclass(frozen=True, kw_only=True)
class Kill(InLab):
    """End everything on a host at once, as if it lost its power."""

    host: _Host
    """Number of the host, from 2; 1 is the head."""


@dataclass(frozen=True, kw_only=True)
class Status(InLab):
    """Say of each host whether it is part of the cluster, and how long its workers were held up, summed over CPUs."""


@dataclass(frozen=True, kw_only=True)
class Down(InLab):
    """End the lab, with whatever runs on its hosts, and remove what killed labs have left."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    own, words = words[:end], words[end + 1 :]
    command = tyro.cli(
        Up | Submit | Run | Cut | Join | Kill | Status | Down,
        args=own,
        prog=called_as(_MODULE),
        description=__doc__,
    )
    if isinstance(command, (Submit, Run)) != bool(words):
        raise InputError(
            f"what to run comes after `--`: `{called_as(_MODULE)} submit -- python jobs/train.py ...`; the commands "
            "`submit` and `run HOST` need it, the others have none"
        )
    match command:
        case Up():
            return _up(command)
        case Submit():
            return _submit(command, words)
        case Run():
            return _run(command.folder, command.host, words)
        case Down():
            return _down(command)
        case Cut() | Join() | Kill():
            _say(keeper.ask(command.folder, type(command).__name__.lower(), command.host))
        case Status():
            _say(keeper.ask(command.folder, "status"))
    return 0


def _up(command: Up) -> int:
    config = LabConfig(**{each.name: getattr(command, each.name) for each in dataclasses.fields(LabConfig)})
    config.shaped_link()  # refuses here what it can't be
    status = keeper.start(config, command.folder)
    if status == 0:
        train = f"python jobs/train.py --data DATASET --run RUN --workers 1:{config.hosts}"
        hints = [f"submit -- {train}", "status", *(["cut 2", "join 2"] if config.hosts > 1 else []), "down"]
        _say("\n  ".join([f"{config.hosts} hosts are up:", *map(command.command, hints)]))
    return status


def _down(command: Down) -> int:
    try:
        _say(keeper.ask(command.folder, "down"))
    except keeper.NoLab:
        _say(f"no lab is up in {command.folder}")
    ended = keeper.remove_remains()
    if ended:
        _say(f"{ended} processes ended that killed labs had left")
    return 0


def _submit(command: Submit, words: Sequence[str]) -> int:
    """Submit a job and wait for its end; return its exit status."""
    name = f"lab-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        status = _run(command.folder, "1", ["ray", "job", "submit", "--submission-id", name, "--", *words])
    except KeyboardInterrupt:
        stop = command.command(f"run 1 -- ray job stop {name}")
        sys.stderr.write(f"the job goes on; `{stop}` stops it\n")
        raise
    if status != 0:  # `ray job submit` says that a job failed, but not how
        with contextlib.suppress(InputError):  # the lab is down
            status = keeper.ask(command.folder, "exit-status", name) or status
    return status


def _run(folder: Path, host: str, words: Sequence[str]) -> int:
    """Run a command on a host, and return its exit status: as in a shell, 128 and more if a signal ended it."""
    entrance = keeper.ask(folder, "entrance", host)
    try:
        with network_entered(entrance["network"]):
            process = subprocess.Popen(words, env=environment() | entrance["environment"])
    except FileNotFoundError as error:
        if error.filename != words[0]:  # the lab has ended meanwhile
            raise
        raise InputError(f"there is no command {words[0]}; name one that is on the PATH") from error
    try:
        status = process.wait()
        return status if status >= 0 else _BY_SIGNAL - status
    except BaseException:
        process.terminate()  # Ctrl-C has reached it by itself
        process.wait()
        raise


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)
