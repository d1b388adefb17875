import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import CONFIG, losses
from torch import Tensor, nn
from worker_process import run_workers

from cluster.run.config import TrainingConfig
from cluster.run.run_folder import RunFolder
from model.alexnet import build_model
from model.batch_norm import GhostBatchNorm, update_running_statistics
from model.optim_config import OptimizerConfig
from model.registry import ModelConfig
from pipeline.dataset import Dataset


def random_activations(num_samples: int, num_channels: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 2 + 3 * torch.randn(num_samples, num_channels, 4, 3, dtype=torch.float64, generator=generator)


def trained_layer(group_size: int, num_channels: int = 5) -> GhostBatchNorm:
    layer = GhostBatchNorm(num_channels, group_size).double()
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 1.5, num_channels))
        layer.bias.copy_(torch.linspace(-1, 1, num_channels))
    return layer


def test_each_group_is_normalised_by_its_own_statistics() -> None:
    activations, layer = random_activations(12), trained_layer(4)
    output = layer(activations)
    for first in range(0, 12, 4):
        group = activations[first : first + 4]
        mean = group.mean(dim=(0, 2, 3), keepdim=True)
        variance = ((group - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
        expected = (group - mean) / (variance + 1e-5).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]
        torch.testing.assert_close(output[first : first + 4], expected, rtol=1e-12, atol=1e-12)


def test_one_group_equals_torchs_batch_norm() -> None:
    activations, layer = random_activations(8), GhostBatchNorm(5, 8).double()
    peer = nn.BatchNorm2d(5).double()
    for _ in range(3):
        torch.testing.assert_close(layer(activations), peer(activations), rtol=1e-12, atol=1e-12)
        update_running_statistics(layer, lambda total: total)
    torch.testing.assert_close(layer.running_mean, peer.running_mean)
    torch.testing.assert_close(layer.running_variance, peer.running_var)
    torch.testing.assert_close(layer.eval()(activations), peer.eval()(activations), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("slices", [[(0, 4), (4, 12)], [(0, 4), (4, 8), (8, 12)]])
def test_workers_change_nothing(slices: list[tuple[int, int]]) -> None:
    activations, alone = random_activations(12), trained_layer(4)
    whole = alone(activations)
    update_running_statistics(alone, lambda total: total)
    workers = [trained_layer(4) for _ in slices]
    parts = [worker(activations[first:end]) for worker, (first, end) in zip(workers, slices, strict=True)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)
    total = torch.stack([group for worker in workers for group in worker.pending]).sum(dim=0)
    for worker in workers:
        update_running_statistics(worker, lambda _: total)
        torch.testing.assert_close(worker.running_mean, alone.running_mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(worker.running_variance, alone.running_variance, rtol=1e-14, atol=0)


def test_pieces_of_a_step_count_as_one_step() -> None:
    activations, once, twice = random_activations(12), trained_layer(4), trained_layer(4)
    once(activations)
    update_running_statistics(once, lambda total: total)
    twice(activations[:4])
    twice(activations[4:])
    update_running_statistics(twice, lambda total: total)
    torch.testing.assert_close(twice.running_mean, once.running_mean, rtol=1e-14, atol=0)


def test_evaluation_leaves_the_statistics_alone() -> None:
    layer = trained_layer(4).eval()
    layer(random_activations(6))
    assert not layer.pending
    assert not layer.running_mean.any()


def test_without_batch_norm_nothing_is_exchanged() -> None:
    def refuse(total: Tensor) -> Tensor:
        raise AssertionError("exchanged")

    update_running_statistics(nn.Linear(2, 2), refuse)


def test_one_worker_updates_the_statistics_without_looking_at_a_value() -> None:
    """A GPU computes on while the CPU does not wait for it; tensors on the meta device have no values at all."""
    layer = GhostBatchNorm(5, 4).to("meta")
    layer.pending = [torch.empty(11, device="meta")]
    update_running_statistics(layer, lambda total: total)
    assert not layer.pending


def test_autocast_keeps_the_statistics_in_float32() -> None:
    layer = GhostBatchNorm(5, 4)
    activations = random_activations(8).bfloat16().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(activations)
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    update_running_statistics(layer, lambda total: total)
    exact = activations.double().mean(dim=(0, 2, 3))
    torch.testing.assert_close(layer.running_mean.double(), exact * 0.1, rtol=1e-3, atol=1e-3)


def test_switches_place_and_remove_it() -> None:
    def layers(**switches: object) -> int:
        model = build_model(num_classes=3, **switches)  # type: ignore[arg-type]
        return sum(isinstance(module, GhostBatchNorm) for module in model.modules())

    assert layers(name="alexnet_bn") == layers(name="alexnet_2012", normalization="batch") == 2
    assert layers(name="alexnet_bn", normalization="none") == 0
    assert layers(name="alexnet_bn", normalization="caffe") == 0


def test_the_group_size_is_known_before_anything_is_built() -> None:
    assert ModelConfig(name="alexnet_bn", batch_norm_group=16).group_size == 16
    assert ModelConfig(name="alexnet_bn", normalization="none").group_size == 1
    assert ModelConfig(name="alexnet_2012").group_size == 1


def test_a_global_batch_is_whole_groups() -> None:
    model = ModelConfig(name="alexnet_bn", batch_norm_group=16)
    with pytest.raises(ValueError, match=r"global_batch_size=40: .* multiple of model\.batch_norm_group, 16"):
        TrainingConfig(name="odd", model=model, optimizer=OptimizerConfig(), global_batch_size=40, num_epochs=1)
    with pytest.raises(ValueError, match="batch_norm_group=1: must be at least 2"):
        ModelConfig(name="alexnet_bn", batch_norm_group=1)
    with pytest.raises(ValueError, match="normalization='batch': alexnet_small has none that it could replace"):
        ModelConfig(name="alexnet_small", normalization="batch")


@pytest.mark.slow
def test_several_workers_train_the_same_run(raw_dataset: Dataset, tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG,
        model=ModelConfig(name="alexnet_bn", batch_norm_group=2, resize_to=224),
        optimizer=OptimizerConfig(learning_rate=0.001),
        global_batch_size=8,
        num_epochs=0.6,  # 3 steps
    )
    runs = []
    for world_size in (1, 3):  # four groups: one, one and two of them
        runs.append(RunFolder.create(tmp_path / str(world_size), config, raw_dataset))
        run_workers(world_size, "train", raw_dataset.path, runs[-1].path)
    alone, together = (run.checkpoints.load_latest()["model"] for run in runs)
    np.testing.assert_allclose(losses(runs[1]), losses(runs[0]), rtol=1e-8)
    assert len(losses(runs[0])) == 3
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-6, atol=1e-9)
    assert alone["features.1.running_mean"].abs().max() > 1e-4  # no longer where it began


@pytest.mark.parametrize("num_samples", [3, 8, 12, 15])
def test_groups_are_normalised_at_once_as_one_by_one(num_samples: int) -> None:
    generator = torch.Generator().manual_seed(3)
    values = 2 + 3 * torch.randn(num_samples, 5, 4, 3, generator=generator)
    values, upstream = (
        values.contiguous(memory_format=torch.channels_last),
        torch.randn(values.shape, generator=generator),
    )
    found = []
    for method in (GhostBatchNorm._normalise_one_by_one, GhostBatchNorm._normalise_at_once):
        layer, leaf = GhostBatchNorm(5, 4), values.clone().requires_grad_()
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 1.5, 5))
            layer.bias.copy_(torch.linspace(-1, 1, 5))
        result = method(layer, leaf)
        result.backward(upstream)
        assert result.is_contiguous(memory_format=torch.channels_last)
        update_running_statistics(layer, lambda total: total)
        assert not layer.pending
        gradients = [leaf.grad, layer.weight.grad, layer.bias.grad]
        found.append([result.detach(), *gradients, layer.running_mean, layer.running_variance])
    for expected, tensor in zip(*found, strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-5)
