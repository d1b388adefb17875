"""Networks from elsewhere: what the workers would change is replaced, what can't be replaced is refused by name."""

import copy
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model.batch_norm import GhostBatchNorm, update_running_statistics
from model.counted_network import CountedNetwork, PlacedDropout
from model.dropout import keep_mask
from model.registry import (
    ModelConfig,
    build_network,
    check_image_size,
    check_network,
    num_operations,
    num_parameters,
    outline_network,
)

SEED, GROUP = 5, 4
POSITIONS = torch.arange(40, 48)


def adapted(network: nn.Module) -> CountedNetwork:
    return CountedNetwork(network, seed=SEED, batch_norm_group=GROUP).double()


def pictures(num_samples: int = 8, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(num_samples, 3, size, size, dtype=torch.float64, generator=generator)


def resnet(name: str = "torchvision/resnet18") -> ModelConfig:
    return ModelConfig(name=name, batch_norm_group=GROUP)


def test_in_one_group_it_computes_what_the_original_computes():
    torch.manual_seed(0)
    original = torchvision.models.resnet18(num_classes=7).double()
    network = CountedNetwork(copy.deepcopy(original), seed=SEED, batch_norm_group=8).double()
    torch.testing.assert_close(network(pictures(), POSITIONS), original(pictures()), rtol=1e-12, atol=1e-12)
    update_running_statistics(network, lambda total: total)
    torch.testing.assert_close(
        network.eval()(pictures(), POSITIONS), original.eval()(pictures()), rtol=1e-12, atol=1e-12
    )


def test_slices_of_whole_groups_compute_what_the_whole_batch_computes():
    network = build_network(resnet("torchvision/efficientnet_b0"), num_classes=7, seed=SEED).double()
    whole = network(pictures(), POSITIONS)
    parts = [network(pictures()[part], POSITIONS[part]) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-10, atol=1e-10)
    other = network(pictures(), POSITIONS + 1)  # dropout and stochastic depth follow the positions
    assert not torch.allclose(other, whole)


@pytest.mark.parametrize("name", ["resnet18", "mnasnet1_0"])  # mnasnet's batch normalisation has a momentum of its own
def test_the_state_of_the_original_is_loaded_under_its_own_names(name):
    original = torchvision.models.get_model(name, num_classes=7).double()
    original(pictures())
    network = build_network(resnet(f"torchvision/{name}"), num_classes=7, seed=SEED).double()
    network.network.load_state_dict(original.state_dict())
    torch.testing.assert_close(network.eval()(pictures()), original.eval()(pictures()), rtol=1e-10, atol=1e-10)


def test_batch_normalisation_keeps_its_settings():
    network = adapted(nn.Sequential(nn.BatchNorm2d(3, eps=0.001, momentum=0.01)))
    layer = network.network[0]
    assert isinstance(layer, GhostBatchNorm) and (layer.epsilon, layer.momentum) == (0.001, 0.01)
    images = pictures(4)
    outputs = network(images)
    update_running_statistics(network, lambda total: total)
    variance, mean = torch.var_mean(images, dim=(0, 2, 3), correction=0)
    expected = (images - mean[:, None, None]) / (variance[:, None, None] + 0.001).sqrt()
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.running_mean, 0.01 * mean)


def test_the_initial_weights_depend_on_the_seed_alone_and_leave_the_global_generator():
    torch.manual_seed(1)
    first, before = build_network(resnet(), num_classes=7, seed=SEED).state_dict(), torch.get_rng_state()
    torch.manual_seed(2)
    second = build_network(resnet(), num_classes=7, seed=SEED).state_dict()
    other = build_network(resnet(), num_classes=7, seed=SEED + 1).state_dict()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["network.conv1.weight"], other["network.conv1.weight"])


