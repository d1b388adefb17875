"""AlexNet and its descendants, built from a small layer specification, each with its origin and its exact size.

    model = build_model("alexnet_2012", num_classes=1000)
    logits = model(images, positions)

Beside the layers stands the shape that leaves them, height x width x channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.dropout import CountedDropout
from model.initialization import INITIALIZATIONS, initialize
from model.layers import (
    AdaptivePooling,
    Convolution,
    Dense,
    Dropout,
    Layer,
    MaxPooling,
    Normalization,
    ReLU,
    build_layers,
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One architecture; its last dense layer, one unit a class, is added when it is built.

    Attributes:
        origin: Paper or code that it comes from, and how it departs from that.
        features: From pictures to feature maps.
        hidden: From feature maps to the last hidden layer.
        initialization: How its weights start unless told otherwise.
        image_size: Height and width of the pictures that the shapes are stated for.
        num_parameters: At 1000 classes; asserted whenever the variant is built.
    """

    origin: str
    features: tuple[Layer, ...]
    hidden: tuple[Layer, ...]
    initialization: str
    image_size: int
    num_parameters: int


VARIANTS = {
    "alexnet_2012": Variant(
        origin="Krizhevsky, Sutskever, Hinton: ImageNet classification with deep convolutional neural networks, 2012. "
        "The two towers are grouped convolutions; crops of 224 padded by 2 make 55x55, as cuda-convnet's did.",
        features=(
            Convolution(96, 11, stride=4, padding=2),  # 224x224x3 -> 55x55x96
            ReLU(),
            Normalization("printed"),
            MaxPooling(3, 2),  # -> 27x27x96
            Convolution(256, 5, padding=2, num_groups=2),  # -> 27x27x256
            ReLU(),
            Normalization("printed"),
            MaxPooling(3, 2),  # -> 13x13x256
            Convolution(384, 3, padding=1),  # -> 13x13x384
            ReLU(),
            Convolution(384, 3, padding=1, num_groups=2),  # -> 13x13x384
            ReLU(),
            Convolution(256, 3, padding=1, num_groups=2),  # -> 13x13x256
            ReLU(),
            MaxPooling(3, 2),  # -> 6x6x256
        ),
        hidden=(Dense(4096), ReLU(), Dropout(), Dense(4096), ReLU(), Dropout()),
        initialization="paper",
        image_size=224,
        num_parameters=60_965_224,
    ),
    "alexnet_owt": Variant(
        origin="Krizhevsky: One weird trick for parallelizing convolutional neural networks, 2014, as torchvision's "
        "`alexnet` writes it, whose state dict loads without renaming: one tower, no normalisation, dropout first.",
        features=(
            Convolution(64, 11, stride=4, padding=2),  # 224x224x3 -> 55x55x64
            ReLU(),
            MaxPooling(3, 2),  # -> 27x27x64
            Convolution(192, 5, padding=2),  # -> 27x27x192
            ReLU(),
            MaxPooling(3, 2),  # -> 13x13x192
            Convolution(384, 3, padding=1),  # -> 13x13x384
            ReLU(),
            Convolution(256, 3, padding=1),  # -> 13x13x256
            ReLU(),
            Convolution(256, 3, padding=1),  # -> 13x13x256
            ReLU(),
            MaxPooling(3, 2),  # -> 6x6x256
            AdaptivePooling(6),  # -> 6x6x256
        ),
        hidden=(Dropout(), Dense(4096), ReLU(), Dropout(), Dense(4096), ReLU()),
        initialization="torch",
        image_size=224,
        num_parameters=61_100_840,
    ),
    "alexnet_small": Variant(
        origin="Ours, for pictures of 24x24 and more: the paper's five convolutions, overlapping pooling and dense "
        "layers with dropout, at the stride of small pictures.",
        features=(
            Convolution(32, 5, padding=2),  # 26x26x3 -> 26x26x32
            ReLU(),
            MaxPooling(3, 2),  # -> 12x12x32
            Convolution(64, 3, padding=1),  # -> 12x12x64
            ReLU(),
            Convolution(96, 3, padding=1),  # -> 12x12x96
            ReLU(),
            Convolution(96, 3, padding=1),  # -> 12x12x96
            ReLU(),
            Convolution(96, 3, padding=1),  # -> 12x12x96
            ReLU(),
            MaxPooling(3, 2),  # -> 5x5x96
            AdaptivePooling(5),  # -> 5x5x96
        ),
        hidden=(Dense(512), ReLU(), Dropout(), Dense(512), ReLU(), Dropout()),
        initialization="kaiming",
        image_size=26,
        num_parameters=2_247_368,
    ),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model a recipe trains.

    Attributes:
        name: A name of `VARIANTS`.
        initialization: A name of `model.initialization.INITIALIZATIONS`; None: the variant's own.
        dropout: Probability of being dropped, in [0, 1).
    """

    name: str
    initialization: str | None = None
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in VARIANTS:
            raise ValueError(f"name={self.name!r}: must be one of {', '.join(VARIANTS)}")
        if self.initialization is not None and self.initialization not in INITIALIZATIONS:
            raise ValueError(f"initialization={self.initialization!r}: must be one of {', '.join(INITIALIZATIONS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must lie in [0, 1)")


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
        self.features, maps = build_layers(variant.features, images, dropout=config.dropout, seed=seed)
        dense = (*variant.hidden, Dense(num_classes))
        self.classifier, _ = build_layers(dense, maps.flatten(1), dropout=config.dropout, seed=seed)
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


def build_model(
    name: str,
    *,
    num_classes: int,
    image_size: int | None = None,
    initialization: str | None = None,
    dropout: float = 0.5,
    seed: int = 0,
) -> AlexNet:
    """Build a variant with its starting weights, the same on every rank; float32 on the CPU.

    Args:
        name: See `ModelConfig`, whose fields are arguments here: `build_model(**asdict(config), num_classes=10)`.
        num_classes: Number of outputs.
        image_size: Height and width of the pictures to come; None leaves them unchecked.
        initialization: See `ModelConfig`.
        dropout: See `ModelConfig`.
        seed: Of the weights and of the dropout masks.

    Raises:
        ValueError: An argument is out of its range, or pictures of this size don't fit the variant.
    """
    config = ModelConfig(name=name, initialization=initialization, dropout=dropout)
    if image_size is not None:
        check_image_size(config, image_size)
    model = AlexNet(config, num_classes=num_classes, seed=seed)
    model.to_empty(device="cpu")
    initialize(model, initialization or VARIANTS[name].initialization, seed=seed)
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
