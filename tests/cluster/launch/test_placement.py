"""Workers are placed by what the nodes have; what doesn't fit is answered with what does."""

import pytest

from cluster.launch.placement import Holder, Placement, WorkerRange, cpus_per_worker, place_workers
from pipeline.command import InputError


def cpus_each(nodes, workers, requested):
    return cpus_per_worker([Holder(cpus) for cpus in nodes], workers, requested)


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([2], 1, 2),
        ([2], 2, 1),
        ([8], 3, 2),
        ([4, 4], 1, 4),
        ([4, 4], 2, 4),
        ([4, 4], 3, 2),
        ([3, 3], 4, 1),
        ([16, 2], 2, 8),
    ],
)
def test_workers_get_as_many_whole_cpus_as_fit(nodes, workers, expected):
    assert cpus_each(nodes, workers, None) == expected


@pytest.mark.parametrize(
    ("nodes", "workers", "requested", "way_out"),
    [
        ([2], 4, None, "use --workers 2, or --cpus-per-worker 0.5"),
        ([2], 4, 1.0, "use --workers 2, or --cpus-per-worker 0.5"),
        ([2], 3, None, "use --workers 2, or --cpus-per-worker 0.66"),
        ([4, 4], 2, 8.0, "use --workers 1, or --cpus-per-worker 4"),
        ([2, 1], 4, None, "use --workers 3, or --cpus-per-worker 0.66"),
    ],
)
def test_what_does_not_fit_names_the_way_out(nodes, workers, requested, way_out):
    with pytest.raises(InputError, match=way_out):
        cpus_each(nodes, workers, requested)


@pytest.mark.parametrize("workers", range(1, 9))
def test_the_way_out_fits(workers):
    with pytest.raises(InputError) as refused:
        cpus_each([2, 3], workers, 4.0)
    share = float(str(refused.value).rsplit(" ", 1)[1])
    assert cpus_each([2, 3], workers, share) == share


def test_gpus_decide_where_there_are_any():
    nodes = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 4.0}]
    assert place_workers(nodes, None, None) == Placement(8, 2.0, 1)
    assert place_workers(nodes, WorkerRange(2, 2), None) == Placement(2, 8.0, 1)
    with pytest.raises(InputError, match="the cluster has 8; use --workers 8"):
        place_workers(nodes, WorkerRange(9, 9), None)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([(8, 3), (8, 1)], Placement(4, 2.0, 1)),  # three on the first node
        ([(16, 0), (8, 8)], Placement(8, 1.0, 1)),  # none on the head
        ([(16, 0), (8, 2), (8, 2)], Placement(4, 4.0, 1)),
    ],
)
def test_workers_lie_where_their_gpus_are(nodes, expected):
    assert place_workers([{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in nodes], None, None) == expected


def test_without_gpus_there_is_one_worker_per_node():
    assert place_workers([{"CPU": 4.0}, {"CPU": 4.0}], None, None) == Placement(2, 4.0, 0)


def test_nodes_without_cpus_hold_no_worker():
    assert place_workers([{}, {"CPU": 8.0}, {"CPU": 8.0}], None, None) == Placement(2, 8.0, 0)


def test_threads_follow_the_cpus():
    assert Placement(1, 2.0, 0).num_threads == 2
    assert Placement(4, 0.5, 0).num_threads == 1


def test_no_cpus_at_all_is_refused():
    with pytest.raises(InputError, match="must be above 0"):
        cpus_each([2], 1, 0.0)


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "expected"),
    [
        ([1, 1], "1:2", None, Placement(2, 1.0, 0)),
        ([1], "1:2", None, Placement(1, 1.0, 0)),
        ([0, 4, 4], "2:8", None, Placement(8, 1.0, 0)),
        ([0, 4, 4], "2:3", None, Placement(3, 2.0, 0)),
        ([4, 4], "1:8", 2.0, Placement(4, 2.0, 0)),
        ([2], "1:8", 0.5, Placement(4, 0.5, 0)),
    ],
)
def test_an_elastic_run_takes_as_many_workers_as_the_cluster_holds(nodes, workers, cpus, expected):
    assert place_workers([{"CPU": float(n)} for n in nodes], WorkerRange.parse(workers), cpus) == expected


def test_an_elastic_run_takes_a_gpu_each():
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}]
    assert place_workers(nodes, WorkerRange(2, 8), None, "spread") == Placement(3, 4.0, 1, "spread")
    with pytest.raises(InputError, match="4 workers need a GPU each, the cluster has 3"):
        place_workers(nodes, WorkerRange(4, 8), None)


def test_too_small_a_cluster_for_the_least_is_refused():
    with pytest.raises(InputError, match="can't hold 3 workers of 1 CPU"):
        place_workers([{"CPU": 2.0}], WorkerRange(3, 8), None)


@pytest.mark.parametrize("text", ["two", "2:", "0", "0:2", "3:2", "1:2:3", "-1", ""])
def test_wrong_numbers_of_workers_are_refused(text):
    with pytest.raises(InputError, match="--workers is"):
        WorkerRange.parse(text)
