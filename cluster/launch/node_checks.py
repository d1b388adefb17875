"""What a node must have for a run to succeed, looked at on the node, and judged beside what the driver has.

Looking (`inspect_node`) loads neither torch, DALI nor Ray: it adds to the time until the first step. Judging (`judge`)
is a pure function of a node's report and the driver's. An error is what would end the run, or make it another one, if a
worker lay on that node: nothing is placed there. A warning may.

Versions of what decides bits must be the same everywhere: pictures are equal per decoder and its version, and a step's
result per torch. Of torch the release counts: `2.9.0+cpu` on a head without GPUs beside `2.9.0+cu130` is usual. Other
versions that differ are said.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from cluster.worker.emulation import Emulation
from pipeline.command import InputError
from pipeline.online.shard_maps import max_open_files, open_files_for
from pipeline.paths import CHECKOUT, lies_inside

_DISTRIBUTIONS = {
    "torch": ("torch",),
    "DALI": ("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    "nvImageCodec": ("nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu12"),  # decodes for DALI
    "ray": ("ray",),
    "numpy": ("numpy",),
    "numba": ("numba",),
    "pyarrow": ("pyarrow",),
}
_DECIDES_BITS = ("torch", "DALI", "nvImageCodec")
_CODE_FOLDERS = ("pipeline", "model", "cluster")
# NCCL makes segments of 6 to 14 MB for pairs of neighbouring GPUs; Docker's default of 64 MB was too little for four
# (NVIDIA/nccl#342, #1518).
_SHARED_MEMORY_BYTES_PER_GPU = 64 * 2**20
_TEMP_BYTES = 10**9  # Ray's logs and the unpacked upload; Ray itself complains when a disk is 95 % full
_MOUNT = "mount the shared file system on every node, under the same path"


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a run needs of every node that may hold a worker.

    Attributes:
        dataset_path: The dataset folder, absolute.
        dataset_sha256: Of its `dataset.json`.
        folder: What the workers write to and all of them read; absolute, may not exist yet.
        option: Of the command line, that names it.
        num_bytes: That will be written to it.
        worker_bytes: Of memory that each worker takes at least.
        replaces_bad_samples: Samples of a shard that is absent or of another size are replaced.
        may_be_bfloat16: It matters whether a node emulates bfloat16.
        num_shards: Of the dataset.
    """

    dataset_path: Path
    dataset_sha256: str
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
        name: For people.
        num_cpus: That it offers.
        num_workers: Most workers of this run that it may get; 0 for a driver's node that gets none.
        num_gpus: That those take.
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
        node: Which one.
        executable: The Python that runs tasks there.
        versions: Of Python and the libraries; those that are absent are left out.
        code_digest: Of this project's source files as they are imported there.
        dataset_sha256: Of `dataset.json`; None where it can't be read.
        dataset_error: Why the dataset can't be used, or empty.
        sees_probe: The driver's probe is there.
        write_error: Why nothing can be written beside it, or empty.
        free_disk_bytes: On the shared folder's file system; None where it can't be reached.
        free_shared_memory_bytes: Of /dev/shm; None where there is none.
        free_temp_bytes: On the file system of Ray's temporary folder; None where it is not known or can't be reached.
        num_cpus: That this process may use.
        available_memory_bytes: Without swapping, and within the container's limit.
        max_open_files: That a process may raise its limit to; None: any number.
        emulation: How its workers would emulate bfloat16; None: not at all, or not asked.
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


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: where, what, and what to do."""

    severity: Literal["error", "warning"]
    node: str
    cause: str
    next_step: str


def messages(findings: Sequence[Finding], severity: Literal["error", "warning"]) -> list[str]:
    """Return the findings of a severity, a line each; nodes with the same one share a line."""
    nodes: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if finding.severity == severity:
            nodes.setdefault((finding.cause, finding.next_step), []).append(finding.node)
    return [f"{_names(names)}: {cause}; {next_step}" for (cause, next_step), names in nodes.items()]


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@contextlib.contextmanager
def written_probe(folder: Path) -> Iterator[Probe]:
    """Write a probe for the nodes to look for, and remove it at the end.

    Args:
        folder: To probe; where it does not exist yet, the nearest one above it that does is probed. Its name is random,
            so that no file system can have remembered that it is absent.

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
        node: Which it is.
        requirements: Of the run.
        probe: That the driver wrote.
        temp_folder: Of Ray, on this node, where it is known.
    """
    dataset_sha256, dataset_error = _read_dataset(requirements.dataset_path, requirements.replaces_bad_samples)
    folder = probe.path.parent
    return NodeReport(
        node=node,
        executable=sys.executable,
        versions=_versions(),
        code_digest=_code_digest(),
        dataset_sha256=dataset_sha256,
        dataset_error=dataset_error,
        sees_probe=_sees(probe),
        write_error=_try_to_write(folder),
        free_disk_bytes=_free_bytes(folder),
        free_shared_memory_bytes=_free_bytes(Path("/dev/shm")),
        free_temp_bytes=None if temp_folder is None else _free_bytes(temp_folder),
        num_cpus=len(os.sched_getaffinity(0)),
        available_memory_bytes=_available_memory_bytes(),
        max_open_files=max_open_files(),
    )


def this_host() -> str:
    """Return this machine's name."""
    return socket.gethostname()


def _read_dataset(path: Path, replaces_bad_samples: bool = False) -> tuple[str | None, str]:
    """Return the SHA-256 of `dataset.json`, and what is wrong with the files that it names and that the run needs."""
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


