"""All networks that a recipe can name. Loads no torch: a network's own module is loaded when the network is built.

AlexNet's variants are entries of `NETWORKS`. To add another network, add one entry; the worker, the checks before a run
and the evaluation use only the registry.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model import alexnet_config
from model.alexnet_config import ChannelOrder
from model.layer_specs import DropoutScaling
from model.variants import VARIANTS

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Network that a recipe trains, and its switches. The switches are AlexNet's; other networks keep the defaults.

    Attributes:
        normalization: A name of `model.lrn_conventions.CONVENTIONS`, `batch` or `none`, in place of the variant's
            normalisation; None: the variant's own.
        first_padding: Zeros around the picture in the first convolution; None: the variant's. With 0, `alexnet_2012`
            takes pictures of 227.
        resize_to: Height and width to which pictures are resized inside the model, bilinearly; None: no resizing.
        channel_order: Channel order of the first convolution's weights: `rgb`, or `bgr` as in OpenCV and Caffe.
            Pictures are always RGB.
    """

    name: str
    initialization: str | None = None
    dropout: float = 0.5
    dropout_scaling: DropoutScaling = "training"
    activation: str = "relu"
    normalization: str | None = None
    batch_norm_group: int = 32
    overlapping_pooling: bool = True
    num_towers: int | None = None
    initial_bias: float | None = None
    first_padding: int | None = None
    resize_to: int | None = None
    channel_order: ChannelOrder = "rgb"

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: A field is invalid; the message names it, its value and what would be right.
        """
        if self.name not in NETWORKS:
            raise ValueError(f"name={self.name!r}: must be one of {', '.join(NETWORKS)}")
        NETWORKS[self.name].check_config(self)

    @property
    def group_size(self) -> int:
        """Number of consecutive samples that must stay together on one worker; 1 if they may be split freely."""
        return NETWORKS[self.name].group_size(self)


def _refuse_switches(config: ModelConfig) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name != "name" and value != field.default:
            raise ValueError(f"{field.name}={value!r}: {config.name} has no such switch; leave it at {field.default!r}")


@dataclass(frozen=True, kw_only=True)
class Network:
    """Functions that check and build a network.

    Attributes:
        build: (config, number of classes, seed) -> the network with its initial weights, float32 on the CPU, the same
            on every rank. Its forward pass takes images (B, 3, H, W) and the samples' positions, int64 (B,), and
            returns logits (B, number of classes).
        outline: The same arguments -> the network on the meta device, which takes no memory.
        check_image_size: (config, height and width) -> raises ValueError if such pictures do not fit.
        check_config: Check that raises ValueError if fields do not fit this network; by default, if a switch is set.
        group_size: Number of consecutive samples that must stay together on one worker; by default 1.
    """

    build: "Callable[[ModelConfig, int, int], nn.Module]"
    outline: "Callable[[ModelConfig, int, int], nn.Module]"
    check_image_size: Callable[[ModelConfig, int], None]
    check_config: Callable[[ModelConfig], None] = _refuse_switches
    group_size: Callable[[ModelConfig], int] = lambda config: 1


def build_network(config: ModelConfig, *, num_classes: int, seed: int) -> "nn.Module":
    """Build a configuration's network; see `Network.build`."""
    return NETWORKS[config.name].build(config, num_classes, seed)


def outline_network(config: ModelConfig, *, num_classes: int, seed: int = 0) -> "nn.Module":
    """Build a configuration's network on the meta device: shapes without weights."""
    return NETWORKS[config.name].outline(config, num_classes, seed)


def check_image_size(config: ModelConfig, image_size: int) -> None:
    """Check that a network takes pictures of this height and width.

    Raises:
        ValueError: It does not; the message names the sizes that fit.
    """
    NETWORKS[config.name].check_image_size(config, image_size)


def num_parameters(config: ModelConfig, num_classes: int) -> int:
    """Return the number of a network's parameters."""
    network = outline_network(config, num_classes=num_classes)
    return sum(parameter.numel() for parameter in network.parameters())


def num_operations(config: ModelConfig, num_classes: int, image_size: int) -> int:
    """Return the floating-point operations of one picture's forward pass; a multiply-add counts as two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = outline_network(config, num_classes=num_classes).eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, image_size, image_size, device="meta"), None)
    return counter.get_total_flops()


def images_only(network: "nn.Module") -> "nn.Module":
    """Wrap a network that takes only images, so that it can be called with positions too."""
    from model.adapters import ImagesOnly

    return ImagesOnly(network)


def _build_alexnet(config: ModelConfig, num_classes: int, seed: int) -> "nn.Module":
    from model.alexnet import build_alexnet

    return build_alexnet(config, num_classes=num_classes, seed=seed)


def _outline_alexnet(config: ModelConfig, num_classes: int, seed: int) -> "nn.Module":
    from model.alexnet import AlexNet

    return AlexNet(config, num_classes=num_classes, seed=seed)


_ALEXNET = Network(
    build=_build_alexnet,
    outline=_outline_alexnet,
    check_config=alexnet_config.check_switches,
    check_image_size=alexnet_config.check_image_size,
    group_size=alexnet_config.group_size,
)
NETWORKS: dict[str, Network] = dict.fromkeys(VARIANTS, _ALEXNET)
