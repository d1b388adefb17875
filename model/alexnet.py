"""AlexNet and its descendants, built from the layer specifications of `model/variants.py`.

    model = build_model("alexnet_2012", num_classes=1000)
    logits = model(images, positions)

Switches take one idea of a variant away, or put another in its place, so that its worth can be measured.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model.dropout import CountedDropout
from model.initialization import INITIALIZATIONS, initialize
from model.layers import ACTIVATIONS, Convolution, Dense, Layer, MaxPooling, Normalization, build_layers
from model.lrn import CONVENTIONS
from model.variants import VARIANTS

_NO_NORMALIZATION = "none"
_GROUPED = (2, 4, 5)  # convolutions of which each tower sees its own half, in the paper


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model a recipe trains.

    Attributes:
        name: A name of `VARIANTS`.
        initialization: A name of `model.initialization.INITIALIZATIONS`; None: the variant's own.
        dropout: Probability of being dropped, in [0, 1); 0 switches it off.
        activation: `relu`, or `tanh`.
        normalization: A convention of `model.lrn.CONVENTIONS` in place of the variant's, or `none`; None: its own.
        overlapping_pooling: Windows of 3 at every second pixel; else of 2.
        num_towers: 1 or 2, of the grouped convolutions: the second, fourth and fifth. None: the variant's.
        initial_bias: Of the layers whose biases start above zero in the paper; None: as the initialisation has it.
    """

    name: str
    initialization: str | None = None
    dropout: float = 0.5
    activation: str = "relu"
    normalization: str | None = None
    overlapping_pooling: bool = True
    num_towers: int | None = None
    initial_bias: float | None = None

    def __post_init__(self) -> None:
        if self.name not in VARIANTS:
            raise ValueError(f"name={self.name!r}: must be one of {', '.join(VARIANTS)}")
        if self.initialization is not None and self.initialization not in INITIALIZATIONS:
            raise ValueError(f"initialization={self.initialization!r}: must be one of {', '.join(INITIALIZATIONS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must lie in [0, 1)")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r}: must be one of {', '.join(ACTIVATIONS)}")
        conventions = (_NO_NORMALIZATION, *CONVENTIONS)
        if self.normalization is not None and self.normalization not in conventions:
            raise ValueError(f"normalization={self.normalization!r}: must be one of {', '.join(conventions)}")
        if self.num_towers not in (None, 1, 2):
            raise ValueError(f"num_towers={self.num_towers}: must be 1 or 2")


class AlexNet(nn.Module):
    """A variant as a module, on the meta device: shapes without weights until `build_model` gives it some.

    Args:
        config: Which variant.
        num_classes: Number of outputs.
        seed: Of the dropout masks.
    """

    def __init__(self, config: ModelConfig, *, num_classes: int, seed: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: must be at least 1")
        variant = VARIANTS[config.name]
        images = torch.empty(1, 3, variant.image_size, variant.image_size, device="meta")
        build = partial(build_layers, dropout=config.dropout, seed=seed, activation=config.activation)
        self.features, maps = build(tuple(_switched(variant.features, config)), images)
        self.classifier, _ = build((*variant.hidden, Dense(num_classes)), maps.flatten(1))
        if config.num_towers is not None:  # another number of connections
            return
        num_parameters = sum(parameter.numel() for parameter in self.parameters())
        per_class = sum(parameter[0].numel() for parameter in self.classifier[-1].parameters())
        assert num_parameters + (1000 - num_classes) * per_class == variant.num_parameters, (
            f"{config.name} has {num_parameters} parameters at {num_classes} classes"
        )

    def forward(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute the logits.

        Args:
            images: Floating, (B, 3, H, W).
            positions: int64 (B,), the samples' places in the endless stream, which select the dropout masks; None:
                torch's ordinary dropout. Without effect in evaluation.

        Returns:
            (B, num_classes).
        """
        activations = self.features(images).flatten(1)
        for layer in self.classifier:
            if isinstance(layer, CountedDropout):
                activations = layer(activations, positions)
            else:
                activations = layer(activations)
        return activations


def _switched(features: Sequence[Layer], config: ModelConfig) -> Iterator[Layer]:
    """Yield a variant's layers with the switches of a configuration applied."""
    num_convolutions = 0
    for layer in features:
        match layer:
            case Normalization() if config.normalization == _NO_NORMALIZATION:
                continue
            case Normalization() if config.normalization is not None:
                yield Normalization(config.normalization)
            case MaxPooling(window=3, stride=2) if not config.overlapping_pooling:
                yield MaxPooling(2, 2)
            case Convolution():
                num_convolutions += 1
                if config.num_towers is not None and num_convolutions in _GROUPED:
                    layer = replace(layer, num_groups=config.num_towers)
                yield layer
            case _:
                yield layer


def build_model(
    name: str, *, num_classes: int, image_size: int | None = None, seed: int = 0, **switches: Any
) -> AlexNet:
    """Build a variant with its starting weights, the same on every rank; float32 on the CPU.

    Args:
        name: See `ModelConfig`.
        num_classes: Number of outputs.
        image_size: Height and width of the pictures to come; None leaves them unchecked.
        seed: Of the weights and of the dropout masks.
        switches: The other fields of `ModelConfig`: `build_model(**asdict(config), num_classes=10)`.

    Raises:
        ValueError: An argument is out of its range, or pictures of this size don't fit the variant.
    """
    config = ModelConfig(name=name, **switches)
    if image_size is not None:
        check_image_size(config, image_size)
    model = AlexNet(config, num_classes=num_classes, seed=seed)
    model.to_empty(device="cpu")
    initialize(
        model, config.initialization or VARIANTS[name].initialization, seed=seed, initial_bias=config.initial_bias
    )
    return model


def check_image_size(config: ModelConfig, image_size: int) -> None:
    """Run a picture of this size through the model on the meta device, where it costs nothing.

    Raises:
        ValueError: Pictures of `image_size` x `image_size` pixels don't fit the variant.
    """
    model = AlexNet(config, num_classes=1, seed=0)
    try:
        model(torch.empty(1, 3, image_size, image_size, device="meta"))
    except RuntimeError as error:
        made_for = VARIANTS[config.name].image_size
        raise ValueError(f"image_size={image_size}: {config.name} is made for {made_for} ({error})") from error
