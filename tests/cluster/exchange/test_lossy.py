"""Lossy exchanges: what each loses, that resumes are exact, and what another number of workers resets."""

import contextlib
import dataclasses
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from runs import CONFIG, entries
from worker_group import run_group
from worker_process import run_workers

from cluster.exchange.local_sgd import LocalSgd
from cluster.exchange.lossy_cost import bf16_bytes, local_sgd_bytes, powersgd_bytes
from cluster.launch.footprint import num_checkpoint_bytes
from cluster.run.run_folder import RunFolder
from cluster.worker.training import Trainer, train
from cluster.worker.world import World
from model.optim_config import OptimizerConfig
from model.registry import build_network
from pipeline.dataset import Dataset

UNEVEN = dataclasses.replace(CONFIG, global_batch_size=13)  # 9 steps
PLAIN = OptimizerConfig(learning_rate=0.01, momentum=0, weight_decay=0)
LOSSY = {
    "bf16": {"gradient_compression": "bf16"},
    "powersgd rank 2": {"gradient_compression": "powersgd", "powersgd_rank": 2, "powersgd_start": 0.0},
    "local SGD 2": {"local_sgd_steps": 2},
}
WITHOUT_STATE = {
    "powersgd rank 2": "PowerSGD's error feedback begins anew",
    "local SGD 2": "all workers go on with the first worker's momentum",
}


@pytest.fixture
def new_run(raw_dataset, tmp_path):
    """Return a function that begins a run; it changes fields of the recipe."""

    def begin(name: str, **changes) -> RunFolder:
        return RunFolder.create(tmp_path / name, dataclasses.replace(UNEVEN, **changes), raw_dataset)

    return begin


def _of_steps(num_steps: int) -> dict[str, object]:
    return {"num_epochs": num_steps * 13 / 41, "optimizer": PLAIN}


def _weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return run.checkpoints.load_latest()["model"]


def assert_same(mine, theirs) -> None:
    """Assert that two states are equal bit for bit."""
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, theirs)
    elif isinstance(mine, dict | list | tuple):
        assert len(mine) == len(theirs)
        for key in mine if isinstance(mine, dict) else range(len(mine)):
            assert_same(mine[key], theirs[key])
    else:
        assert mine == theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSY)
def test_a_resume_on_as_many_workers_is_exact(name, new_run, raw_dataset):
    straight, resumed = new_run("straight", **LOSSY[name]), new_run("resumed", **LOSSY[name])
    run_workers(2, "train", raw_dataset.path, straight.path)
    run_workers(2, "train-stopped", raw_dataset.path, resumed.path)
    assert 2 < resumed.checkpoints.latest_step() < straight.result["num_steps"] == 9
    run_workers(2, "train", raw_dataset.path, resumed.path)
    assert_same(resumed.checkpoints.load_latest(), straight.checkpoints.load_latest())
    assert {line["exchange"] for line in entries(resumed, "start")} == {name}
    assert not entries(resumed, "warning")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lost"), WITHOUT_STATE.items())
def test_a_resume_on_another_number_of_workers_tells_what_is_lost(name, lost, new_run, raw_dataset):
    run = new_run("run", **LOSSY[name])
    run_workers(2, "train-stopped", raw_dataset.path, run.path)
    checkpoint = max((run.path / "checkpoints").glob("step-*.pt"))
    assert checkpoint.stat().st_size == pytest.approx(
        num_checkpoint_bytes(run.config, raw_dataset.num_classes, 2), rel=0.01
    )
    run_workers(3, "train", raw_dataset.path, run.path)
    assert run.result["num_steps"] == 9
    (warning,) = entries(run, "warning")
    assert warning["message"] == f"{lost}: the checkpoint has the state of 2 workers, and this launch has 3"


@pytest.mark.slow
def test_bf16_rounds_the_gradients(new_run, raw_dataset):
    exact, lossy = new_run("exact", **_of_steps(1)), new_run("lossy", **_of_steps(1) | LOSSY["bf16"])
    for run in (exact, lossy):
        run_workers(2, "train", raw_dataset.path, run.path)
    initial = build_network(CONFIG.model, num_classes=raw_dataset.num_classes, seed=CONFIG.seed).state_dict()
    for name, before in initial.items():
        mine, theirs = (_weights(run)[name] - before.double() for run in (lossy, exact))
        deviation = (mine - theirs).abs().max() / theirs.abs().max()
        assert 2**-14 < deviation < 2**-7, name  # two workers' gradients and their sum, rounded to 8 bits


@pytest.mark.slow
def test_powersgd_leaves_out_what_it_keeps_for_the_next_step(new_run, raw_dataset):
    changes = LOSSY["powersgd rank 2"]
    before, exact, lossy = (
        new_run("before", **_of_steps(2) | changes),  # the first two steps are exact
        new_run("exact", **_of_steps(3)),
        new_run("lossy", **_of_steps(3) | changes),
    )
    for run in (before, exact, lossy):
        run_workers(2, "train", raw_dataset.path, run.path)
    assert before.checkpoints.load_latest()["exchange"] == [{}, {}]
    errors = [state["error_dict"] for state in lossy.checkpoints.load_latest()["exchange"]]
    assert not torch.equal(*errors)
    left_out = iter(sum(errors) / 2 * PLAIN.learning_rate)
    num_compressed = 0
    for name, start in _weights(before).items():
        update, whole = _weights(lossy)[name] - start, _weights(exact)[name] - start
        if start.ndim < 2:
            torch.testing.assert_close(update, whole, rtol=1e-9, atol=1e-12)
        elif 2 * 2 * sum(whole.flatten(1).shape) < whole.numel():
            num_compressed += 1
            assert torch.linalg.matrix_rank(whole.flatten(1), rtol=1e-9) > 2
            assert torch.linalg.matrix_rank(update.flatten(1), rtol=1e-9) == 2
        missing = torch.stack([next(left_out) for _ in range(start.numel())])
        if start.ndim == 4:  # channels last
            missing = missing.view(*(start.shape[axis] for axis in (0, 2, 3, 1))).permute(0, 3, 1, 2)
        torch.testing.assert_close(update - missing.reshape(whole.shape), whole, rtol=1e-9, atol=1e-12)
    assert num_compressed >= 3


