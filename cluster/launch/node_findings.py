"""What is not as it should be on a node: its report, judged beside what the driver has.

An error is what would end the run, or make it another one, if a worker lay on that node: nothing is placed there. A
warning may.

Versions of what decides bits must be the same everywhere: pictures are equal per decoder and its version, and a step's
result per torch. Of torch the release counts: `2.9.0+cpu` on a head without GPUs beside `2.9.0+cu130` is usual. Other
versions that differ are said.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.launch.node_checks import NodeReport, Requirements
from pipeline.online.shard_maps import open_files_for
from pipeline.system.byte_counts import SHARED_MEMORY_BYTES_PER_GPU, TEMPORARY_FILES_BYTES, readable_bytes

_DECIDES_BITS = ("torch", "DALI", "nvImageCodec")
_MOUNT = "mount the shared file system on every node, under the same path"


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: where, what, and what to do."""

    severity: Literal["error", "warning"]
    node: str
    cause: str
    next_step: str


def messages(findings: Sequence[Finding], severity: Literal["error", "warning"]) -> list[str]:
    """Return the findings of a severity, one line per cause; nodes with the same one share a line."""
    nodes: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if finding.severity == severity:
            nodes.setdefault((finding.cause, finding.next_step), []).append(finding.node)
    return [f"{_names(names)}: {cause}; {next_step}" for (cause, next_step), names in nodes.items()]


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def judge(report: NodeReport, driver: NodeReport, requirements: Requirements) -> list[Finding]:
    """Return what is not as it should be on a node.

    Args:
        report: Report of a node that may hold a worker.
        driver: Report of the process that launches the workers; the node's versions and code are compared with its.
        requirements: Needs of the run.
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
            f"{readable_bytes(free)} are free for {requirements.folder}, the run's checkpoints need "
            f"{readable_bytes(requirements.num_bytes)}"
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
    shared, needed = report.free_shared_memory_bytes, node.num_gpus * SHARED_MEMORY_BYTES_PER_GPU
    if node.num_gpus > 1 and shared is not None and shared < needed:
        cause = f"{readable_bytes(shared)} are free in /dev/shm, by which GPUs of a node may exchange gradients"
        yield Finding("warning", node.name, cause, "should NCCL fail, enlarge it (docker run --shm-size=1g)")
    if report.free_temp_bytes is not None and report.free_temp_bytes < TEMPORARY_FILES_BYTES:
        cause = f"{readable_bytes(report.free_temp_bytes)} are free for Ray's temporary folder"
        yield Finding("warning", node.name, cause, "free some, or start Ray with another --temp-dir")
    needed = node.num_workers * requirements.worker_bytes
    if report.available_memory_bytes < needed:
        cause = (
            f"{readable_bytes(report.available_memory_bytes)} of memory are available, {node.num_workers} worker(s) "
            f"take more than {readable_bytes(needed)}"
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
