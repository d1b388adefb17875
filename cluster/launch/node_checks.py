"""What a node has of what a run needs, looked at on the node; `node_findings.py` judges it.

Looking loads neither torch, DALI nor Ray: it adds to the time until the first step.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.worker.emulation import Emulation
from pipeline.command import InputError
from pipeline.online.shard_maps import max_open_files
from pipeline.paths import CHECKOUT, lies_inside
from pipeline.system.memory import available_memory_bytes

_DISTRIBUTIONS = {
    "torch": ("torch",),
    "DALI": ("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    "nvImageCodec": ("nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu12"),  # decodes for DALI
    "ray": ("ray",),
    "numpy": ("numpy",),
    "numba": ("numba",),
    "pyarrow": ("pyarrow",),
}
_CODE_FOLDERS = ("pipeline", "model", "cluster")


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a run needs of every node that may hold a worker.

    Attributes:
        dataset_path: Dataset folder, absolute; None: no dataset is needed.
        dataset_sha256: SHA-256 of its `dataset.json`; None without one.
        folder: Folder that the workers write to and all of them read; absolute, may not exist yet.
        option: Option of the command line that names the folder.
        num_bytes: Bytes that will be written to the folder.
        worker_bytes: Memory that each worker takes at least.
        replaces_bad_samples: Samples of a shard that is absent or of another size are replaced.
        may_be_bfloat16: It matters whether a node emulates bfloat16.
        num_shards: Number of shards of the dataset.
    """

    dataset_path: Path | None
    dataset_sha256: str | None
    folder: Path
    option: str = "--run"
    num_bytes: int = 0
    worker_bytes: int = 0
    replaces_bad_samples: bool = False
    may_be_bfloat16: bool = False
    num_shards: int = 0


@dataclass(frozen=True)
class Node:
    """A node as the cluster describes it.

    Attributes:
        name: Name for people.
        num_cpus: CPUs that the node offers to Ray.
        num_workers: Largest number of this run's workers that it may get; 0 for a driver's node that gets none.
        num_gpus: GPUs of those workers.
    """

    name: str
    num_cpus: float = 0
    num_workers: int = 0
    num_gpus: int = 0


