"""Initial weights by name, drawn from one seeded generator, so that all ranks build the same net.

The global generator is not used. The biases that start above zero are the paper's: those of the second, fourth and
fifth convolution and of the hidden dense layers ("accelerates the early stages of learning by providing the ReLUs with
positive inputs").
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, nn

from model.batch_norm import GhostBatchNorm

Learned = nn.Conv2d | nn.Linear


def initialize(model: nn.Module, name: str, *, seed: int, initial_bias: float | None = None) -> None:
    """Set all weights and biases of a model in place, layer by layer in the model's order.

    Args:
        model: Model on the CPU. Batch normalisation starts as the identity.
        name: Name in `INITIALIZATIONS`.
        seed: Seed of the generator.
        initial_bias: Bias of the layers listed in this module's header; None: the initialisation's own.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in INITIALIZATIONS:
        raise ValueError(f"initialization={name!r}: must be one of {', '.join(INITIALIZATIONS)}")
    for module in model.modules():
        if isinstance(module, GhostBatchNorm):
            module.reset_parameters()
    layers: list[Learned] = [layer for layer in model.modules() if isinstance(layer, Learned)]
    with torch.no_grad():
        INITIALIZATIONS[name](layers, torch.Generator().manual_seed(seed))
        if initial_bias is not None:
            for layer in _lifted(layers):
                nn.init.constant_(layer.get_parameter("bias"), initial_bias)


def _initialize_paper(layers: list[Learned], generator: Generator) -> None:
    """Krizhevsky et al. (2012), section 5: N(0, 0.01), biases 0 or 1."""
    lifted = _lifted(layers)
    for layer in layers:
        _set_gaussian(layer, 0.01, generator, bias=1.0 if layer in lifted else 0.0)


def _initialize_caffe(layers: list[Learned], generator: Generator) -> None:
    """Caffe's bvlc_alexnet: hidden dense layers N(0, 0.005), else N(0, 0.01); biases 0 or 0.1."""
    lifted = _lifted(layers)
    for layer in layers:
        deviation = 0.005 if layer in lifted and isinstance(layer, nn.Linear) else 0.01
        _set_gaussian(layer, deviation, generator, bias=0.1 if layer in lifted else 0.0)


def _initialize_torch(layers: list[Learned], generator: Generator) -> None:
    """PyTorch's default: weights and biases uniform within ±1/sqrt(fan in), drawn in PyTorch's order."""
    for layer in layers:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)


def _initialize_kaiming(layers: list[Learned], generator: Generator) -> None:
    """He et al. (2015): N(0, sqrt(2 / fan in)), biases 0."""
    for layer in layers:
        _set_gaussian(layer, math.sqrt(2 / layer.weight[0].numel()), generator, bias=0.0)


def _set_gaussian(layer: Learned, deviation: float, generator: Generator, *, bias: float) -> None:
    """Draw the weights from N(0, deviation) and set all biases to one value."""
    layer.weight.normal_(0, deviation, generator=generator)
    if layer.bias is not None:
        layer.bias.fill_(bias)


def _lifted(layers: list[Learned]) -> set[Learned]:
    """Return the layers whose biases start above zero (listed in this module's header)."""
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    dense = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return {*convolutions[1:2], *convolutions[3:5], *dense[:-1]}


INITIALIZATIONS: dict[str, Callable[[list[Learned], Generator], None]] = {
    "paper": _initialize_paper,
    "caffe": _initialize_caffe,
    "torch": _initialize_torch,
    "kaiming": _initialize_kaiming,
}
