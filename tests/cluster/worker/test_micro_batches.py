"""A slice that passes through the model in pieces gives the gradient of the whole."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import ALONE, CONFIG, losses

from cluster.run.run_folder import RunFolder
from cluster.worker import learner
from cluster.worker.micro_batches import cut_into_micro_batches
from cluster.worker.training import Trainer, train
from pipeline.command import InputError


@given(num_samples=st.integers(1, 300), groups=st.integers(1, 20), group_size=st.integers(1, 9), more=st.integers(0, 8))
def test_the_pieces_cover_the_slice_and_tear_no_group(num_samples, groups, group_size, more) -> None:
    micro_batch_size = groups * group_size + more
    pieces = cut_into_micro_batches(num_samples, micro_batch_size, group_size)
    assert [index for piece in pieces for index in range(num_samples)[piece]] == list(range(num_samples))
    assert all(0 < piece.stop - piece.start <= micro_batch_size for piece in pieces)
    assert all(piece.start % group_size == 0 for piece in pieces)
    assert len(pieces) <= -(-num_samples // (groups * group_size))  # no more than necessary


def test_without_a_limit_there_is_one_piece() -> None:
    assert cut_into_micro_batches(7, None) == [slice(0, 7)]


def test_a_piece_holds_a_group() -> None:
    with pytest.raises(InputError, match="--micro-batch-size is 7; it must be at least 8"):
        cut_into_micro_batches(16, 7, group_size=8)


@pytest.fixture(scope="module")
def steps(raw_dataset, tmp_path_factory):
    """Train two steps with and without micro-batches; return gradients of the first and losses by micro-batch size."""
    found = {}
    for size in (None, 5, 1, 12):
        run = RunFolder.create(tmp_path_factory.mktemp("run") / str(size), CONFIG, raw_dataset)
        trainer = Trainer(raw_dataset, run, ALONE, micro_batch_size=size)
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
    cut = []
    monkeypatch.setattr(
        learner,
        "cut_into_micro_batches",
        lambda *arguments: cut.append(arguments) or cut_into_micro_batches(*arguments),
    )
    train(raw_dataset.path, run.path, ALONE, micro_batch_size=7)
    assert set(cut) == {(12, 7, 1)}