@dataclass(frozen=True)
class Probe:
    """A file that the driver wrote to the shared folder, or to the nearest folder above it that exists."""

    path: Path
    token: str


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What was found on a node.

    Attributes:
        node: Node that was looked at.
        executable: Python that runs tasks there.
        versions: Versions of Python and the libraries; absent ones are left out.
        code_digest: SHA-256 over this project's source files as they are imported there.
        dataset_sha256: SHA-256 of `dataset.json`; None where it can't be read.
        dataset_error: Reason why the dataset can't be used, or empty.
        sees_probe: The driver's probe is there.
        write_error: Reason why nothing can be written beside the probe, or empty.
        free_disk_bytes: Free bytes of the shared folder's file system; None where it can't be reached.
        free_shared_memory_bytes: Free bytes of /dev/shm; None where there is none.
        free_temp_bytes: Free bytes of the file system of Ray's temporary folder; None where it is not known or can't be
            reached.
        num_cpus: CPUs that a process there may use.
        available_memory_bytes: Memory available without swapping, within the container's limit.
        max_open_files: Largest limit of open files that a process may set; None: any number.
        emulation: How its workers would emulate bfloat16; None: they would not, or it was not asked.
    """

    node: Node
    executable: str
    versions: Mapping[str, str]
    code_digest: str
    dataset_sha256: str | None
    dataset_error: str
    sees_probe: bool
    write_error: str
    free_disk_bytes: int | None
    free_shared_memory_bytes: int | None
    free_temp_bytes: int | None
    num_cpus: int
    available_memory_bytes: int
    max_open_files: int | None = None
    emulation: Emulation | None = None


@contextlib.contextmanager
def written_probe(folder: Path) -> Iterator[Probe]:
    """Write a probe for the nodes to look for, and remove it at the end.

    Args:
        folder: Folder to probe; where it does not exist yet, the nearest one above it is probed. The probe's name is
            random, so that no file system can have remembered that it is absent.

    Raises:
        InputError: Nothing can be written there.
    """
    while not folder.exists():
        folder = folder.parent
    token = uuid.uuid4().hex
    path = folder / f".preflight-{token}.tmp"
    try:
        path.write_text(token)
    except OSError as error:
        raise InputError(
            f"can't write to {folder} ({error.strerror}); choose a folder that you may write to"
        ) from error
    try:
        yield Probe(path, token)
    finally:
        with contextlib.suppress(OSError):  # a shared file system may be out of reach for the moment
            path.unlink()


def inspect_node(node: Node, requirements: Requirements, probe: Probe, temp_folder: Path | None) -> NodeReport:
    """Look at the node that this runs on.

    Args:
        node: Description of that node.
        requirements: Needs of the run.
        probe: File that the driver wrote.
        temp_folder: Ray's temporary folder on this node; None where it is not known.
    """
    dataset_sha256, dataset_error = read_dataset(requirements.dataset_path, requirements.replaces_bad_samples)
    folder = probe.path.parent
    return NodeReport(
        node=node,
        executable=sys.executable,
        versions=versions(),
        code_digest=code_digest(),
        dataset_sha256=dataset_sha256,
        dataset_error=dataset_error,
        sees_probe=_sees(probe),
        write_error=_try_to_write(folder),
        free_disk_bytes=_free_bytes(folder),
        free_shared_memory_bytes=_free_bytes(Path("/dev/shm")),
        free_temp_bytes=None if temp_folder is None else _free_bytes(temp_folder),
        num_cpus=len(os.sched_getaffinity(0)),
        available_memory_bytes=available_memory_bytes(),
        max_open_files=max_open_files(),
    )


def this_host() -> str:
    """Return this machine's name."""
    return socket.gethostname()


def read_dataset(path: Path | None, replaces_bad_samples: bool = False) -> tuple[str | None, str]:
    """Return the SHA-256 of `dataset.json`, and what is wrong with the files that it names and that the run needs."""
    if path is None:
        return None, ""
    try:
        content = (path / "dataset.json").read_bytes()
        files = {name: written["num_bytes"] for name, written in json.loads(content)["files"].items()}
    except OSError as error:
        return None, f"can't be read there ({error.strerror})"
    except (AttributeError, KeyError, TypeError, ValueError):
        return None, "can't be read there (dataset.json is broken)"
    outside = next((name for name in files if not lies_inside(name)), None)
    if outside is not None:
        return None, f"can't be used there (dataset.json names the file {outside!r}, which is not inside its folder)"
    needed = {name: size for name, size in files.items() if not (replaces_bad_samples and name.endswith(".tar"))}
    broken = [name for name, num_bytes in needed.items() if _num_bytes(path / name) != num_bytes]
    more = f" and {len(broken) - 1} more files" if len(broken) > 1 else ""
    lacks = f"is incomplete there ({broken[0]}{more} missing, unreadable or of another size)" if broken else ""
    return hashlib.sha256(content).hexdigest(), lacks


def _num_bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size if os.access(path, os.R_OK) else None
    except OSError:
        return None


def _sees(probe: Probe) -> bool:
    try:
        return probe.path.read_text() == probe.token
    except OSError:
        return False


def _try_to_write(folder: Path) -> str:
    path = folder / f".preflight-{uuid.uuid4().hex}.tmp"
    try:
        path.touch()
        path.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide what a run computes, and how fast."""
    found = {"Python": platform.python_version()}
    for name, distributions in _DISTRIBUTIONS.items():
        for distribution in distributions:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(distribution)
    return found


def code_digest(root: Path = CHECKOUT) -> str:
    """Return the SHA-256 over names and contents of the project's modules."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in _CODE_FOLDERS for path in (root / folder).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
