"""All networks that a recipe can name. Loads no torch: a network's own module is loaded when the network is built.

AlexNet's variants are entries of `NETWORKS`. Networks from elsewhere need no entry: `torchvision/resnet18`, or
`my_networks:SmallNet`, see `model/foreign.py`. A network that takes positions itself gets an entry. The worker, the
checks before a run and the evaluation use only the registry.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model import alexnet_config, foreign
from model.alexnet_config import ChannelOrder
from model.layer_specs import DropoutScaling
from model.variants import VARIANTS

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Network that a recipe trains, and its switches. The switches are AlexNet's; other networks keep the defaults.

    Networks from elsewhere have `batch_norm_group` and `resize_to`.

    Attributes:
        name: A name of `NETWORKS`; `torchvision/NAME`; or `MODULE:CLASS`, a network of one's own.
        normalization: A name of `model.lrn_conventions.CONVENTIONS`, `batch` or `none`, in place of the variant's
            normalisation; None: the variant's own.
        first_padding: Zeros around the picture in the first convolution; None: the variant's. With 0, `alexnet_2012`
            takes pictures of 227.
        batch_norm_group: Number of consecutive samples that share the statistics of batch normalisation, which stay
            together on one worker.
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
        _find(self.name).check_config(self)

    @property
    def group_size(self) -> int:
        """Number of consecutive samples that must stay together on one worker; 1 if they may be split freely."""
        return _find(self.name).group_size(self)


def _refuse_switches(config: ModelConfig, but: Sequence[str] = ()) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in ("name", *but) and value != field.default:
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


def is_known(name: str) -> bool:
    """Return whether a name is in `NETWORKS`, or has the form of a network from elsewhere."""
    return name in NETWORKS or foreign.is_foreign(name)


def build_network(config: ModelConfig, *, num_classes: int, seed: int) -> "nn.Module":
    """Build a configuration's network; see `Network.build`."""
    return _find(config.name).build(config, num_classes, seed)


def outline_network(config: ModelConfig, *, num_classes: int, seed: int = 0) -> "nn.Module":
    """Build a configuration's network on the meta device: shapes without weights."""
    return _find(config.name).outline(config, num_classes, seed)


def check_network(config: ModelConfig) -> None:
    """Check that a network from elsewhere is there, and can be trained as the project trains.

    Raises:
        ValueError: It is not, or can't; the message says why.
    """
    if config.name not in NETWORKS:
        outline_network(config, num_classes=_PROBE_CLASSES)


def check_image_size(config: ModelConfig, image_size: int) -> None:
    """Check that a network takes pictures of this height and width.

    Raises:
        ValueError: It does not; the message names the sizes that fit.
    """
    _find(config.name).check_image_size(config, image_size)


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


def _find(name: str) -> Network:
    if name in NETWORKS:
        return NETWORKS[name]
    if foreign.is_foreign(name):
        return _FOREIGN
    raise ValueError(f"name={name!r}: must be one of {', '.join(NETWORKS)}; {foreign.FORMS}")


def _build_alexnet(config: ModelConfig, num_classes: int, seed: int) -> "nn.Module":
    from model.alexnet import build_alexnet

    return build_alexnet(config, num_classes=num_classes, seed=seed)


def _outline_alexnet(config: ModelConfig, num_classes: int, seed: int) -> "nn.Module":
    from model.alexnet import AlexNet

    return AlexNet(config, num_classes=num_classes, seed=seed)


def _build_foreign(config: ModelConfig, num_classes: int, seed: int) -> "nn.Module":
    from model import counted_network

    return counted_network.build(foreign.find_maker(config.name), num_classes, seed, **_settings(config))


def _outline_foreign(config: ModelConfig, num_classes: int, seed: int) -> "nn.Module":
    from model import counted_network

    return counted_network.outline(foreign.find_maker(config.name), num_classes, seed, **_settings(config))


def _check_foreign_switches(config: ModelConfig) -> None:
    _refuse_switches(config, but=_FOREIGN_SWITCHES)
    for name in _FOREIGN_SWITCHES:
        if (value := getattr(config, name)) is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")


def _check_foreign_image_size(config: ModelConfig, image_size: int) -> None:
    from model import counted_network

    network = counted_network.outline(foreign.find_maker(config.name), _PROBE_CLASSES, 0, **_settings(config))
    counted_network.check_pictures(network, config.name, _PROBE_CLASSES, image_size)


def _settings(config: ModelConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _FOREIGN_SWITCHES}


_FOREIGN_SWITCHES = ("batch_norm_group", "resize_to")
_PROBE_CLASSES = 10
_ALEXNET = Network(
    build=_build_alexnet,
    outline=_outline_alexnet,
    check_config=alexnet_config.check_switches,
    check_image_size=alexnet_config.check_image_size,
    group_size=alexnet_config.group_size,
)
_FOREIGN = Network(
    build=_build_foreign,
    outline=_outline_foreign,
    check_config=_check_foreign_switches,
    check_image_size=_check_foreign_image_size,
    group_size=lambda config: config.batch_norm_group,  # known without building the network
)
NETWORKS: dict[str, Network] = dict.fromkeys(VARIANTS, _ALEXNET)
