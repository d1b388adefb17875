"""What is not as it should be on a node, judged from reports of nodes that differ in one thing."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.launch.node_checks import Node, NodeReport, Requirements
from cluster.launch.node_findings import Finding, judge, messages
from pipeline.command import InputError, run_command

REQUIREMENTS = Requirements(
    dataset_path=Path("/data"),
    dataset_sha256="d1",
    folder=Path("/runs/mine"),
    num_bytes=10**9,
    worker_bytes=10**9,
    num_shards=1332,
)
GOOD = NodeReport(
    node=Node("node a", num_cpus=8, num_workers=2, num_gpus=2),
    executable="/usr/bin/python",
    versions={"Python": "3.12.1", "torch": "2.9.0+cu130", "DALI": "2.0.1", "nvImageCodec": "0.9.0", "numpy": "2.3.0"},
    code_digest="c1",
    dataset_sha256="d1",
    dataset_error="",
    sees_probe=True,
    write_error="",
    free_disk_bytes=10**12,
    free_shared_memory_bytes=2**30,
    free_temp_bytes=10**11,
    num_cpus=8,
    available_memory_bytes=10**11,
)


def _with(**changes) -> NodeReport:
    return dataclasses.replace(GOOD, node=dataclasses.replace(GOOD.node, name="node b"), **changes)


def _judged(*reports: NodeReport) -> list[Finding]:
    return [finding for report in reports for finding in judge(report, GOOD, REQUIREMENTS)]


def _versions(**changes: str | None) -> dict[str, str]:
    return {name: version for name, version in {**GOOD.versions, **changes}.items() if version}


@pytest.mark.parametrize(
    ("changes", "severity", "said"),
    [
        ({"dataset_sha256": None, "dataset_error": "is gone"}, "error", "dataset /data is gone; mount the shared"),
        ({"dataset_sha256": "d2"}, "error", "another dataset lies at /data"),
        ({"dataset_error": "is incomplete there"}, "error", "dataset /data is incomplete there; mount"),
        ({"sees_probe": False}, "error", "/runs/mine is not the folder that the driver sees under this path; mount"),
        ({"write_error": "Permission denied"}, "error", "can't write to /runs/mine (Permission denied); let its user"),
        ({"versions": _versions(torch="2.9.1+cu130")}, "error", "torch is 2.9.1+cu130, the driver's 2.9.0+cu130; inst"),
        ({"versions": _versions(DALI="2.1.0")}, "error", "DALI is 2.1.0, the driver's 2.0.1; install"),
        ({"versions": _versions(nvImageCodec="0.8.0")}, "error", "nvImageCodec is 0.8.0"),
        ({"versions": _versions(DALI=None)}, "error", "/usr/bin/python lacks DALI, the driver has 2.0.1; install"),
        ({"versions": _versions(numpy="2.4.0")}, "warning", "numpy is 2.4.0, the driver's 2.3.0; install"),
        ({"versions": _versions(Python="3.12.2")}, "warning", "Python is 3.12.2"),
        ({"code_digest": "c2"}, "error", "this project's code differs from the driver's; submit with"),
        (
            {"free_disk_bytes": 10**8},
            "error",
            "100 MB are free for /runs/mine, the run's checkpoints need 1 GB; free",
        ),
        (
            {"max_open_files": 1024},
            "warning",
            "a process may open 1024 files, so that 1332 shards are opened again and again; should that be slow, start "
            "its Ray after `ulimit -n 1716`",
        ),
        ({"free_shared_memory_bytes": 2**26}, "warning", "67.1 MB are free in /dev/shm"),
        ({"free_temp_bytes": 10**8}, "warning", "100 MB are free for Ray's temporary folder; free some"),
        (
            {"available_memory_bytes": 10**9},
            "warning",
            "1 GB of memory are available, 2 worker(s) take more than 2 GB",
        ),
        ({"num_cpus": 4}, "warning", "offers 8 CPUs to Ray and has 4; threads"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_thing_that_differs_is_one_line_that_names_node_cause_and_next_step(changes, severity, said):
    findings = _judged(GOOD, _with(**changes))
    (line,) = messages(findings, severity)
    assert line.startswith(f"node b: {said}")
    assert len(findings) == 1 and "\n" not in line and "; " in line


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"versions": _versions(torch="2.9.0+cpu")},  # a head without GPUs
        {"versions": GOOD.versions | {"pyarrow": "25.0"}},
        {"free_shared_memory_bytes": None},
        {"max_open_files": 4096},
        {"max_open_files": None},
        {"free_temp_bytes": None},  # this Ray does not tell where its folder is
    ],
)
def test_what_does_no_harm_is_not_said(changes):
    assert _judged(GOOD, _with(**changes)) == []


def test_shared_memory_matters_to_several_gpus_of_a_node_alone():
    for num_gpus in (0, 1):
        report = _with(free_shared_memory_bytes=0)
        report = dataclasses.replace(report, node=dataclasses.replace(report.node, num_gpus=num_gpus))
        assert _judged(report) == []


def test_an_unshared_folder_is_one_finding_whatever_else_is_wrong_with_it():
    report = _with(sees_probe=False, write_error="No such file or directory", free_disk_bytes=None)
    assert [finding.node for finding in _judged(GOOD, report)] == ["node b"]


def test_all_errors_are_told_at_once_and_nodes_alike_share_a_line():
    missing = {"dataset_sha256": None, "dataset_error": "is gone"}
    reports = [
        dataclasses.replace(GOOD, node=Node(f"node {name}"), **missing, num_cpus=1, **changes)
        for name, changes in [("a", {}), ("b", {}), ("c", {"sees_probe": False}), ("d", {}), ("e", {})]
    ]
    data, folder = messages(_judged(*reports), "error")
    assert data.startswith("node a, node b, node c and 2 more: dataset /data is gone; ")
    assert folder.startswith("node c: /runs/mine is not")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.sampled_from(["error", "warning"]))))
def test_no_finding_is_lost_between_the_lines(drawn):
    findings = [Finding(severity, node, cause, "do") for cause, node, severity in drawn]
    lines = messages(findings, "error") + messages(findings, "warning")
    assert len(lines) == len({(cause, severity) for cause, _, severity in drawn})
    assert all(any(finding.cause in line for line in lines) for finding in findings)


def test_a_command_says_each_cause_as_an_error_of_its_own(capsys):
    def main(argv):
        raise InputError("one; do this\ntwo; do that")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: one; do this\nerror: two; do that\n"
