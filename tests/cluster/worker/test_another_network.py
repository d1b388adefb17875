"""Networks from elsewhere in the worker loop: trained, resumed and loaded as any other, the same on any workers."""

import dataclasses

import pytest
import torch
import torchvision
from runs import ALONE, CONFIG, losses
from torch.nn import functional
from worker_process import run_workers

from cluster.exchange.dense_layers import dense_layers
from cluster.launch.footprint import num_weight_bytes
from cluster.run.fit import check_fits
from cluster.run.run_folder import RunFolder
from cluster.worker.trained_model import load_model
from cluster.worker.training import Trainer
from model.registry import ModelConfig, outline_network
from model.schedules import learning_rate
from pipeline.command import InputError
from pipeline.loader import TrainLoader

SQUEEZENET = ModelConfig(name="torchvision/squeezenet1_1", batch_norm_group=1)
RESNET = ModelConfig(name="torchvision/resnet18", batch_norm_group=4)


@pytest.fixture
def config():
    return dataclasses.replace(CONFIG, model=SQUEEZENET, num_epochs=1)


def _losses_of_a_plain_loop(config, dataset) -> list[float]:
    """Train torchvision's network without the project's learner, and without dropout."""
    loader = TrainLoader(dataset, global_batch_size=12, augmentation=config.augmentation)
    torch.manual_seed(config.seed)
    network = torchvision.models.resnet18(num_classes=dataset.num_classes).double()
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


def test_in_one_group_it_trains_as_in_a_plain_loop(config, raw_dataset, tmp_path):
    one_group = dataclasses.replace(config, model=dataclasses.replace(RESNET, batch_norm_group=12))
    run = RunFolder.create(tmp_path / "run", one_group, raw_dataset)
    trainer = Trainer(raw_dataset, run, ALONE)
    trainer.run()
    trainer.close()
    assert losses(run) == pytest.approx(_losses_of_a_plain_loop(one_group, raw_dataset), rel=1e-9)


def test_it_is_resumed_and_loaded_as_any_other(config, raw_dataset, tmp_path):
    found = []
    for name, interrupted in (("straight", False), ("resumed", True)):
        run = RunFolder.create(tmp_path / name, config, raw_dataset)
        check_fits(run.config, raw_dataset, 1)
        trainer = Trainer(raw_dataset, run, ALONE)
        if interrupted:
            for _ in range(2):
                trainer.make_step()
            trainer.save_checkpoint()
            trainer.close()
            trainer = Trainer(raw_dataset, run, ALONE)
            assert trainer.progress.step == 2
        trainer.run()
        trainer.close()
        found.append(losses(run))
    assert found[0] == found[1]  # with its dropout
    model, step = load_model(run, ALONE.device)
    logits = model(torch.zeros(2, 3, 28, 28, dtype=torch.float64), None)
    assert step == 3 and logits.shape == (2, raw_dataset.num_classes)


@pytest.mark.slow  # 20 s
def test_the_losses_are_the_same_on_any_number_of_workers(config, raw_dataset, tmp_path):
    found = {}
    for num_workers in (1, 2, 3):
        trained = dataclasses.replace(config, model=RESNET)
        run = RunFolder.create(tmp_path / str(num_workers), trained, raw_dataset)
        run_workers(num_workers, "train", raw_dataset.path, run.path)
        found[num_workers] = losses(run)
    assert found[2] == pytest.approx(found[1], rel=1e-9)
    assert found[3] == pytest.approx(found[1], rel=1e-9)


@pytest.mark.slow  # 20 s in both forms
@pytest.mark.parametrize("exchange", ["factors", "hybrid"])
def test_a_network_of_ones_own_is_exchanged_by_its_dense_layers(exchange, config, raw_dataset, tmp_path):
    own = ModelConfig(name="examples.own_model:SmallNet", batch_norm_group=2)
    trained, found = dataclasses.replace(config, model=own), {}
    for name, num_workers in (("allreduce", 1), (exchange, 3)):
        run = RunFolder.create(tmp_path / name, trained, raw_dataset)
        run_workers(num_workers, "train", raw_dataset.path, run.path, "", name)
        found[name] = losses(run)
    assert found[exchange] == pytest.approx(found["allreduce"], rel=1e-9)


def test_dense_layers_inside_a_network_from_elsewhere_are_left_to_allreduce():
    """Those of a transformer see many parts of a picture, and swin's are used without being called."""
    names = {
        name: set(dense_layers(outline_network(ModelConfig(name=f"torchvision/{name}"), num_classes=7)))
        for name in ("swin_t", "vgg11", "resnet18")
    }
    assert names == {
        "swin_t": {"network.head"},
        "vgg11": {f"network.classifier.{index}" for index in (0, 3, 6)},
        "resnet18": {"network.fc"},
    }


def test_what_a_run_needs_is_known_of_it_before_it_begins(config, raw_dataset):
    assert num_weight_bytes(config, 1000) == 8 * 1_235_496  # torchvision's documentation
    vgg = dataclasses.replace(config, model=ModelConfig(name="torchvision/vgg11", batch_norm_group=1))
    with pytest.raises(InputError, match="image_size=28: torchvision/vgg11 does not take such pictures"):
        check_fits(vgg, raw_dataset, 1)
    unknown = dataclasses.replace(config, model=ModelConfig(name="torchvision/resnet0", batch_norm_group=1))
    with pytest.raises(InputError, match=r"^name='torchvision/resnet0': torchvision has no such classifier; it has"):
        check_fits(unknown, raw_dataset, 1)
