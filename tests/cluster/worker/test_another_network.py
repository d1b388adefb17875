"""The seam of the models: another module's network takes one entry of the registry, and nothing else."""

import dataclasses

import pytest
import torch
import torchvision
from runs import ALONE, CONFIG, losses
from torch.nn import functional

from cluster.launch.footprint import num_weight_bytes
from cluster.run.fit import check_fits
from cluster.run.run_folder import RunFolder
from cluster.worker.trained_model import load_model
from cluster.worker.training import Trainer
from model.registry import NETWORKS, ModelConfig, Network, images_only, num_operations, num_parameters
from model.schedules import learning_rate
from pipeline.command import InputError
from pipeline.loader import TrainLoader


def _squeezenet(config: ModelConfig, num_classes: int, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return images_only(torchvision.models.squeezenet1_1(num_classes=num_classes, dropout=0.0))


def _outline(config: ModelConfig, num_classes: int, seed: int) -> torch.nn.Module:
    with torch.device("meta"):
        return _squeezenet(config, num_classes, seed)


def _check_image_size(config: ModelConfig, image_size: int) -> None:
    if image_size < 17:
        raise ValueError(f"image_size={image_size}: must be at least 17")


@pytest.fixture
def config(monkeypatch):
    entry = Network(build=_squeezenet, outline=_outline, check_image_size=_check_image_size)
    monkeypatch.setitem(NETWORKS, "squeezenet", entry)
    return dataclasses.replace(CONFIG, model=ModelConfig(name="squeezenet"), num_epochs=1)


def _losses_of_a_plain_loop(config, dataset) -> list[float]:
    loader = TrainLoader(dataset, global_batch_size=12, augmentation=config.augmentation)
    network = _squeezenet(config.model, dataset.num_classes, config.seed).double()
    optimizer = torch.optim.SGD(network.parameters(), momentum=0.9, weight_decay=5e-4)
    found = []
    for step in range(3):
        batch = next(loader)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step * 12, 3 * 12)
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(batch.images.double()), batch.labels)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    loader.close()
    return found


def test_it_trains_is_resumed_and_is_loaded_as_any_other(config, raw_dataset, tmp_path):
    run = RunFolder.create(tmp_path / "run", config, raw_dataset)
    check_fits(run.config, raw_dataset, 1)
    first = Trainer(raw_dataset, run, ALONE)
    for _ in range(2):
        first.make_step()
    first.save_checkpoint()
    first.close()
    second = Trainer(raw_dataset, run, ALONE)
    assert second.progress.step == 2
    second.run()
    second.close()
    assert losses(run) == pytest.approx(_losses_of_a_plain_loop(config, raw_dataset), rel=1e-9)
    model, step = load_model(run, ALONE.device)
    logits = model(torch.zeros(2, 3, 28, 28, dtype=torch.float64), None)
    assert step == 3 and logits.shape == (2, raw_dataset.num_classes)


def test_what_a_run_needs_is_known_of_it_before_it_begins(config, raw_dataset):
    assert num_parameters(config.model, 1000) == 1_235_496  # torchvision's documentation
    assert num_weight_bytes(config, 1000) == 8 * 1_235_496
    assert num_operations(config.model, 1000, 224) == pytest.approx(2 * 0.349e9, rel=0.01)
    small = dataclasses.replace(config, augmentation=dataclasses.replace(config.augmentation, crop_size=16))
    with pytest.raises(InputError, match="image_size=16: must be at least 17"):
        check_fits(small, raw_dataset, 1)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: torchvision.models.squeezenet1_1(), r"classifier\.0 is a Dropout, whose masks change when"),
        (lambda: torchvision.models.resnet18(), r"bn1 is a BatchNorm2d, whose statistics depend on the number of"),
    ],
)
def test_a_network_whose_training_would_depend_on_the_workers_is_refused(network, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        images_only(network())


def test_switches_of_alexnet_are_refused(config):
    with pytest.raises(ValueError, match="activation='tanh': squeezenet has no such switch; leave it at 'relu'"):
        ModelConfig(name="squeezenet", activation="tanh")
