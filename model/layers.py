"""The small specification from which every variant is built: layers as frozen data, and the one function to build them.

A specification states only what an architecture decides; numbers of inputs follow from the shape of what enters a
layer. Each new layer runs once on the meta device, so shapes come from the layers themselves: no arithmetic of our own,
no memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.dropout import CountedDropout
from model.lrn import LocalResponseNorm


@dataclass(frozen=True)
class Convolution:
    """A convolution with biases; `num_groups=2` makes the paper's two towers, each seeing half of the channels."""

    num_filters: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    num_groups: int = 1


@dataclass(frozen=True)
class ReLU:
    """max(x, 0), in place."""


@dataclass(frozen=True)
class Normalization:
    """Local response normalisation by a named convention."""

    convention: str = "printed"


@dataclass(frozen=True)
class MaxPooling:
    """Maximum over windows; they overlap where the stride is smaller than the window."""

    window: int = 3
    stride: int = 2


@dataclass(frozen=True)
class AdaptivePooling:
    """Mean over `size` x `size` equal regions, so that any picture size fits the dense layers."""

    size: int


@dataclass(frozen=True)
class Dropout:
    """Counted dropout, with the model's probability and seed."""


@dataclass(frozen=True)
class Dense:
    """A fully connected layer with biases."""

    num_units: int


Layer = Convolution | ReLU | Normalization | MaxPooling | AdaptivePooling | Dropout | Dense


def build_layers(
    specification: Sequence[Layer], inputs: Tensor, *, dropout: float, seed: int
) -> tuple[nn.Sequential, Tensor]:
    """Build a chain of layers on the meta device.

    Args:
        specification: The chain.
        inputs: What enters it, on the meta device: (1, C, H, W), or (1, units) for dense layers.
        dropout: Probability of being dropped.
        seed: Of the dropout masks; a layer's place in the chain tells its masks from the others'.

    Returns:
        The layers, and what leaves them.

    Raises:
        RuntimeError: A layer has nothing left to work on, since the inputs are too small.
    """
    layers = nn.Sequential()
    with torch.device("meta"):
        for place, layer in enumerate(specification):
            match layer:
                case Convolution():
                    module: nn.Module = nn.Conv2d(
                        inputs.shape[1],
                        layer.num_filters,
                        layer.kernel_size,
                        stride=layer.stride,
                        padding=layer.padding,
                        groups=layer.num_groups,
                    )
                case ReLU():
                    module = nn.ReLU(inplace=True)
                case Normalization():
                    module = LocalResponseNorm(layer.convention)
                case MaxPooling():
                    module = nn.MaxPool2d(layer.window, layer.stride)
                case AdaptivePooling():
                    module = nn.AdaptiveAvgPool2d(layer.size)
                case Dropout():
                    module = CountedDropout(dropout, seed=seed, layer=place)
                case Dense():
                    module = nn.Linear(inputs.shape[1], layer.num_units)
            inputs = module(inputs)
            layers.append(module)
    return layers, inputs
