"""Look at this installation and machine: one line per check with what was found, and what to do where it matters.

    python jobs/doctor.py
    python jobs/doctor.py --data DATASET --run RUN
    python jobs/doctor.py --json

It checks Python and the declared packages, DALI's build and back ends, GPUs, driver and CUDA, the precision that a run
would take, CPUs, memory, /dev/shm, open files, disks, Ray's token, job server and cluster, and the clock. Nothing is
changed, and a broken installation is described, too. It takes some seconds, and joins a Ray cluster for a moment if one
is named or runs here.

Each line begins with `ok`, `warning` (may fail or be slow) or `problem` (will fail, or is not safe). The exit status is
1 if there is a problem, else 0; 2 is for wrong usage.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jobs.bootstrap import prepare

    prepare("doctor")

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tyro

from jobs.checks.findings import Finding, findings_of
from pipeline.command import run_command
from pipeline.json_answer import JsonTarget, completed, json_answer


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `jobs/doctor.py`."""

    data: Path | None = None
    """Dataset folder to look at as well."""
    run: Path | None = None
    """Run folder to look at as well; it need not exist yet."""
    json: JsonTarget = None
    """File to write the findings to as JSON; without a file, standard output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=completed(argv), description=__doc__)
    findings = []
    with json_answer(arguments.json, arguments.data, arguments.run) as answer:
        for finding in examine(arguments.data, arguments.run):
            findings.append(finding)
            sys.stdout.write(f"{finding}\n")
            sys.stdout.flush()
        document = _document(findings)
        sys.stdout.write(f"\n{document['num_problems']} problem(s), {document['num_warnings']} warning(s)\n")
        answer(document)
    return 1 if document["num_problems"] else 0


def examine(data: Path | None, run: Path | None) -> Iterator[Finding]:
    """Yield what all checks find.

    Args:
        data: Dataset folder to look at as well.
        run: Run folder to look at as well.
    """
    with contextlib.ExitStack() as probes:
        yield from _software(probes)
        yield from _computing(probes)
        yield from _surroundings(data, run)


def _software(probes: contextlib.ExitStack) -> Iterator[Finding]:
    """Look at what is installed; libraries are tried side by side, in processes that `probes` ends."""
    from jobs.checks import packages
    from jobs.checks.probes import Probe

    imports = probes.enter_context(Probe("imports", *_modules_to_import()))
    jpeg = probes.enter_context(Probe("jpeg"))
    dali = probes.enter_context(Probe("dali", "cpu"))
    yield from findings_of("Python", packages.check_python)
    yield from findings_of("this project", packages.check_project)
    yield from findings_of("packages", lambda: packages.check_packages(packages.declared(), imports))
    yield from findings_of("JPEG", lambda: packages.check_jpeg(jpeg))
    yield from findings_of("DALI", packages.check_dali)
    yield from findings_of("DALI on the CPU", lambda: packages.check_dali_backend("CPU", dali))


def _computing(probes: contextlib.ExitStack) -> Iterator[Finding]:
    """Look at what computes: torch, GPUs and the processor."""
    from jobs.checks import gpus, machine, packages
    from jobs.checks.probes import Probe

    of_driver: list[gpus.Gpu] = []
    # Torch is tried by itself, since that measures how fast this processor computes.
    torch = probes.enter_context(Probe("torch"))
    tried = list(findings_of("torch", lambda: packages.check_torch(torch)))
    yield from tried
    is_torch_there = all(finding.verdict == "ok" for finding in tried)
    of_torch = torch.answer()["gpus"] if is_torch_there else []
    yield from findings_of("driver", lambda: gpus.check_driver(of_driver, gpus.computes(of_torch)))
    num_gpus = len(of_torch if is_torch_there else of_driver)
    if is_torch_there:
        yield from findings_of("GPUs", lambda: gpus.check_gpus(of_driver, torch))
        yield from findings_of("CUDA", lambda: gpus.check_cuda(of_driver, packages.dali_builds(), torch))
        yield from findings_of("precision", lambda: machine.check_precision(torch))
    if num_gpus:
        dali = probes.enter_context(Probe("dali", "gpu"))
        yield from findings_of("DALI on the GPU", lambda: packages.check_dali_backend("GPU", dali))
    yield from findings_of("processor", machine.check_processor)
    yield from findings_of("/dev/shm", lambda: machine.check_shared_memory(num_gpus))


def _surroundings(data: Path | None, run: Path | None) -> Iterator[Finding]:
    """Look at the machine, its folders, Ray and the clock."""
    from jobs.checks import machine, places, ray_access

    yield from findings_of("CPUs", machine.check_cpus)
    yield from findings_of("memory", machine.check_memory)
    yield from findings_of("address space", machine.check_address_space)
    yield from findings_of("open files", lambda: machine.check_open_files(_num_shards(data)))
    yield from findings_of("folders", places.check_folders)
    if data is not None:
        yield from findings_of("dataset", lambda: places.check_data(data))
    if run is not None:
        yield from findings_of("run folder", lambda: places.check_run(run))
    yield from findings_of("Ray's token", ray_access.check_authentication)
    yield from findings_of("Ray", ray_access.check_ray)
    yield from findings_of("clock", machine.check_clock)


def _modules_to_import() -> list[str]:
    from jobs.checks.packages import modules_to_import

    try:
        return modules_to_import()
    except ModuleNotFoundError:  # `packaging`, which the check of the packages will name
        return []


def _num_shards(data: Path | None) -> int | None:
    """Return the number of shards of a dataset, or None if it can't be read, as the check of the dataset will say."""
    if data is None:
        return None
    from pipeline.command import InputError

    try:
        from pipeline.dataset import Dataset

        return Dataset.open(data).num_shards
    except (InputError, ModuleNotFoundError):
        return None


def _document(findings: Sequence[Finding]) -> dict[str, Any]:
    counts = {verdict: sum(each.verdict == verdict for each in findings) for verdict in ("problem", "warning")}
    worst = next((verdict for verdict, count in counts.items() if count), "ok")
    return {
        "verdict": worst,
        "num_problems": counts["problem"],
        "num_warnings": counts["warning"],
        "findings": [asdict(finding) for finding in findings],
    }


if __name__ == "__main__":
    run_command(main)
