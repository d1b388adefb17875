"""Nodes are asked before they get a worker; those that are not fit are left out where the rest suffices."""

import dataclasses
import errno
import functools
from types import SimpleNamespace

import pytest

ray = pytest.importorskip("ray")

from cluster.launch import ray_node_checks, ray_node_inquiry, ray_nodes
from cluster.launch.footprint import training_requirements
from cluster.launch.node_findings import Finding, judge
from cluster.launch.placement import NoPlacement, WorkerRange, place_workers
from cluster.launch.ray_node_checks import FitNodes
from cluster.worker import precision
from cluster.worker.emulation import Emulation, Trial
from jobs.recipes import get_recipe
from pipeline.system.processor import this_processor

SLOW_NODE = "node host-b (b, 10.0.0.1): emulates bfloat16, up to 36 times slower than float32"
BLIND = "is not the folder that the driver sees under this path; mount the shared"


class FakeRay:
    """A cluster of nodes of two CPUs, and its clock.

    Attributes:
        states: What is with each node: `fit`, `blind` to the shared folder, `silent`, `broken`; or `gone`, unnoticed
            by Ray; or `slow`: fit, but emulating bfloat16.
        asked: Names of the nodes that were asked, in order.
        now: In seconds; waiting in vain lets time pass.
    """

    exceptions = ray.exceptions

    def __init__(self, **states: str) -> None:
        self.states, self.asked, self.now = states, [], 1000.0
        self.resources = {name: {"CPU": 2.0} for name in states}

    def nodes(self):
        return [
            {"NodeID": name, "Alive": True, "Resources": self.resources.get(name, {"CPU": 2.0}), "NodeName": name,
             "NodeManagerAddress": "10.0.0.1", "NodeManagerHostname": f"host-{name}"}
            for name in self.states
        ]  # fmt: skip

    def remote(self, function):
        return SimpleNamespace(
            options=lambda scheduling_strategy, **others: SimpleNamespace(
                remote=functools.partial(self._ask, function, scheduling_strategy.node_id)
            )
        )

    def _ask(self, function, name, *arguments):
        self.asked.append(name)
        return _Reference(name, functools.partial(function, *arguments))

    def wait(self, references, num_returns, timeout):
        answered = [reference for reference in references if self.states[reference.name] != "silent"]
        if len(answered) < len(references):
            self.now += timeout
        return answered, [reference for reference in references if reference not in answered]

    def get(self, reference):
        if self.states[reference.name] == "broken":
            raise ray.exceptions.WorkerCrashedError
        report, state = reference.report(), self.states[reference.name]
        emulation = Emulation(report.node.name, 36.4) if state == "slow" else None
        return dataclasses.replace(report, sees_probe=state in ("fit", "slow"), emulation=emulation)


@dataclasses.dataclass(frozen=True)
class _Reference:
    name: str
    report: object


@pytest.fixture
def cluster(monkeypatch):
    """Makes a cluster of nodes in given states the one of the session."""

    def enter(**states):
        fake = FakeRay(**states)
        for module in (ray_nodes, ray_node_inquiry):
            monkeypatch.setattr(module, "ray", fake)
        there = "NodeAffinitySchedulingStrategy"
        monkeypatch.setattr(ray_node_inquiry, there, lambda node_id, soft: SimpleNamespace(node_id=node_id))
        for module in (ray_node_checks, ray_node_inquiry):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: fake.now))
        monkeypatch.setattr(ray_nodes, "_answers", lambda node: fake.states[node["NodeID"]] != "gone")
        return fake

    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "60")
    monkeypatch.setattr(precision, "try_processor", lambda: Trial(this_processor(), None))
    return enter


@pytest.fixture
def requirements(raw_dataset, tmp_path):
    return training_requirements(get_recipe("small_demo"), raw_dataset, tmp_path / "run")


def place(workers: str):
    return functools.partial(place_workers, workers=WorkerRange.parse(workers), requested_cpus=2.0)