@pytest.mark.slow
def test_powersgd_before_its_start_is_allreduce(new_run, raw_dataset):
    runs = [new_run("exact"), new_run("lossy", **LOSSY["powersgd rank 2"] | {"powersgd_start": 1.0})]
    for run in runs:
        run_workers(2, "train", raw_dataset.path, run.path)
    for mine, theirs in zip(*(_weights(run).values() for run in runs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_evaluations_checkpoints_and_stops_wait_for_averages(new_run, raw_dataset):
    changes = {"local_sgd_steps": 4, "evaluations_per_epoch": 2, "checkpoint_interval": 2, "num_checkpoints": 9}
    run, stopped = new_run("run", **changes), new_run("stopped", **changes)
    run_workers(2, "train", raw_dataset.path, run.path)
    assert [line["step"] for line in entries(run, "evaluation")] == [4, 8, 9]
    saved = {int(path.stem.split("-")[-1]) for path in (run.path / "checkpoints").glob("*.json")}
    assert saved == {4, 8, 9}
    run_workers(2, "train-stopped", raw_dataset.path, stopped.path)
    assert stopped.checkpoints.latest_step() in (4, 8) and stopped.result is None


@pytest.mark.parametrize(
    ("start", "equal"), [pytest.param(0.0, [4, 8, 9], marks=pytest.mark.slow), (0.5, [1, 2, 3, 4, 8, 9])]
)
def test_weights_are_equal_after_averages_alone(start, equal, new_run, raw_dataset):
    run = new_run("run", local_sgd_steps=4, local_sgd_start=start, optimizer=PLAIN)
    printed = run_group(2, __file__, "step_by_step", raw_dataset.path, run.path)
    assert printed[0].split() == printed[1].split() == [f"{step}" for step in equal]


def step_by_step(dataset: str, run: str) -> None:
    """Print the steps after which all workers have the same weights, as the exchange says and as they are."""
    with contextlib.closing(Trainer(Dataset.open(dataset), RunFolder.open(Path(run)), _world())) as trainer:
        for step in range(1, 10):
            trainer.make_step()
            first = next(trainer.learner.model.parameters())
            largest, smallest = first.detach().clone(), first.detach().clone()
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
            torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
            is_equal = torch.equal(largest, smallest)
            assert is_equal == trainer.learner.has_equal_weights
            if is_equal:
                sys.stdout.write(f"{step}\n")


@pytest.mark.slow
def test_an_average_after_each_step_is_allreduce(new_run, raw_dataset):
    averaged, exact = new_run("averaged", optimizer=PLAIN), new_run("exact", optimizer=PLAIN)
    run_group(2, __file__, "average_each_step", raw_dataset.path, averaged.path)
    run_workers(2, "train", raw_dataset.path, exact.path)
    for mine, theirs in zip(_weights(averaged).values(), _weights(exact).values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
        assert mine.stride() == theirs.stride()


def average_each_step(dataset: str, run: str) -> None:
    train(Path(dataset), Path(run), _world(), make_exchange=lambda share: LocalSgd(share, 1, 0, 9))


def _world() -> World:
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("bf16", bf16_bytes),
        ("powersgd rank 2", partial(powersgd_bytes, rank=2)),
        ("local SGD 2", partial(local_sgd_bytes, num_steps=2)),
    ],
)
def test_the_bytes_sent_are_those_of_the_formula(name, formula, new_run, raw_dataset):
    run = new_run("run", **LOSSY[name] | {"precision": "float32"})
    model = build_network(CONFIG.model, num_classes=raw_dataset.num_classes, seed=0)
    # Steps 3 to 6 of 9: after those that are exact, and with whole periods of averages.
    for printed in run_group(2, __file__, "count_bytes", raw_dataset.path, run.path, "2", "6"):
        assert float(printed) == pytest.approx(formula(model, 2) * 4)


def count_bytes(dataset: str, run: str, first: str, last: str) -> None:
    """Print the bytes that a ring of all workers sends for what is summed between two steps."""
    sizes = []
    all_reduce = torch.distributed.all_reduce

    def count(tensor, *arguments, **options):
        if tensor.is_floating_point():  # others are wishes to stop
            sizes.append(tensor.nbytes)
        return all_reduce(tensor, *arguments, **options)

    torch.distributed.all_reduce = count
    with contextlib.closing(Trainer(Dataset.open(dataset), RunFolder.open(Path(run)), _world())) as trainer:
        for step in range(1, int(last) + 1):
            trainer.make_step()
            if step == int(first):
                sizes.clear()
    world_size = torch.distributed.get_world_size()
    sys.stdout.write(f"{sum(sizes) * 2 * (world_size - 1) / world_size}")
