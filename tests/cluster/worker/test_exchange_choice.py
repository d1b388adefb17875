"""The choice of the exchange: as told, by a measurement, and the same again for as many workers."""

import dataclasses

import pytest
import torch
from runs import ALONE, CONFIG, entries
from worker_process import run_workers

from cluster.exchange.cost import Computation, Link
from cluster.exchange.dense_layers import dense_layers
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import ExchangeChosen, Warned
from cluster.worker import exchange_choice
from cluster.worker.exchange_choice import ExchangeChooser
from cluster.worker.world import World
from model.registry import ModelConfig, build_network, outline_network
from pipeline.online.order import RankShare

TWO = World(0, 2, torch.device("cpu"))
SLOW, FAST = Link(1e-4, 1e5), Link(1e-6, 1e12)


@pytest.fixture
def measured(monkeypatch):
    """Two workers of which the other answers as this one does, and a link to set."""
    found = {"link": SLOW, "num_measured": 0, "are_alike": True}

    def measure_link(device):
        found["num_measured"] += 1
        return found["link"]

    monkeypatch.setattr(World, "sum", lambda self, values: values)
    monkeypatch.setattr(World, "agrees", lambda self, value: found["are_alike"])
    monkeypatch.setattr(exchange_choice, "measure_link", measure_link)
    monkeypatch.setattr(ExchangeChooser, "_measure_computation", lambda self: Computation(0.1, 1e11))
    return found


def _chooser(world: World = TWO, micro_batch_size: int | None = None) -> ExchangeChooser:
    config = dataclasses.replace(CONFIG, model=ModelConfig(name="alexnet_2012"), precision="float32")
    model = outline_network(config.model, num_classes=10)
    share = RankShare(13, world.rank, world.world_size, micro_batch_size=micro_batch_size)
    return ExchangeChooser(config=config, model=model, num_classes=10, image_size=224, world=world, share=share)


def test_a_measured_choice_is_said_and_holds_for_as_many_workers_on_such_devices(measured):
    strategy, line = _chooser().choose("auto", [])
    assert isinstance(line, ExchangeChosen) and strategy == line.exchange != "allreduce"
    assert (line.world_size, line.device, line.bytes_per_second) == (2, "cpu", 1e5)
    assert min(line.step_seconds, key=line.step_seconds.get) == strategy
    measured["link"] = FAST
    assert _chooser().choose("auto", [line]) == (strategy, None)
    assert measured["num_measured"] == 1
    others = [dataclasses.replace(line, world_size=3), dataclasses.replace(line, device="cuda")]
    assert _chooser().choose("auto", others)[0] == "allreduce"
    assert measured["num_measured"] == 2


def test_unlike_processors_are_not_given_factors(measured):
    measured["are_alike"] = False
    assert "factors" not in _chooser().choose("auto", [])[1].step_seconds


def test_micro_batches_that_cannot_be_cut_are_not_given_hybrid(measured):
    assert "hybrid" not in _chooser(micro_batch_size=1).choose("auto", [])[1].step_seconds
    strategy, line = _chooser(micro_batch_size=1).choose("hybrid", [])
    assert strategy == "allreduce" and "2 or more does not" in line.message
    assert _chooser(micro_batch_size=2).choose("hybrid", []) == ("hybrid", None)


@pytest.mark.parametrize("requested", ["allreduce", "factors", "hybrid"])
def test_what_was_asked_for_is_taken_without_a_measurement(measured, requested):
    assert _chooser().choose(requested, []) == (requested, None)
    assert not measured["num_measured"]


def test_one_worker_uses_allreduce_and_says_so_if_something_else_was_asked_for(measured):
    assert _chooser(ALONE).choose("auto", []) == ("allreduce", None)
    assert _chooser(ALONE).choose("hybrid", []) == (
        "allreduce",
        Warned(message="--exchange hybrid is allreduce here: a single worker exchanges nothing"),
    )


def test_a_model_without_dense_layers_uses_allreduce_and_says_so(measured):
    chooser = dataclasses.replace(_chooser(), model=torch.nn.Conv2d(3, 4, 3))
    strategy, line = chooser.choose("factors", [])
    assert strategy == "allreduce" and "alexnet_2012 has no dense layers" in line.message


def test_dense_layers_that_form_no_chain_cannot_be_cut(measured):
    chooser = dataclasses.replace(_chooser(), model=torch.nn.ModuleDict({"fc": torch.nn.Linear(64, 10)}))
    strategy, line = chooser.choose("hybrid", [])
    assert strategy == "allreduce" and "can't be cut for 2 workers" in line.message


class Rows(torch.nn.Module):
    """Applies a dense layer to each column of a picture, as to a picture of its own."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.columns, self.fc = torch.nn.Linear(3, 4), torch.nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        columns = self.columns(images.mean(dim=2).permute(0, 2, 1).flatten(0, 1))
        return self.fc(columns.unflatten(0, (len(images), -1)).mean(dim=1))


class PartlyFrozen(torch.nn.Module):
    """Trains its last layer alone."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.hidden = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 4)
        self.fc = torch.nn.Linear(4, num_classes)
        self.body.requires_grad_(False)
        self.hidden.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.hidden(self.body(images).mean(dim=(2, 3))))


def _own_chooser(name: str) -> ExchangeChooser:
    model = ModelConfig(name=f"{__name__}:{name}", batch_norm_group=1)
    config = dataclasses.replace(CONFIG, model=model, precision="float32")
    network = build_network(model, num_classes=10, seed=0)
    return dataclasses.replace(_chooser(), config=config, model=network, image_size=16)


def test_a_dense_layer_that_gets_parts_of_pictures_is_left_to_allreduce(measured):
    assert _own_chooser("Rows").choose("auto", []) == ("allreduce", None)
    strategy, line = _own_chooser("Rows").choose("factors", [])
    assert strategy == "allreduce" and "has a dense layer that does not get a row per picture" in line.message
    assert _own_chooser("PartlyFrozen").choose("factors", []) == ("factors", None)


def test_layers_that_are_not_trained_are_neither_measured_nor_exchanged(measured, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(exchange_choice, "slowest", lambda seconds: seconds)
    chooser = _own_chooser("PartlyFrozen")
    assert chooser._measure_computation().step_seconds > 0
    assert list(dense_layers(chooser.model)) == ["network.fc"]
    assert chooser._workload().num_other == 0


@pytest.mark.slow
def test_real_workers_measure_agree_and_do_the_same_again(raw_dataset, tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, raw_dataset)
    run_workers(2, "train-stopped", raw_dataset.path, run.path, "", "auto")
    run_workers(2, "train", raw_dataset.path, run.path, "", "auto")
    (chosen,) = entries(run, "exchange")
    assert [start["exchange"] for start in entries(run, "start")] == [chosen["exchange"]] * 2
    assert set(chosen["step_seconds"]) >= {"allreduce", "factors"}
    assert chosen["bytes_per_second"] > 1e7 and 0 < chosen["latency_seconds"] < 1
    assert run.result is not None