def test_the_fit_nodes_get_the_workers_and_the_others_are_named_once(cluster, requirements, capsys):
    fake = cluster(a="fit", b="blind", c="fit", d="broken", e="gone")
    with FitNodes(requirements, is_local=False) as nodes:
        for _ in range(3):
            placement = nodes.place(place("1:9"))
            assert placement.num_workers == 2 and placement.node_ids == ("a", "c")
    captured = capsys.readouterr()
    blind, broken = captured.err.splitlines()
    assert blind.startswith("warning: left out: node host-b (b, 10.0.0.1): ") and BLIND in blind
    assert broken.startswith("warning: left out: node host-d (d, 10.0.0.1): can't run this project's code (")
    assert captured.out.count("2 nodes checked in ") == captured.out.count("\n") == 1
    assert sorted(fake.asked) == ["a", "b", "c", "d"]


def test_where_the_fit_nodes_do_not_suffice_all_causes_are_told_at_once(cluster, requirements, tmp_path):
    cluster(a="fit", b="blind", c="silent")
    with FitNodes(requirements, is_local=False) as nodes, pytest.raises(NoPlacement) as refused:
        nodes.place(place("3"))
    blind, silent, way_out = str(refused.value).splitlines()
    assert blind.startswith("node host-b") and BLIND in blind
    assert silent.startswith("node host-c") and "does not answer within 60 s" in silent
    assert "can't hold 3 workers of 2 CPUs: it has 2 CPUs on 1 node(s); use --workers 1" in way_out
    assert list(tmp_path.iterdir()) == []


def test_without_any_fit_node_the_causes_alone_are_told(cluster, requirements):
    cluster(a="blind", b="blind")
    with FitNodes(requirements, is_local=False) as nodes, pytest.raises(NoPlacement) as refused:
        nodes.place(place("1"))
    (line,) = str(refused.value).splitlines()
    assert line.startswith("node host-a (a, 10.0.0.1), node host-b (b, 10.0.0.1): ")


def test_a_run_that_asked_for_every_node_is_told_how_to_do_without_one(cluster, requirements):
    cluster(a="fit", b="blind")
    halves = functools.partial(place_workers, workers=WorkerRange(2, 2), requested_cpus=None)  # both fit on a node
    with FitNodes(requirements, is_local=False) as nodes, pytest.raises(NoPlacement) as refused:
        nodes.place(halves, needs_all=True)
    cause, way_out = str(refused.value).splitlines()
    assert cause.startswith("node host-b") and "--workers 2" in way_out
    with FitNodes(requirements, is_local=False) as nodes:
        assert nodes.place(halves).node_ids == ("a",)


def test_a_newcomer_that_does_not_answer_is_neither_waited_for_nor_asked_every_second(cluster, requirements, capsys):
    fake = cluster(a="fit")
    with FitNodes(requirements, is_local=False) as nodes:
        nodes.place(place("1:2"))
        fake.states["b"] = "silent"
        began = fake.now
        for _ in range(50):
            assert nodes.place(place("1:2"), wait_seconds=0.0).node_ids == ("a",)
            fake.now += 1.0
        assert fake.now == began + 50 and fake.asked == ["a", "b"] and "left out" not in capsys.readouterr().err
        for _ in range(150):  # 60 s until it is left out; its task may hang, so that it gets no second one
            assert nodes.place(place("1:2"), wait_seconds=0.0).node_ids == ("a",)
            fake.now += 1.0
        assert fake.asked == ["a", "b"] and capsys.readouterr().err.count("does not answer within 60 s") == 1
        fake.states["b"] = "fit"  # and answers late
        assert nodes.place(place("1:2"), wait_seconds=0.0).node_ids == ("a", "b")
        assert fake.asked == ["a", "b"]


def test_a_node_that_is_mended_is_taken_in_after_a_minute(cluster, requirements):
    fake = cluster(a="fit", b="blind")
    with FitNodes(requirements, is_local=False) as nodes:
        assert nodes.place(place("1:2")).node_ids == ("a",)
        fake.states["b"] = "fit"
        assert nodes.place(place("1:2")).node_ids == ("a",)
        fake.now += 61
        assert nodes.place(place("1:2")).node_ids == ("a", "b")
    assert fake.asked == ["a", "b", "b"]