class Twice(nn.Module):
    """Drops with the same layer twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: Tensor) -> Tensor:
        return torch.stack([self.layer(values), self.layer(values)])


def test_masks_of_dropout_are_functions_of_the_position():
    network = CountedNetwork(Twice(nn.Dropout(0.25)), seed=SEED, batch_norm_group=1)
    values = torch.ones(8, 3, 5, 5, dtype=torch.float64)
    found = network(values, POSITIONS)
    for use in (0, 1):  # each use has masks of its own
        kept = keep_mask(POSITIONS, 75, probability=0.25, seed=SEED, layer=use).view(8, 3, 5, 5)
        torch.testing.assert_close(found[use], kept.double() / 0.75)
    torch.testing.assert_close(network(values, POSITIONS), found)  # the next pass begins again
    torch.testing.assert_close(network.eval()(values)[0], values)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Dropout2d(0.25), (8, 3, 1, 1)), (torchvision.ops.StochasticDepth(0.25, "row"), (8, 1, 1, 1))],
)
def test_channels_and_samples_are_dropped_whole(layer, shape):
    network = CountedNetwork(nn.Sequential(layer), seed=SEED, batch_norm_group=1)
    kept = keep_mask(POSITIONS, int(np.prod(shape[1:])), probability=0.25, seed=SEED, layer=0).view(shape)
    values = pictures(8, 5)
    torch.testing.assert_close(network(values, POSITIONS), values * kept.double() / 0.75)


def test_layers_have_masks_of_their_own():
    network = CountedNetwork(
        nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.Dropout(0.5)), seed=SEED, batch_norm_group=1
    )
    assert [layer.layer for layer in network.modules() if isinstance(layer, PlacedDropout)] == [0, 1]


class OwnBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation for any shape."""

    def _check_input_dim(self, inputs: Tensor) -> None:
        pass


class OwnDropout(nn.Dropout):
    """Dropout that does something else too."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).relu()


def with_a_hook(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda layer, inputs, outputs: outputs.relu())
    return layer


def test_what_a_run_needs_is_known_without_weights():
    assert num_parameters(resnet(), 1000) == 11_689_512  # torchvision's documentation
    assert num_operations(resnet(), 1000, 224) == pytest.approx(2 * 1.814e9, rel=0.01)
    assert all(tensor.is_meta for tensor in outline_network(resnet(), num_classes=7).state_dict().values())
    assert resnet().group_size == GROUP


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.AlphaDropout(0.5), r"layer 0 is of type AlphaDropout, for which there are no counted masks"),
        (
            torchvision.ops.StochasticDepth(0.5, "batch"),
            r"layer 0 is of type StochasticDepth and mode 'batch', which drops a worker's",
        ),
        (
            nn.BatchNorm2d(3, momentum=None),
            "layer 0 is of type BatchNorm2d without scale and shift, running statistics or momentum",
        ),
        (
            nn.InstanceNorm2d(3, track_running_stats=True),
            "layer 0 is of type InstanceNorm2d, whose running statistics depend on",
        ),
        (timm.layers.BatchNormAct2d(3), "layer 0 is of type BatchNormAct2d, which takes statistics"),
        (OwnBatchNorm(3), "layer 0 is of type OwnBatchNorm, which takes statistics"),
        (OwnDropout(0.5), "layer 0 is of type OwnDropout, for which there are no counted masks"),
        (with_a_hook(nn.BatchNorm2d(3)), "layer 0 is of type BatchNorm2d and has hooks"),
        (with_a_hook(nn.Dropout(0.5)), "layer 0 is of type Dropout and has hooks"),
        (with_a_hook(torchvision.ops.StochasticDepth(0.5, "row")), "layer 0 is of type StochasticDepth and has hooks"),
        (nn.LazyConv2d(3, 1), "layer 0 is of type LazyConv2d, whose size is not known before it runs"),
    ],
)
def test_a_layer_that_cant_be_replaced_is_refused_by_its_name(layer, message):
    with pytest.raises(ValueError, match=message):
        adapted(nn.Sequential(layer))


def test_groups_of_one_are_for_networks_without_batch_normalisation():
    with pytest.raises(
        ValueError, match="batch_norm_group=1: must be at least 2, since layer bn1 is of type BatchNorm2d"
    ):
        check_network(ModelConfig(name="torchvision/resnet18", batch_norm_group=1))
    check_network(ModelConfig(name="torchvision/squeezenet1_1", batch_norm_group=1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet81", "torchvision has no such classifier; it has resnet18"),
        ("torchvision/fcn_resnet50", "torchvision has no such classifier"),
        ("no_such_module:Net", "there is no module no_such_module; start from the folder that holds it"),
        ("os:system", "os has no class system that derives from torch.nn.Module"),
        ("torch.nn:Linear", r"Linear\(num_classes=10\) can't be called"),
    ],
)
def test_a_network_that_is_not_there_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        check_network(ModelConfig(name=name))


def test_without_torchvision_the_next_step_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ValueError, match=r"torchvision can't be loaded here .*: pip install torchvision"):
        check_network(ModelConfig(name="torchvision/resnet18"))


def test_a_name_without_a_meaning_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"name='resnet18': must be one of alexnet_2012.*torchvision/resnet18; or MOD"):
        ModelConfig(name="resnet18")
    with pytest.raises(ValueError, match="activation='tanh': torchvision/resnet18 has no such switch"):
        ModelConfig(name="torchvision/resnet18", activation="tanh")
    with pytest.raises(ValueError, match="resize_to=0: must be at least 1"):
        ModelConfig(name="torchvision/resnet18", resize_to=0)


@pytest.mark.parametrize(("name", "size"), [("vit_b_16", 96), ("inception_v3", 64), ("vgg11", 28)])
def test_pictures_that_a_network_does_not_take_are_refused(name, size):
    config = ModelConfig(name=f"torchvision/{name}")
    with pytest.raises(ValueError, match=f"image_size={size}: torchvision/{name} does not take such pictures"):
        check_image_size(config, size)


def test_pictures_may_be_resized_inside():
    config = ModelConfig(name="torchvision/vgg11", resize_to=40, batch_norm_group=1)
    check_image_size(config, 28)
    network = build_network(config, num_classes=3, seed=SEED).double().eval()
    resized = functional.interpolate(pictures(2, 28), size=(40, 40), mode="bilinear")
    torch.testing.assert_close(network(pictures(2, 28)), network.network(resized))


class Drawing(nn.Module):
    """Draws its own masks."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return functional.dropout(self.dense(images.mean(dim=(2, 3))), 0.5, training=self.training)


