"""Python, the packages that this project declares, DALI's build, and where the project itself is run from."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from jobs.checks.findings import INSTALL, Finding
from jobs.checks.probes import Probe
from pipeline.paths import CHECKOUT

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PROJECT = "alexnet-at-scale"
_SCRIPT = "alexnet"
_DALI_EXTRAS = ("cuda13", "cuda12")
_SHOWN = ("torch", "ray", "numpy")  # versions that a person asks for first
_TRIED_ELSEWHERE = {"torch"}


def declared(extra: str = "", checkout: Path = CHECKOUT) -> list["Requirement"]:
    """Return the requirements of this project that apply here.

    Args:
        extra: Name of an extra, whose requirements are returned alone; empty: those of every installation.
        checkout: Folder that holds `pyproject.toml`; without one, the installed package's own list counts.
    """
    from packaging.requirements import Requirement

    document = checkout / "pyproject.toml"
    if document.exists():
        project = tomllib.loads(document.read_text())["project"]
        lines = project["optional-dependencies"].get(extra, []) if extra else project["dependencies"]
        return [each for each in map(Requirement, lines) if each.marker is None or each.marker.evaluate()]
    every = [Requirement(line) for line in importlib.metadata.requires(PROJECT) or []]
    always = [each for each in every if each.marker is None or each.marker.evaluate({"extra": ""})]
    if not extra:
        return always
    return [each for each in every if each not in always and each.marker and each.marker.evaluate({"extra": extra})]


def check_python() -> Iterator[Finding]:
    """Tell the interpreter, which jobs/bootstrap.py has found new enough."""
    name = f"{platform.python_implementation()} {platform.python_version()}"
    in_environment = "" if sys.prefix != sys.base_prefix else ", outside a virtual environment"
    yield Finding("Python", "ok", f"{name} ({sys.executable}{in_environment})")


def check_packages(requirements: Sequence["Requirement"], imports: Probe) -> Iterator[Finding]:
    """Compare what is installed with what is required, and import it.

    Args:
        requirements: What is required.
        imports: Probe that imports `modules_to_import()`.
    """
    wrong = [line for requirement in requirements for line in _unmet(requirement)]
    wrong += [f"{module} can't be imported ({error})" for module, error in imports.answer()["errors"].items()]
    for line in wrong:
        yield Finding("packages", "problem", line, INSTALL)
    if not wrong:
        shown = [f"{each.name} {importlib.metadata.version(each.name)}" for each in requirements if each.name in _SHOWN]
        found = f"all {len(requirements)} are installed, in versions that fit ({', '.join(shown)}, ...)"
        yield Finding("packages", "ok", found)


def modules_to_import() -> list[str]:
    """Return the modules of the declared packages that are installed, but for those that have a probe of their own."""
    wanted = {_normalized(requirement.name) for requirement in declared()} - _TRIED_ELSEWHERE
    modules: dict[str, list[str]] = {}
    for module, distributions in importlib.metadata.packages_distributions().items():
        for name in {_normalized(distribution) for distribution in distributions} & wanted:
            if not module.startswith("_"):
                modules.setdefault(name, []).append(module)
    return sorted(name if name in found else min(found) for name, found in modules.items())


def check_dali(installed: Sequence[str] | None = None) -> Iterator[Finding]:
    """Check that exactly one build of DALI is installed, and in a version that fits.

    Args:
        installed: Names of installed distributions of DALI; None: they are looked up.
    """
    builds = {each.name: each for extra in _DALI_EXTRAS for each in declared(extra)}
    found = dali_builds() if installed is None else list(installed)
    others = [name for name in found if name not in builds]
    if len(found) > 1:
        yield Finding(
            "DALI",
            "problem",
            f"{' and '.join(found)} are installed, which overwrite each other's files",
            f"pip uninstall {' '.join(found)}, then install one: pip install -e '.[cuda13]', or [cuda12]",
        )
    elif not found or others:
        what = f"{others[0]} is not a build that this project uses" if others else "no build of it is installed"
        yield Finding("DALI", "problem", what, "pip install -e '.[cuda13]', or [cuda12] (both run without a GPU, too)")
    else:
        lines = list(_unmet(builds[found[0]]))
        yield from (Finding("DALI", "problem", line, INSTALL) for line in lines)
        if not lines:
            yield Finding("DALI", "ok", f"{found[0]} {importlib.metadata.version(found[0])}")


def check_dali_backend(device: str, probe: Probe) -> Iterator[Finding]:
    """Tell whether DALI decodes a picture on a device.

    Args:
        device: `CPU` or `GPU`.
        probe: Probe that tried it.
    """
    probe.answer()
    yield Finding(f"DALI on the {device}", "ok", "decodes a picture")


def check_torch(probe: Probe) -> Iterator[Finding]:
    """Tell whether torch computes, and for what it was built.

    Args:
        probe: Probe that tried it.
    """
    answer = probe.answer()
    yield Finding("torch", "ok", f"{answer['version']} computes")


def dali_builds() -> list[str]:
    """Return the names of all installed distributions of DALI."""
    names = {_normalized(each.metadata["Name"] or "") for each in importlib.metadata.distributions()}
    return sorted(name for name in names if re.fullmatch(r"nvidia-dali(-cuda\d+)?", name))


def check_jpeg(probe: Probe) -> Iterator[Finding]:
    """Tell whether the offline stage decodes a picture, and with which libraries.

    Args:
        probe: Probe that tried it.
    """
    versions = probe.answer()
    found = f"simplejpeg {versions['simplejpeg']}, Pillow {versions['pillow']}"
    turbo = versions["libjpeg_turbo"]
    if turbo:
        yield Finding("JPEG", "ok", f"decoded by {found}, both with libjpeg-turbo (Pillow's is {turbo})")
    else:
        cause = f"{found}: this Pillow is built without libjpeg-turbo, so that some pictures may differ by a grey level"
        yield Finding("JPEG", "warning", cause, "install Pillow's own wheel: pip install --force-reinstall pillow")


def check_project() -> Iterator[Finding]:
    """Tell where the project's code is, and whether the command `alexnet` runs the same."""
    yield Finding("this project", "ok", f"runs from {CHECKOUT}")
    beside, on_path = Path(sys.executable).with_name(_SCRIPT), shutil.which(_SCRIPT)
    if not beside.exists():
        advice = "use python -m jobs, or install the project: make setup"
        yield Finding("command alexnet", "warning", f"is not installed beside {sys.executable}", advice)
    elif (place := _installed_place()) is not None and place.resolve() != CHECKOUT.resolve():
        advice = f"in this folder use python -m jobs, or install it: pip install -e {CHECKOUT}"
        yield Finding("command alexnet", "warning", f"runs the code of {place}, not of {CHECKOUT}", advice)
    elif on_path is None:
        yield Finding("command alexnet", "ok", f"{beside} (not on PATH: activate the environment to use it by name)")
    elif Path(on_path).resolve() != beside.resolve():
        advice = f"activate this environment, or remove the other: {on_path}"
        yield Finding("command alexnet", "warning", f"is {on_path} on PATH, of another environment", advice)
    else:
        yield Finding("command alexnet", "ok", f"{on_path}, of this code")


