"""The doctor as a command: its lines, its document, its status, also on a broken installation and beside a Ray."""

import json
import os
import subprocess
import sys

import pytest

from jobs import doctor
from jobs.checks.findings import Finding
from pipeline.paths import CHECKOUT

DOCTOR = [sys.executable, str(CHECKOUT / "jobs" / "doctor.py")]
OF_RAY = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
NAMES = {
    *("Python", "this project", "packages", "DALI", "JPEG", "DALI on the CPU", "GPUs", "CUDA", "processor"),
    *("precision", "CPUs", "memory", "/dev/shm", "open files", "cache folder", "working directory"),
    *("temporary folder", "clock"),
}  # fmt: skip


WITHOUT_MODULES = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "pyarrow", "psutil", "packaging"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def _run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the doctor, with no Ray named by the environment unless `variables` name one."""
    others = {name: value for name, value in os.environ.items() if name not in OF_RAY}
    environment = others | {"PYTHONPATH": str(CHECKOUT)} | variables
    return subprocess.run([*DOCTOR, *map(str, words)], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("verdicts", "status"), [(["ok"], 0), (["ok", "warning"], 0), (["warning", "problem", "ok"], 1)]
)
def test_the_status_is_that_of_the_worst_finding(verdicts, status, monkeypatch, capsys):
    findings = [Finding("memory", verdict, "found", "" if verdict == "ok" else "do this") for verdict in verdicts]
    monkeypatch.setattr(doctor, "examine", lambda data, run: iter(findings))
    assert doctor.main(["--json"]) == status
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["verdict"] == sorted(verdicts, key=["problem", "warning", "ok"].index)[0]
    assert [document["num_problems"], document["num_warnings"]] == [status, verdicts.count("warning")]
    assert [finding["verdict"] for finding in document["findings"]] == verdicts
    assert set(document["findings"][0]) == {"check", "verdict", "found", "advice"}
    assert captured.err.count("\n") == len(verdicts) + 2  # a line per finding, an empty one, and the sum


@pytest.mark.parametrize("words", [["--dta", "x"], ["x"], ["--json", "."]])
def test_wrong_usage_has_status_2(words):
    answer = _run(*words)
    assert answer.returncode == 2 and "Traceback" not in answer.stderr


def test_without_tyro_one_line_says_what_to_do():
    command = [sys.executable, "-S", *DOCTOR[1:]]  # no site-packages
    answer = subprocess.run(command, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1 and "lacks tyro; run `make setup`" in answer.stderr


@pytest.mark.slow  # 6 s
def test_this_machine_is_looked_at(jpeg_dataset, tmp_path):
    answer = _run("--data", jpeg_dataset.path, "--run", tmp_path / "run", "--json")
    document = json.loads(answer.stdout)
    found = {finding["check"]: finding for finding in document["findings"]}
    assert found.keys() >= NAMES | {"dataset", "disk of the dataset", "run folder", "disk of the run"}
    for name in ("Python", "packages", "torch", "DALI", "JPEG", "DALI on the CPU", "processor", "precision", "dataset"):
        assert found[name]["verdict"] == "ok", found[name]
    assert all(finding["advice"] for finding in document["findings"] if finding["verdict"] != "ok")
    assert answer.returncode == (1 if document["num_problems"] else 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # 5 s
def test_a_broken_installation_is_described(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_MODULES)
    answer = _run("--json", tmp_path / "found.json", PYTHONPATH=f"{tmp_path}{os.pathsep}{CHECKOUT}")
    assert answer.returncode == 1 and "Traceback" not in answer.stderr
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    problems = {finding["check"]: finding["found"] for finding in found if finding["verdict"] == "problem"}
    assert "packaging" in problems["packages"]
    assert "torch" in problems["torch"] and not {"GPUs", "CUDA", "precision"} & {each["check"] for each in found}
    assert {"CPUs", "memory", "open files"} <= {each["check"] for each in found if each["verdict"] == "ok"}


@pytest.mark.slow  # 25 s, of which Ray's start 10
def test_a_ray_that_runs_is_asked(tmp_path):
    pytest.importorskip("ray")
    from cluster.lab.local_ray import local_ray

    with local_ray(num_cpus=1) as cluster:
        token = {name: cluster.environment[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
        answer = _run("--json", RAY_API_SERVER_ADDRESS=cluster.address, RAY_ADDRESS=cluster.gcs_address, **token)
        refused = _run("--json", RAY_API_SERVER_ADDRESS=cluster.address, RAY_AUTH_MODE="token", HOME=str(tmp_path))
    found = {finding["check"]: finding for finding in json.loads(answer.stdout)["findings"]}
    for name, said in (
        ("Ray's token", "given by RAY_AUTH_TOKEN"),
        ("Ray's job server", cluster.address),
        ("Ray cluster", "joined, 1 node"),
        ("clocks", "agree within"),
    ):
        assert found[name]["verdict"] == "ok" and said in found[name]["found"], found
    assert refused.returncode == 1
    of_server = [each for each in json.loads(refused.stdout)["findings"] if each["check"] == "Ray's job server"]
    assert of_server[0]["verdict"] == "problem" and "token" in of_server[0]["found"]
