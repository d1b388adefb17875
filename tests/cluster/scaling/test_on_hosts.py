"""Workers on hosts that take orders."""

import dataclasses

import pytest
from needs import makes_hosts

from cluster.lab.hosts import hosts
from cluster.scaling.cells import computation_cells
from cluster.scaling.experiment import Experiment
from cluster.scaling.on_hosts import HostWorkers, check_cpus
from cluster.scaling.worker import Settings
from pipeline.command import InputError


@makes_hosts
@pytest.mark.slow
def test_what_ends_a_worker_arrives_as_one_line(tmp_path):
    settings = Settings(num_steps=1, num_warm_up_steps=2, data={"jpeg": str(tmp_path / "nowhere")})
    experiment = Experiment(workers=(1,), global_batch_sizes=(2,), models=("alexnet_small:26",), loaders=("real",))
    (real,) = computation_cells(experiment, ["jpeg"], 10)
    for cell, message in (
        (real, r"^/\S*/nowhere does not exist or is not a folder; .*"),
        (
            dataclasses.replace(real, loader="synthetic", exchange="powersgd"),
            r"failed \(0 with status 1\): .*workers\.log$",
        ),
    ):
        with (
            hosts(1) as lab,
            open(tmp_path / "workers.log", "a") as messages,
            HostWorkers(lab, settings, None, messages) as workers,
            pytest.raises(InputError, match=message) as refused,
        ):
            workers.measure(cell)
        assert len(str(refused.value).splitlines()) == 1


def test_more_cpus_than_the_machine_has_are_refused_with_what_fits(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    check_cpus((1, 8), 0.5)
    with pytest.raises(InputError, match=r"8 workers of 0\.6 CPUs need 4\.8, .* has 4; use --cpus-per-worker 0\.5"):
        check_cpus((1, 8), 0.6)


def test_more_workers_than_the_machine_has_cpus_for_get_no_advice_that_is_refused(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    with pytest.raises(InputError, match=r"80 workers of 0\.1 CPUs need 8, .* has 4; use fewer --workers$"):
        check_cpus((1, 80), 0.1)
