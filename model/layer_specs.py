"""Layers as frozen data: the choices that an architecture makes. Loads no torch; `model/layers.py` builds the layers.

The number of inputs is not stated: it follows from the shape of a layer's input.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Convolution:
    """A convolution with biases; `num_groups=2` makes the paper's two towers, each seeing half of the channels.

    With padding `same`, as in TensorFlow, there are ceil(size / stride) windows, one at every `stride`-th pixel. If
    this needs an odd number of zeros, the extra zero goes after the last row and column.
    """

    num_filters: int
    kernel_size: int
    stride: int = 1
    padding: int | Literal["same"] = 0
    num_groups: int = 1


@dataclass(frozen=True)
class Activation:
    """The model's nonlinearity, one of `ACTIVATION_NAMES`."""


@dataclass(frozen=True)
class Normalization:
    """Local response normalisation by a named convention, or batch normalisation (`BATCH_NORM`)."""

    kind: str = "printed"


@dataclass(frozen=True)
class MaxPooling:
    """Maximum over windows, which overlap if the stride is smaller than the window."""

    window: int = 3
    stride: int = 2


@dataclass(frozen=True)
class AdaptivePooling:
    """Mean over `size` x `size` equal regions, so that any picture size fits the dense layers."""

    size: int


@dataclass(frozen=True)
class Padding:
    """Zeros around the picture."""

    num_pixels: int


@dataclass(frozen=True)
class Resizing:
    """Bilinear interpolation to `size` x `size`."""

    size: int


@dataclass(frozen=True)
class Dropout:
    """Counted dropout, with the model's probability and seed."""


@dataclass(frozen=True)
class Dense:
    """A fully connected layer with biases."""

    num_units: int


BATCH_NORM = "batch"
Layer = Convolution | Activation | Normalization | MaxPooling | AdaptivePooling | Padding | Resizing | Dropout | Dense
DropoutScaling = Literal["training", "test"]
Initialization = Literal["paper", "caffe", "torch", "kaiming"]
ACTIVATION_NAMES = ("relu", "tanh")
