"""Layers built from their specifications (`model/layer_specs.py`).

Each new layer that changes the shape runs once on the meta device. The shapes thus come from the layers themselves, not
from a second calculation, and take no memory.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.batch_norm import GhostBatchNorm
from model.dropout import CountedDropout
from model.layer_specs import (
    BATCH_NORM,
    Activation,
    AdaptivePooling,
    Convolution,
    Dense,
    Dropout,
    DropoutScaling,
    Layer,
    MaxPooling,
    Normalization,
    Padding,
    Resizing,
)
from model.lrn import LocalResponseNorm

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": lambda: nn.ReLU(inplace=True), "tanh": nn.Tanh}


def build_layers(
    specification: Sequence[Layer],
    inputs: Tensor,
    *,
    dropout: float,
    seed: int,
    activation: str = "relu",
    dropout_scaling: DropoutScaling = "training",
    batch_norm_group: int = 32,
) -> tuple[nn.Sequential, Tensor]:
    """Build a chain of layers on the meta device.

    Args:
        specification: Layers of the chain, in order.
        inputs: Input of the chain, on the meta device: (1, C, H, W), or (1, units) for dense layers.
        dropout: Probability that a unit is dropped.
        seed: Seed of the dropout masks; each layer's place in the chain makes its masks different.
        activation: Name in `ACTIVATIONS`.
        dropout_scaling: When units are scaled; see `CountedDropout`.
        batch_norm_group: Number of samples that share the statistics of batch normalisation.

    Returns:
        The layers, and their output on the meta device.

    Raises:
        RuntimeError: The inputs are so small that nothing is left for one of the layers.
    """
    layers = nn.Sequential()
    with torch.device("meta"):
        for place, layer in enumerate(specification):
            match layer:
                case Convolution():
                    module: nn.Module = _convolution(layer, inputs)
                case Activation():
                    module = ACTIVATIONS[activation]()
                case Normalization():
                    if layer.kind == BATCH_NORM:
                        module = GhostBatchNorm(inputs.shape[1], batch_norm_group)
                    else:
                        module = LocalResponseNorm(layer.kind)
                case MaxPooling():
                    module = nn.MaxPool2d(layer.window, layer.stride)
                case AdaptivePooling():
                    module = nn.AdaptiveAvgPool2d(layer.size)
                case Padding():
                    module = nn.ZeroPad2d(layer.num_pixels)
                case Resizing():
                    module = nn.Upsample((layer.size, layer.size), mode="bilinear")
                case Dropout():
                    module = CountedDropout(dropout, seed=seed, layer=place, scaling=dropout_scaling)
                case Dense():
                    module = nn.Linear(inputs.shape[1], layer.num_units)
            # Layers that keep the shape are not run: some of torch's meta kernels import its compiler, which takes a
            # second.
            if isinstance(layer, Dense):
                inputs = inputs.new_empty(len(inputs), layer.num_units)
            elif not isinstance(layer, Activation | Normalization | Dropout):
                inputs = module(inputs)
            layers.append(module)
    return layers, inputs


def _convolution(layer: Convolution, inputs: Tensor) -> nn.Module:
    before, after = (layer.padding, layer.padding) if layer.padding != "same" else _same_padding(layer, inputs)
    convolution = nn.Conv2d(
        inputs.shape[1],
        layer.num_filters,
        layer.kernel_size,
        stride=layer.stride,
        padding=before,
        groups=layer.num_groups,
    )
    # A convolution pads all sides equally, so the extra row and column at the end need a separate layer.
    return convolution if after == before else nn.Sequential(nn.ZeroPad2d((0, after - before) * 2), convolution)


def _same_padding(layer: Convolution, inputs: Tensor) -> tuple[int, int]:
    """Return the number of zeros before and after the pixels of a square picture."""
    size = inputs.shape[-1]
    num_windows = -(-size // layer.stride)
    total = max((num_windows - 1) * layer.stride + layer.kernel_size - size, 0)
    return total // 2, total - total // 2