class Pair(nn.Module):
    """Returns two outputs."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.dense(images.mean(dim=(2, 3)))
        return logits, logits


class Checkpointing(nn.Module):
    """Computes a part again in the backward pass."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, num_classes)
        self.drop = nn.Dropout(0.5)

    def _head(self, features: Tensor) -> Tensor:
        return self.last(self.drop(self.norm(features).mean(dim=(2, 3))))

    def forward(self, images: Tensor) -> Tensor:
        return checkpoint(self._head, self.first(images), use_reentrant=False)


class Frozen(nn.Linear):
    """Has nothing to train."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(3, num_classes)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.mean(dim=(2, 3)))


class Reading(nn.Module):
    """Reads the settings of its layers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm, self.drop, self.dense = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        assert self.drop.p == 0.5
        return self.dense(images.mean(dim=(2, 3))) * self.norm.running_var.mean()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Checkpointing, "layer drop runs again in the backward pass, where its dropout would differ"),
        (Frozen, "none of the network's parameters .* can be trained"),
        (Reading, r"the network can't be run \(.*running_var.*\); its layers for batch normalisation and dropout are"),
        (Drawing, r"the network draws random numbers by itself \(\w+\)"),
        (Pair, r"the network returns tuple for 2 pictures; it must return logits of shape \(2, 10\)"),
    ],
)
def test_a_network_of_ones_own_is_tried_before_a_run(network, message, tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text("made = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    import own_networks

    monkeypatch.setattr(own_networks, "Net", network, raising=False)
    with pytest.raises(ValueError, match=message):
        check_image_size(ModelConfig(name="own_networks:Net"), 32)


@pytest.mark.slow  # 15 s
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_classifier_of_torchvision_fits(name):
    size = {"inception_v3": 299}.get(name, 224)
    config = ModelConfig(name=f"torchvision/{name}")
    check_image_size(config, size)
    shapes = outline_network(config, num_classes=1000)
    assert not [module for module in shapes.modules() if isinstance(module, nn.BatchNorm2d)]
