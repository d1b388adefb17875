"""GPUs, their driver, and the CUDA that torch and DALI were built for.

Whether a GPU can be used is what torch found by computing on it; what the driver says explains why one can't.
"""

import itertools
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.checks.findings import INSTALL, Finding
from jobs.checks.probes import Probe
from pipeline.command import UserError

_QUERY = ["nvidia-smi", "--query-gpu=driver_version,mig.mode.current", "--format=csv,noheader"]
_QUERY_SECONDS = 30.0
# First driver for a major version of CUDA (docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility).
_FIRST_DRIVER = {12: 525, 13: 580}
_PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # PCI's number of the vendor, and how the numbers of displays and GPUs begin


@dataclass(frozen=True)
class Gpu:
    """A GPU, as NVIDIA's driver describes it.

    Attributes:
        driver: Version of the driver.
        is_divided: MIG divides it into instances.
    """

    driver: str
    is_divided: bool = False


class DriverError(UserError):
    """nvidia-smi is there, but does not work."""


def gpus_of_driver() -> list[Gpu]:
    """Return the GPUs that nvidia-smi lists; none if this machine has no nvidia-smi.

    Raises:
        DriverError: It does not work, or finds no GPU.
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
    rows = (line.partition(",") for line in answer.stdout.splitlines())
    return [Gpu(driver.strip(), mig.strip() == "Enabled") for driver, _, mig in rows]


def check_driver(gpus: list[Gpu], torch_computes: bool) -> Iterator[Finding]:
    """Ask the driver for its GPUs. That it fails only matters where there is a GPU that torch does not compute on.

    Args:
        gpus: List to which the driver's GPUs are added.
        torch_computes: Torch computes on a GPU.
    """
    try:
        gpus += gpus_of_driver()
    except DriverError as error:
        cause, _, advice = str(error).partition("; ")
        if torch_computes:
            yield Finding("driver", "warning", f"{cause}, but torch computes on a GPU", advice)
        elif _has_gpu():
            yield Finding("driver", "problem", cause, advice)
        else:
            yield Finding("driver", "warning", f"{cause}, and this machine has no NVIDIA GPU", "run on the CPU")
    if gpus:
        yield Finding("driver", "ok", f"NVIDIA {gpus[0].driver}")


def _has_gpu() -> bool:
    """Return whether Linux lists a GPU of NVIDIA, with or without a driver."""
    return any(
        (device / "vendor").read_text().strip() == _NVIDIA and (device / "class").read_text().startswith(_DISPLAY)
        for device in _PCI_DEVICES.glob("*")
    )


def check_gpus(gpus: Sequence[Gpu], torch_probe: Probe) -> Iterator[Finding]:
    """Describe the GPUs that torch sees, and say why it does not see others.

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
    if len(seen) < len(gpus):
        yield _why_fewer(gpus, len(seen))


def _why_fewer(gpus: Sequence[Gpu], num_seen: int) -> Finding:
    wanted, num_divided = _visible_devices(), sum(gpu.is_divided for gpu in gpus)
    cause = f"the driver has {len(gpus)}, torch sees {num_seen}"
    if wanted is not None:
        cause += f" (CUDA_VISIBLE_DEVICES={','.join(wanted)})"
        if len(wanted) == num_seen:
            return Finding("GPUs", "ok", cause)
        return Finding("GPUs", "warning", cause, "unset it, or name GPUs that `nvidia-smi -L` lists")
    if num_divided:
        cause += f": MIG divides {num_divided} of them, and a process uses one instance"
        advice = "name each worker's instance (CUDA_VISIBLE_DEVICES=MIG-..., see `nvidia-smi -L`), or turn MIG off"
        return Finding("GPUs", "warning" if num_seen else "problem", cause, advice)
    return Finding("GPUs", "problem", cause, f"see the lines on CUDA and torch; {INSTALL}")


def _visible_devices() -> list[str] | None:
    """Return the devices that CUDA_VISIBLE_DEVICES names; None if it is not set. CUDA ignores what follows -1."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    return list(itertools.takewhile(lambda name: name not in ("", "-1"), names))


def check_cuda(gpus: Sequence[Gpu], dali_builds: Sequence[str], torch_probe: Probe) -> Iterator[Finding]:
    """Compare the CUDA that torch and DALI were built for with each other and with the driver.

    Args:
        gpus: GPUs of the driver.
        dali_builds: Names of DALI's installed distributions.
        torch_probe: Probe that tried torch.
    """
    answer = torch_probe.answer()
    builds: dict[str, str | None] = {"torch": answer["cuda"]}
    for name in dali_builds:
        builds["DALI"] = (re.findall(r"cuda(\d\d)", name) or [None])[0]
    found = ", ".join(f"{name} is built for {f'CUDA {cuda}' if cuda else 'the CPU'}" for name, cuda in builds.items())
    torch_computes = computes(answer["gpus"])
    if not torch_computes and (not gpus or _visible_devices() == []):
        yield Finding("CUDA", "ok", f"{found}; no GPU is to be used, and the CPU needs no driver")
    elif not gpus:
        yield Finding("CUDA", "ok", f"{found}; the driver's version is not known, but torch computes on a GPU")
    else:
        driver = gpus[0].driver
        problems = list(_cuda_problems(builds, driver, torch_computes))
        yield from problems
        if not problems:
            yield Finding("CUDA", "ok", f"{found}, driver {driver}")


def computes(seen: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether torch computes on one of the GPUs that its probe saw."""
    return any(not gpu["error"] for gpu in seen)


def _cuda_problems(builds: Mapping[str, str | None], driver: str, torch_computes: bool) -> Iterator[Finding]:
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
            advice = "update the driver, or install builds for an older CUDA"
            if torch_computes:  # by a package for forward compatibility
                yield Finding("CUDA", "warning", f"{cause}, but torch computes on a GPU", advice)
            else:
                yield Finding("CUDA", "problem", cause, advice)
    if len(set(majors.values())) > 1:
        named = ", ".join(f"{name} for CUDA {major}" for name, major in majors.items())
        yield Finding("CUDA", "warning", f"built for different versions: {named}", "install builds for the same one")