def _installed_place() -> Path | None:
    """Return the folder that the installed package's code is in; None if it is not installed."""
    try:
        distribution = importlib.metadata.distribution(PROJECT)
    except importlib.metadata.PackageNotFoundError:
        return None
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return Path(unquote(urlsplit(origin["url"]).path))
    return Path(os.path.abspath(str(distribution.locate_file(""))))


def _unmet(requirement: "Requirement") -> Iterator[str]:
    """Yield what is missing or of another version for a requirement, and for the extras that it names."""
    from packaging.requirements import Requirement

    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        yield f"{requirement.name} is not installed, {requirement.specifier or 'any version'} is needed"
        return
    if not requirement.specifier.contains(found, prereleases=True):
        yield f"{requirement.name} is {found}, {requirement.specifier} is needed"
    for line in (importlib.metadata.requires(requirement.name) or []) if requirement.extras else []:
        part = Requirement(line)
        of_extra = part.marker and any(part.marker.evaluate({"extra": extra}) for extra in requirement.extras)
        if of_extra and part.marker and not part.marker.evaluate({"extra": ""}):
            part.extras = set()
            yield from (f"{unmet}, for {requirement}" for unmet in _unmet(part))


def _normalized(name: str) -> str:
    """Return the name of a distribution in the form in which names are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