def _versions() -> dict[str, str]:
    versions = {"Python": platform.python_version()}
    for name, distributions in _DISTRIBUTIONS.items():
        for distribution in distributions:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(distribution)
    return versions


def _code_digest(root: Path = CHECKOUT) -> str:
    """Return the SHA-256 over names and contents of the project's modules."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in _CODE_FOLDERS for path in (root / folder).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _available_memory_bytes() -> int:
    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no limit (`max`), or no control groups of version 2
        limit = int((group / "memory.max").read_text())
        available = min(available, limit - int((group / "memory.current").read_text()))
    return available


def judge(report: NodeReport, driver: NodeReport, requirements: Requirements) -> list[Finding]:
    """Return what is not as it should be on a node.

    Args:
        report: Of a node that may hold a worker.
        driver: Of the process that launches the workers, with whose versions and code the node's are compared.
        requirements: Of the run.
    """
    return [
        *judge_disk(report, requirements),
        *_judge_folders(report, requirements),
        *_judge_software(report, driver),
        *_judge_room(report, requirements),
    ]


def judge_disk(report: NodeReport, requirements: Requirements) -> Iterator[Finding]:
    """Judge the file system that all share, as a node or the driver sees it: one may use less of it than another."""
    free = report.free_disk_bytes
    if free is not None and free < requirements.num_bytes:
        cause = (
            f"{_gigabytes(free)} are free for {requirements.folder}, the run's checkpoints need "
            f"{_gigabytes(requirements.num_bytes)}"
        )
        next_step = f"free some, choose another {requirements.option}, or keep fewer checkpoints"
        yield Finding("error", report.node.name, cause, next_step)


def _judge_folders(report: NodeReport, requirements: Requirements) -> Iterator[Finding]:
    name, dataset, folder = report.node.name, requirements.dataset_path, requirements.folder
    if report.dataset_sha256 not in (None, requirements.dataset_sha256):
        cause = f"another dataset lies at {dataset} (by its dataset.json)"
        yield Finding("error", name, cause, "put the driver's in its place, or mount the same folder")
    elif report.dataset_error:
        yield Finding("error", name, f"dataset {dataset} {report.dataset_error}", _MOUNT)
    if not report.sees_probe:
        cause = f"{folder} is not the folder that the driver sees under this path"
        yield Finding("error", name, cause, f"{_MOUNT}, or choose another {requirements.option}")
    elif report.write_error:
        next_step = f"let its user write there, or choose another {requirements.option}"
        yield Finding("error", name, f"can't write to {folder} ({report.write_error})", next_step)


def _judge_software(report: NodeReport, driver: NodeReport) -> Iterator[Finding]:
    name = report.node.name
    for library, wanted in driver.versions.items():
        found = report.versions.get(library)
        severity: Literal["error", "warning"] = "error" if library in _DECIDES_BITS else "warning"
        if found is None:
            cause = f"{report.executable} lacks {library}, the driver has {wanted}"
            yield Finding("error", name, cause, "install this project there and start Ray from its environment")
        elif _release(found) != _release(wanted):
            cause = f"{library} is {found}, the driver's {wanted}"
            yield Finding(severity, name, cause, "install the same version on all nodes and start their Ray anew")
    if report.code_digest != driver.code_digest:
        cause = "this project's code differs from the driver's"
        yield Finding("error", name, cause, "submit with `--working-dir .`, or bring the checkout there up to date")


def _judge_room(report: NodeReport, requirements: Requirements) -> Iterator[Finding]:
    node = report.node
    shared, needed = report.free_shared_memory_bytes, node.num_gpus * _SHARED_MEMORY_BYTES_PER_GPU
    if node.num_gpus > 1 and shared is not None and shared < needed:
        cause = f"{_gigabytes(shared)} are free in /dev/shm, by which GPUs of a node may exchange gradients"
        yield Finding("warning", node.name, cause, "should NCCL fail, enlarge it (docker run --shm-size=1g)")
    if report.free_temp_bytes is not None and report.free_temp_bytes < _TEMP_BYTES:
        cause = f"{_gigabytes(report.free_temp_bytes)} are free for Ray's temporary folder"
        yield Finding("warning", node.name, cause, "free some, or start Ray with another --temp-dir")
    needed = node.num_workers * requirements.worker_bytes
    if report.available_memory_bytes < needed:
        cause = (
            f"{_gigabytes(report.available_memory_bytes)} of memory are available, {node.num_workers} worker(s) take "
            f"more than {_gigabytes(needed)}"
        )
        yield Finding("warning", node.name, cause, "should one be killed, use fewer workers or --micro-batch-size")
    most, needed = report.max_open_files, open_files_for(requirements.num_shards)
    if most is not None and most < needed:
        cause = f"a process may open {most} files, so that {requirements.num_shards} shards are opened again and again"
        next_step = f"should that be slow, start its Ray after `ulimit -n {needed}`"
        yield Finding("warning", node.name, cause, next_step)
    if node.num_cpus > report.num_cpus:
        cause = f"offers {node.num_cpus:g} CPUs to Ray and has {report.num_cpus}"
        yield Finding("warning", node.name, cause, "threads will wait for each other; start its Ray without --num-cpus")


def _release(version: str) -> str:
    """Return a version without its local part (PEP 440)."""
    return version.partition("+")[0]


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
