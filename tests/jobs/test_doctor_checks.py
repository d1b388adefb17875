"""The doctor's checks of software and GPUs: what they say where all is well, and where it is not."""

import os
from pathlib import Path

import pytest
from doctor_findings import Answered, only, verdicts_of
from packaging.requirements import Requirement

from jobs.checks import gpus, packages
from jobs.checks.findings import Finding, findings_of
from jobs.checks.gpus import DriverError, Gpu, check_cuda, check_gpus
from jobs.checks.probes import Probe, ProbeError
from pipeline.command import InputError
from pipeline.paths import CHECKOUT

ADA = Gpu("NVIDIA L4", 24 * 2**30, "8.9", "580.65.06")
SEEN = {"name": "NVIDIA L4", "memory_bytes": 24 * 2**30, "compute_capability": "8.9", "error": ""}
BUILDS = ["nvidia-dali-cuda130"]


def test_a_finding_is_one_line():
    assert str(Finding("memory", "ok", "much\nof it")) == "ok       memory: much of it"
    assert str(Finding("memory", "problem", "none", "buy some")) == "problem  memory: none; buy some"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "the module torch is not installed"),
        (InputError("no dataset; shard it"), "no dataset; shard it"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
    ],
)
def test_a_check_that_fails_is_a_finding(error, said):
    def check():
        yield Finding("first", "ok", "found")
        raise error

    first, failed = findings_of("second", check)
    assert first.check == "first" and (failed.check, failed.verdict) == ("second", "problem")
    assert said in str(failed) and failed.advice


def test_the_declared_packages_are_those_of_the_checkout():
    names = {requirement.name for requirement in packages.declared()}
    assert {"torch", "ray", "packaging", "tyro"} <= names and "nvidia-dali-cuda130" not in names
    assert [each.name for each in packages.declared("cuda13")] == BUILDS
    assert {"numpy", "cv2", "PIL", "ray"} <= set(packages.modules_to_import())
    assert "torch" not in packages.modules_to_import()


def test_the_installed_package_declares_the_same(tmp_path):
    try:
        installed = {each.name for each in packages.declared(checkout=tmp_path)}
    except packages.importlib.metadata.PackageNotFoundError:
        pytest.skip("the project is not installed")
    assert {"torch", "ray", "tyro"} <= installed and not installed & {"nvidia-dali-cuda130", "pytest"}
    assert [each.name for each in packages.declared("cuda12", tmp_path)] == ["nvidia-dali-cuda120"]


def test_packages_that_are_missing_old_or_broken_are_named():
    wanted = [Requirement("no-such-package>=2"), Requirement("numpy>=9000"), Requirement("tqdm>=1")]
    lines = [str(each) for each in packages.check_packages(wanted, Answered(errors={"cv2": "OSError: libGL.so.1"}))]
    assert len(lines) == 3 and all(line.startswith("problem") and "make setup" in line for line in lines)
    assert "no-such-package is not installed, >=2 is needed" in lines[0]
    assert ">=9000 is needed" in lines[1] and "cv2 can't be imported (OSError: libGL.so.1)" in lines[2]
    assert only(packages.check_packages([Requirement("numpy>=2")], Answered(errors={}))).verdict == "ok"


def test_what_an_extra_of_a_package_needs_is_missed(tmp_path, monkeypatch):
    of_ray = ['no-such-package>=3; extra == "train"', 'other-missing; extra == "tune"', "tqdm"]
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda name: of_ray)
    finding = only(packages.check_packages([Requirement("ray[train]")], Answered(errors={})))
    assert "no-such-package is not installed, >=3 is needed, for ray[train]" in finding.found


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ([], "no build of it is installed"),
        (["nvidia-dali-cuda120", "nvidia-dali-cuda130"], "overwrite each other's files"),
        (["nvidia-dali"], "nvidia-dali is not a build that this project uses"),
    ],
)
def test_other_than_one_build_of_dali_is_a_problem(installed, said):
    finding = only(packages.check_dali(installed))
    assert finding.verdict == "problem" and said in finding.found and "pip" in finding.advice


