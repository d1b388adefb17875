"""AlexNet and its descendants, built from the layer specifications of `model/variants.py`.

    model = build_model("alexnet_2012", num_classes=1000)
    logits = model(images, positions)

A switch removes or replaces one idea of a variant, so that its effect can be measured.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.alexnet_config import check_image_size, does_not_fit, image_sizes, is_between, made_for, switched
from model.dropout import CountedDropout
from model.initialization import initialize
from model.layer_specs import Dense
from model.layers import build_layers
from model.registry import ModelConfig
from model.variants import VARIANTS


class AlexNet(nn.Module):
    """A variant as a module, on the meta device: it has shapes but no weights until `build_model` creates them.

    Args:
        config: Variant and switches.
        num_classes: Number of outputs.
        seed: Seed of the dropout masks.
    """

    def __init__(self, config: ModelConfig, *, num_classes: int, seed: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: must be at least 1")
        variant = VARIANTS[config.name]
        if config.resize_to is not None:
            check_image_size(config, config.resize_to)
        self._config, self._image_sizes = config, image_sizes(config)
        side = made_for(config)
        build = partial(
            build_layers,
            dropout=config.dropout,
            dropout_scaling=config.dropout_scaling,
            seed=seed,
            activation=config.activation,
            batch_norm_group=config.batch_norm_group,
        )
        pictures = torch.empty(1, 3, side, side, device="meta")
        self.features, maps = build(tuple(switched(variant.features, config)), pictures)
        self.classifier, _ = build((*variant.hidden, Dense(num_classes)), maps.flatten(1))
        if config.num_towers is not None or config.normalization is not None:  # the parameters may differ
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
                torch's ordinary dropout. Ignored in evaluation.

        Returns:
            (B, num_classes).

        Raises:
            ValueError: The pictures' size does not fit the model; see `image_sizes`.
        """
        if (side := self._config.resize_to) is not None:
            images = functional.interpolate(images, size=(side, side), mode="bilinear")
        else:
            for side in images.shape[2:]:
                if not is_between(side, self._image_sizes):
                    raise ValueError(does_not_fit(self._config, side))
        if self._config.channel_order == "bgr":
            images = images.flip(1)
        activations = self.features(images).flatten(1)
        for layer in self.classifier:
            if isinstance(layer, CountedDropout):
                activations = layer(activations, positions)
            else:
                activations = layer(activations)
        return activations


def build_model(
    name: str, *, num_classes: int, image_size: int | None = None, seed: int = 0, **switches: Any
) -> AlexNet:
    """Build a variant with its initial weights, the same on every rank; float32 on the CPU.

    Args:
        name: See `ModelConfig`.
        num_classes: Number of outputs.
        image_size: Height and width of the pictures that the model will get; None: not checked.
        seed: Seed of the weights and the dropout masks.
        switches: Other fields of `ModelConfig`: `build_model(**asdict(config), num_classes=10)`.

    Raises:
        ValueError: An argument is out of range, or pictures of this size do not fit the variant.
    """
    config = ModelConfig(name=name, **switches)
    if image_size is not None:
        check_image_size(config, image_size)
    return build_alexnet(config, num_classes=num_classes, seed=seed)


def build_alexnet(config: ModelConfig, *, num_classes: int, seed: int) -> AlexNet:
    """Build a configuration's variant with its initial weights; see `build_model`."""
    model = AlexNet(config, num_classes=num_classes, seed=seed)
    model.to_empty(device="cpu")
    start = config.initialization or VARIANTS[config.name].initialization
    initialize(model, start, seed=seed, initial_bias=config.initial_bias)
    return model