def test_what_a_lost_worker_needs_is_waited_for_a_short_time(cluster, requirements):
    fake = cluster(a="fit")
    with FitNodes(requirements, is_local=False) as nodes:
        nodes.place(place("1:2"))
        fake.states["b"] = "silent"
        began = fake.now
        assert nodes.place(place("1:2"), wait_seconds=10.0).node_ids == ("a",)
        assert fake.now == began + 10
        del fake.states["a"]
        with pytest.raises(NoPlacement, match="can't hold 1 workers"):
            nodes.place(place("1:2"), wait_seconds=10.0)


def test_a_node_that_gets_no_worker_is_not_asked(cluster, requirements):
    fake = cluster(a="fit", b="blind")
    wide = functools.partial(place_workers, workers=WorkerRange(1, 1), requested_cpus=3.0)
    with FitNodes(requirements, is_local=False) as nodes:
        with pytest.raises(NoPlacement, match="use --workers 1, or --cpus-per-worker 2"):
            nodes.place(wide)
        assert fake.asked == []


def test_no_probe_remains_of_nodes_that_have_not_answered(cluster, requirements, tmp_path):
    fake = cluster(a="fit")
    with FitNodes(requirements, is_local=False) as nodes:
        nodes.place(place("1:2"))
        fake.states["b"] = "silent"
        nodes.place(place("1:2"), wait_seconds=0.0)
        assert [path.name[:11] for path in tmp_path.iterdir()] == [".preflight-"]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_fault_of_a_node_that_joins_later(cluster, requirements, monkeypatch):
    fake = cluster(a="fit")
    with FitNodes(requirements, is_local=False) as nodes:
        nodes.place(place("1:2"))
        usage = ray_node_inquiry.inspect_node
        monkeypatch.setattr(
            ray_node_inquiry,
            "inspect_node",
            lambda *arguments: dataclasses.replace(usage(*arguments), free_disk_bytes=10),
        )
        fake.states["b"] = "fit"
        assert nodes.place(place("1:2")).node_ids == ("a", "b")
    with FitNodes(requirements, is_local=False) as nodes, pytest.raises(NoPlacement) as refused:
        nodes.place(place("1:2"))
    (line,) = str(refused.value).splitlines()
    assert line.startswith("the driver's machine (") and ", node host-a (" in line and "are free for" in line


def test_a_further_kind_of_finding_leaves_out_its_node(cluster, requirements, monkeypatch):
    def stricter(report, driver, requirements):
        own = [Finding("error", report.node.name, "would emulate the precision", "use --precision float32")]
        return judge(report, driver, requirements) + own * ("(b, " in report.node.name)

    cluster(a="fit", b="fit")
    monkeypatch.setattr(ray_node_inquiry, "judge", stricter)
    with FitNodes(requirements, is_local=False) as nodes:
        assert nodes.place(place("1:2")).node_ids == ("a",)


