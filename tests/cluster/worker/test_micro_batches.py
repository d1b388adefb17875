"""A slice that passes through the model in pieces gives the gradient of the whole."""

import numpy as np
import pytest
import torch
from runs import ALONE, CONFIG, losses

from cluster.run.run_folder import RunFolder
from cluster.worker.learner import Learner
from cluster.worker.options import WorkerOptions
from cluster.worker.training import Trainer, train


@pytest.fixture(scope="module")
def steps(raw_dataset, tmp_path_factory):
    """Train two steps with and without micro-batches; return gradients of the first and losses by micro-batch size."""
    found = {}
    for size in (None, 5, 1, 12):
        run = RunFolder.create(tmp_path_factory.mktemp("run") / str(size), CONFIG, raw_dataset)
        trainer = Trainer(raw_dataset, run, ALONE, WorkerOptions(micro_batch_size=size))
        trainer.make_step()
        gradients = [parameter.grad.clone() for parameter in trainer.learner.model.parameters()]
        trainer.make_step()
        trainer.write_line()
        trainer.close()
        found[size] = gradients, losses(run)
    return found


@pytest.mark.parametrize("size", [5, 1])
def test_gradient_and_loss_are_those_of_the_whole_to_rounding(steps, size) -> None:
    for mine, whole in zip(steps[size][0], steps[None][0], strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(steps[size][1], steps[None][1], rtol=1e-12)


def test_a_micro_batch_as_large_as_the_slice_changes_no_bit(steps) -> None:
    assert all(torch.equal(mine, whole) for mine, whole in zip(steps[12][0], steps[None][0], strict=True))
    assert steps[12][1] == steps[None][1]


def test_the_size_reaches_the_worker(raw_dataset, tmp_path, monkeypatch) -> None:
    run = RunFolder.create(tmp_path, CONFIG, raw_dataset)
    sizes, forward_backward = [], Learner._forward_backward

    def recorded(self, batch, *others):
        sizes.append(len(batch.images))
        return forward_backward(self, batch, *others)

    monkeypatch.setattr(Learner, "_forward_backward", recorded)
    train(raw_dataset.path, run.path, ALONE, WorkerOptions(micro_batch_size=7))
    assert sizes == [6] * 20