def test_the_installed_build_of_dali_is_found():
    assert only(packages.check_dali()).verdict == "ok" and len(packages.dali_builds()) == 1


def test_the_command_of_another_checkout_is_told(monkeypatch, tmp_path):
    for name in ("python", "alexnet"):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).touch(0o755)
    monkeypatch.setattr(packages.sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for place, verdict in ((CHECKOUT, "ok"), (tmp_path, "warning")):
        monkeypatch.setattr(packages, "_installed_place", lambda place=place: place)
        assert [each.verdict for each in packages.check_project()] == ["ok", verdict]
    (tmp_path / "bin" / "alexnet").unlink()
    assert "is not installed beside" in list(packages.check_project())[1].found


def test_a_probe_tells_what_can_t_be_imported():
    assert Probe("imports", "json", "no_such_module").answer() == {
        "errors": {"no_such_module": "the module no_such_module is not installed"}
    }


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("os.kill(os.getpid(), 11)", r"crashed \(signal 11\)"),
        ("os.write(2, b'first\\nlast words\\n'); os._exit(3)", "ended with status 3: last words"),
    ],
)
def test_a_probe_that_dies_is_told(body, said, tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text(f"import os\n{body}\n")
    monkeypatch.setenv("PYTHONPATH", f"{CHECKOUT}{os.pathsep}{tmp_path}")
    with pytest.raises(ProbeError, match=said):
        Probe("imports", "deadly").answer()


def _nvidia_smi(folder: Path, monkeypatch, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_gpus_are_those_of_the_driver(tmp_path, monkeypatch):
    _nvidia_smi(
        tmp_path, monkeypatch, "echo 'NVIDIA L4, 24576, 8.9, 580.65.06'; echo 'NVIDIA GB10, [N/A], 12.1, 580.95'"
    )
    assert gpus.gpus_of_driver() == [ADA, Gpu("NVIDIA GB10", 0, "12.1", "580.95")]


def test_a_broken_driver_is_told(tmp_path, monkeypatch):
    _nvidia_smi(tmp_path, monkeypatch, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    with pytest.raises(DriverError, match=r"nvidia-smi fails: Failed to initialize NVML.*; install the driver anew"):
        gpus.gpus_of_driver()


def test_without_a_driver_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.gpus_of_driver() == []
    assert only(check_gpus([], Answered(gpus=[]))).verdict == "ok"
    assert only(check_cuda([], BUILDS, Answered(cuda=None))).verdict == "ok"


def test_gpus_that_torch_does_not_see_are_a_problem_unless_they_are_hidden(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert verdicts_of(check_gpus([ADA, ADA], Answered(gpus=[SEEN]))) == [("GPU 0", "ok"), ("GPUs", "problem")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert verdicts_of(check_gpus([ADA, ADA], Answered(gpus=[SEEN]))) == [("GPU 0", "ok"), ("GPUs", "warning")]
    broken = SEEN | {"error": "AcceleratorError: no kernel image is available"}
    assert verdicts_of(check_gpus([ADA], Answered(gpus=[broken]))) == [("GPU 0", "problem")]


@pytest.mark.parametrize(
    ("driver", "builds", "cuda", "verdicts"),
    [
        ("580.65.06", BUILDS, "13.0", ["ok"]),
        ("570.12", BUILDS, "13.0", ["problem"]),
        ("570.12", ["nvidia-dali-cuda120"], "12.8", ["ok"]),
        ("580.65.06", ["nvidia-dali-cuda120"], "13.0", ["warning"]),
        ("580.65.06", BUILDS, None, ["problem"]),
    ],
)
def test_torch_dali_and_the_driver_must_fit(driver, builds, cuda, verdicts):
    found = check_cuda([Gpu("NVIDIA L4", 0, "8.9", driver)], builds, Answered(cuda=cuda))
    assert [finding.verdict for finding in found] == verdicts