@pytest.mark.parametrize(
    ("seconds", "said"), [("3", "gives it 3 s"), ("soon", "is soon, and Ray takes a whole number")]
)
def test_too_short_a_time_to_stop_is_said_and_stops_nothing(cluster, requirements, monkeypatch, capsys, seconds, said):
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", seconds)
    cluster(a="fit")
    with FitNodes(requirements, is_local=False) as nodes:
        nodes.place(place("1"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: this job: ") and said in line and "--runtime-env-json" in line


def test_a_driver_that_can_not_look_at_its_folders_places_nothing_for_now(cluster, requirements, monkeypatch):
    fake = cluster(a="fit")
    with FitNodes(requirements, is_local=False) as nodes:
        nodes.place(place("1:2"))
        fake.states["b"] = "fit"
        with monkeypatch.context() as patch:
            stale = OSError(errno.ESTALE, "Stale file handle", "RUN")
            patch.setattr(ray_node_inquiry, "inspect_node", lambda *arguments: _raise(stale))
            with pytest.raises(NoPlacement, match=r"^Stale file handle: RUN; the same command"):
                nodes.place(place("1:2"), wait_seconds=0.0)
        assert nodes.place(place("1:2")).node_ids == ("a", "b")


def _raise(error: Exception):
    raise error


def test_a_run_that_begins_learns_of_every_node_that_would_emulate_bfloat16(cluster, requirements):
    cluster(a="fit", b="slow", c="fit")
    with FitNodes(requirements, is_local=False) as nodes:
        placement = nodes.place(place("1:2"))
        assert placement.node_ids == ("a", "b", "c")  # each may get one of the two workers
        (emulation,) = nodes.emulations(placement)
    assert str(emulation) == "node host-b (b, 10.0.0.1) emulates bfloat16, up to 36 times slower than float32"


def test_a_bfloat16_run_leaves_out_a_node_that_emulates_it_where_the_others_suffice(cluster, requirements, capsys):
    fake = cluster(a="fit")
    with FitNodes(requirements, is_local=False) as nodes:
        assert nodes.place(place("1:3")).node_ids == ("a",)
        nodes.prefer_native()
        fake.states["b"] = "slow"
        for _ in range(3):
            placement = nodes.place(place("1:3"))
            assert (placement.num_workers, placement.node_ids, nodes.emulations(placement)) == (1, ("a",), [])
        assert capsys.readouterr().err == (f"warning: {SLOW_NODE}; left out, since the others suffice\n")
        fake.states["a"] = "gone"
        for _ in range(3):
            assert nodes.place(place("1:3")).node_ids == ("b",)
        assert capsys.readouterr().err == (f"warning: {SLOW_NODE}; the other nodes do not suffice\n")


def test_nodes_that_take_the_place_of_slow_ones_were_asked_too(cluster, requirements):
    fake = cluster(a="fit", b="slow", b2="slow", c="blind")
    fake.resources |= {"a": {"CPU": 8.0}, "b": {"CPU": 8.0}, "b2": {"CPU": 8.0}, "c": {"CPU": 4.0}}
    three = functools.partial(place_workers, workers=WorkerRange(3, 3), requested_cpus=None)
    with FitNodes(requirements, is_local=False, prefers_native=True) as nodes:
        placement = nodes.place(three)
    assert "c" not in placement.node_ids and set(placement.node_ids) <= set(fake.asked)


def test_slow_gpus_are_not_left_out_for_cpus(cluster, requirements):
    fake = cluster(head="fit", a="slow", b="slow")
    gpus = {"CPU": 16.0, "GPU": 2.0}
    fake.resources |= {"head": {"CPU": 64.0}, "a": gpus, "b": gpus}
    four = functools.partial(place_workers, workers=WorkerRange(4, 4), requested_cpus=None)
    with FitNodes(requirements, is_local=False, prefers_native=True) as nodes:
        placement = nodes.place(four)
    assert (placement.gpus_per_worker, placement.node_ids) == (1, ("a", "b"))


def test_a_node_with_gpus_that_joins_does_not_stop_a_run_on_cpus(cluster, requirements):
    fake = cluster(a="fit", b="fit")
    with FitNodes(requirements, is_local=False) as nodes:
        assert nodes.place(place("2:8")).node_ids == ("a", "b")
        fake.states["c"], fake.resources["c"] = "fit", {"CPU": 2.0, "GPU": 1.0}
        assert nodes.place(place("2:8")).node_ids == ("a", "b")


def test_a_local_ray_is_warned_of_what_may_go_wrong(cluster, requirements, capsys, monkeypatch):
    cluster(a="fit")
    monkeypatch.setattr("cluster.launch.node_checks.available_memory_bytes", lambda: 10**6)
    with FitNodes(requirements, is_local=True) as nodes:
        nodes.place(place("1"))
    assert capsys.readouterr().err.startswith("warning: this machine: 1 MB of memory are available, ")


@pytest.mark.parametrize("recipe", ["auto", "float32"])
def test_the_processor_is_tried_once_for_all_nodes_of_its_kind(recipe, cluster, raw_dataset, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(precision, "try_processor", lambda: tried.append(1) or Trial(this_processor(), None))
    config = dataclasses.replace(get_recipe("small_demo"), precision=recipe)
    cluster(a="fit", b="fit", c="fit")
    with FitNodes(training_requirements(config, raw_dataset, tmp_path / "run"), is_local=False) as nodes:
        nodes.place(place("3"))
    assert len(tried) == (recipe == "auto")
