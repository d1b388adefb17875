"""A worker's place among the others: the threads that it may use."""

import pytest
from runs import ALONE


@pytest.mark.parametrize(
    ("stated", "num_local", "expected"),
    [
        (None, None, 16),
        ("3", None, 3),
        ("1", None, 1),
        ("many", None, 16),
        ("6,2", None, 6),
        ("1", "4", 4),  # torchrun's own, where the user has set nothing
        (None, "4", 4),
        ("2", "4", 2),
        ("1", "1", 1),  # torchrun sets it for several workers alone
        ("1", "32", 1),
    ],
)
def test_a_worker_takes_its_share_of_the_cores(stated, num_local, expected, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if stated is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
    if num_local is not None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", num_local)
    assert ALONE.num_threads == expected


def test_a_variable_of_torchrun_that_is_left_over_does_no_harm(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "left over")
    assert ALONE.num_threads == 16


def test_a_worker_that_is_bound_to_cores_of_its_own_takes_all_of_them(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16 if pid else 4)))  # of torchrun, and its own
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert ALONE.num_threads == 4
