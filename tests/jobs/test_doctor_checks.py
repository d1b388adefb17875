"""The doctor's checks of software and GPUs: what they say where all is well, and where it is not."""

import contextlib
import os
from pathlib import Path

import pytest
from doctor_findings import Answered, only, verdicts_of
from packaging.requirements import Requirement

from jobs import doctor
from jobs.checks import gpus, packages, probes
from jobs.checks.findings import Finding, findings_of
from jobs.checks.gpus import Gpu, check_cuda, check_driver, check_gpus
from jobs.checks.probes import Probe, ProbeError
from pipeline.command import InputError
from pipeline.paths import CHECKOUT

ADA, DIVIDED = Gpu("580.65.06"), Gpu("580.65.06", is_divided=True)
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
    _nvidia_smi(tmp_path, monkeypatch, "echo '580.65.06, [N/A]'; echo '580.65.06, Enabled'")
    found: list[Gpu] = []
    assert verdicts_of(check_driver(found, torch_computes=False)) == [("driver", "ok")]
    assert found == [ADA, DIVIDED]


@pytest.mark.parametrize("said", ["No devices were found", "Failed to initialize NVML: Driver/library mismatch"])
@pytest.mark.parametrize(
    ("has_gpu", "torch_computes", "verdict"),
    [(True, False, "problem"), (True, True, "warning"), (False, True, "warning"), (False, False, "warning")],
)
def test_a_driver_that_fails_matters_for_a_gpu_that_torch_can_t_use(
    has_gpu, torch_computes, verdict, said, tmp_path, monkeypatch
):
    _nvidia_smi(tmp_path, monkeypatch, f"echo '{said}'; exit 6")
    devices = tmp_path / "devices"
    for name, vendor, kind in (("0", "0x8086", "0x030000"), ("1", "0x10de", "0x030200" if has_gpu else "0x040300")):
        (devices / name).mkdir(parents=True)
        (devices / name / "vendor").write_text(f"{vendor}\n")
        (devices / name / "class").write_text(f"{kind}\n")
    monkeypatch.setattr(gpus, "_PCI_DEVICES", devices)
    finding = only(check_driver([], torch_computes))
    assert finding.verdict == verdict and f"nvidia-smi fails: {said}" in finding.found
    assert ("install the driver anew" in finding.advice) == (has_gpu or torch_computes)


def test_without_a_driver_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.gpus_of_driver() == []
    assert only(check_gpus([], Answered(gpus=[]))).verdict == "ok"
    assert only(check_cuda([], BUILDS, Answered(cuda=None, gpus=[]))).verdict == "ok"


def test_a_gpu_without_nvidia_smi_is_one_that_torch_uses():
    finding = only(check_cuda([], BUILDS, Answered(cuda="13.0", gpus=[SEEN])))
    assert finding.verdict == "ok" and "torch computes on a GPU" in finding.found and "no GPU" not in finding.found


@pytest.mark.parametrize(
    ("variable", "of_driver", "num_seen", "verdict"),
    [
        (None, [ADA, ADA], 1, "problem"),
        ("0", [ADA, ADA], 1, "ok"),
        ("", [ADA, ADA], 0, "ok"),
        ("-1", [ADA, ADA], 0, "ok"),
        ("0,7", [ADA, ADA], 1, "warning"),
        ("7", [ADA, ADA], 0, "warning"),
        (None, [DIVIDED, DIVIDED], 1, "warning"),
        (None, [DIVIDED], 0, "problem"),
    ],
)
def test_gpus_that_torch_does_not_see_are_explained(variable, of_driver, num_seen, verdict, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    *each, last = check_gpus(of_driver, Answered(gpus=[SEEN] * num_seen))
    assert [finding.verdict for finding in each] == ["ok"] * num_seen
    assert (last.check, last.verdict) == ("GPUs", verdict)
    assert ("MIG" in last.found, "CUDA_VISIBLE_DEVICES" in last.found) == (DIVIDED in of_driver, variable is not None)


def test_a_gpu_on_which_torch_fails_is_a_problem():
    broken = SEEN | {"error": "AcceleratorError: no kernel image is available"}
    assert verdicts_of(check_gpus([ADA], Answered(gpus=[broken]))) == [("GPU 0", "problem")]


@pytest.mark.parametrize(
    ("driver", "builds", "cuda", "seen", "verdicts"),
    [
        ("580.65.06", BUILDS, "13.0", [SEEN], ["ok"]),
        ("570.12", BUILDS, "13.0", [], ["problem"]),
        ("570.12", ["nvidia-dali-cuda120"], "12.8", [SEEN], ["ok"]),
        ("470.256", ["nvidia-dali-cuda120"], "12.4", [SEEN], ["warning"]),  # by forward compatibility
        ("580.65.06", ["nvidia-dali-cuda120"], "13.0", [SEEN], ["warning"]),
        ("580.65.06", BUILDS, None, [], ["problem"]),
    ],
)
def test_torch_dali_and_the_driver_must_fit(driver, builds, cuda, seen, verdicts, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = check_cuda([Gpu(driver)], builds, Answered(cuda=cuda, gpus=seen))
    assert [finding.verdict for finding in found] == verdicts


def test_gpus_that_are_hidden_on_purpose_need_nothing(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert only(check_cuda([Gpu("470.256")], BUILDS, Answered(cuda=None, gpus=[]))).verdict == "ok"


@pytest.mark.parametrize(("seen", "is_tried"), [([], False), ([SEEN], True)])
def test_dali_is_tried_on_a_gpu_that_torch_sees(seen, is_tried, tmp_path, monkeypatch):
    class Probed(Answered):
        def __init__(self, name, *words):
            tried.append((name, *words))
            super().__init__(version="2.9", cuda="13.0", gpus=seen, precision="float32", reason="")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    tried: list[tuple[str, ...]] = []
    _nvidia_smi(tmp_path, monkeypatch, "echo '580.65.06, [N/A]'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0" if seen else "")
    monkeypatch.setattr(probes, "Probe", Probed)
    with contextlib.ExitStack() as ended:
        found = list(doctor._computing(ended))
    assert (("dali", "gpu") in tried) == is_tried
    assert {finding.verdict for finding in found if finding.check != "/dev/shm"} == {"ok"}
