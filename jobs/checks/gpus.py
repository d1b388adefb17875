"""GPUs, their driver, and the CUDA that torch and DALI were built for."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jobs.checks.findings import INSTALL, Finding
from jobs.checks.probes import Probe
from pipeline.command import UserError

_QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader,nounits"]
_QUERY_SECONDS = 30.0
# First driver for a major version of CUDA (docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility).
_FIRST_DRIVER = {12: 525, 13: 580}


@dataclass(frozen=True)
class Gpu:
    """A GPU, as NVIDIA's driver tells.

    Attributes:
        name: Name of its kind.
        memory_bytes: Its memory.
        compute_capability: For example `9.0`.
        driver: Version of the driver.
    """

    name: str
    memory_bytes: int
    compute_capability: str
    driver: str


class DriverError(UserError):
    """nvidia-smi is there, but does not work."""


def gpus_of_driver() -> list[Gpu]:
    """Return the GPUs that nvidia-smi lists; none if this machine has no nvidia-smi.

    Raises:
        DriverError: It does not work.
    """
    try:
        answer = subprocess.run(
            _QUERY, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=False, errors="replace"
        )
    except FileNotFoundError:
        return []
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DriverError(f"nvidia-smi does not answer ({error}); load the driver again, or restart") from error
    if answer.returncode != 0:
        said = (answer.stdout.strip() or answer.stderr.strip() or "it said nothing").partition("\n")[0]
        raise DriverError(f"nvidia-smi fails: {said}; install the driver anew, or restart if it has just been updated")
    gpus = []
    for line in answer.stdout.splitlines():
        name, memory, capability, driver = (part.strip() for part in line.rsplit(",", 3))
        mebibytes = int(memory) if memory.isdigit() else 0  # a GPU that shares the host's memory tells none
        gpus.append(Gpu(name, mebibytes * 2**20, capability, driver))
    return gpus


def check_gpus(gpus: Sequence[Gpu], torch_probe: Probe) -> Iterator[Finding]:
    """Compare the driver's GPUs with those on which torch computes.

    Args:
        gpus: GPUs of the driver.
        torch_probe: Probe that tried torch.
    """
    seen = torch_probe.answer()["gpus"]
    if not gpus and not seen:
        yield Finding("GPUs", "ok", "none; everything runs on the CPU")
        return
    for index, gpu in enumerate(seen):
        memory, capability = f"{gpu['memory_bytes'] / 2**30:.0f} GiB", gpu["compute_capability"]
        found = f"{gpu['name']}, {memory}, compute capability {capability}"
        if gpu["error"]:
            advice = "install a torch that supports this GPU (https://pytorch.org/get-started)"
            yield Finding(f"GPU {index}", "problem", f"{found}: torch can't compute on it: {gpu['error']}", advice)
        else:
            yield Finding(f"GPU {index}", "ok", f"{found}; torch computes on it")
    missing = len(gpus) - len(seen)
    if missing > 0:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            cause = f"CUDA_VISIBLE_DEVICES={hidden} hides {missing} of {len(gpus)}"
            yield Finding("GPUs", "warning", cause, "unset it to use them")
        else:
            cause = f"the driver has {len(gpus)}, torch sees {len(seen)}"
            yield Finding("GPUs", "problem", cause, f"see the lines on CUDA and torch; {INSTALL}")


def check_cuda(gpus: Sequence[Gpu], dali_builds: Sequence[str], torch_probe: Probe) -> Iterator[Finding]:
    """Compare the CUDA that torch and DALI were built for with each other and with the driver.

    Args:
        gpus: GPUs of the driver.
        dali_builds: Names of DALI's installed distributions.
        torch_probe: Probe that tried torch.
    """
    torch_cuda = torch_probe.answer()["cuda"]
    builds: dict[str, str | None] = {"torch": torch_cuda}
    for name in dali_builds:
        builds["DALI"] = (re.findall(r"cuda(\d\d)", name) or [None])[0]
    found = ", ".join(f"{name} is built for {f'CUDA {cuda}' if cuda else 'the CPU'}" for name, cuda in builds.items())
    if not gpus:
        yield Finding("CUDA", "ok", f"{found}; no driver, and none is needed on the CPU")
        return
    driver = gpus[0].driver
    problems = list(_cuda_problems(builds, driver))
    yield from problems
    if not problems:
        yield Finding("CUDA", "ok", f"{found}, driver {driver}")


def _cuda_problems(builds: Mapping[str, str | None], driver: str) -> Iterator[Finding]:
    majors = {name: int(cuda.partition(".")[0]) for name, cuda in builds.items() if cuda}
    for name in builds.keys() - majors.keys():
        advice = "install its build for CUDA (https://pytorch.org/get-started)"
        yield Finding("CUDA", "problem", f"{name} is built for the CPU alone, and this machine has a GPU", advice)
    release = driver.partition(".")[0]
    for major in dict.fromkeys(majors.values()):
        first = _FIRST_DRIVER.get(major)
        if first and release.isdigit() and int(release) < first:
            named = " and ".join(name for name in majors if majors[name] == major)
            cause = f"the driver, {driver}, is older than {first}, the first one for CUDA {major} ({named})"
            yield Finding("CUDA", "problem", cause, "update the driver, or install builds for an older CUDA")
    if len(set(majors.values())) > 1:
        named = ", ".join(f"{name} for CUDA {major}" for name, major in majors.items())
        yield Finding("CUDA", "warning", f"built for different versions: {named}", "install builds for the same one")
