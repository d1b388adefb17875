"""AlexNet and its descendants, built from the layer specifications of `model/variants.py`.

    model = build_model("alexnet_2012", num_classes=1000)
    logits = model(images, positions)

Switches take one idea of a variant away, or put another in its place, so that its worth can be measured.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.dropout import CountedDropout, Scaling
from model.initialization import INITIALIZATIONS, initialize
from model.layers import ACTIVATIONS, BATCH_NORM, Convolution, Dense, Layer, MaxPooling, Normalization, build_layers
from model.lrn import CONVENTIONS
from model.variants import VARIANTS

_NO_NORMALIZATION = "none"
ChannelOrder = Literal["rgb", "bgr"]
_GROUPED = (2, 4, 5)  # convolutions of which each tower sees its own half, in the paper


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model a recipe trains.

    Attributes:
        name: A name of `VARIANTS`.
        initialization: A name of `model.initialization.INITIALIZATIONS`; None: the variant's own.
        dropout: Probability of being dropped, in [0, 1); 0 switches it off.
        dropout_scaling: When units are scaled for it: in `training` (inverted dropout), or at the `test`, as in the
            paper. The same net but for the scale of the weights behind: see `model.dropout.CountedDropout`.
        activation: `relu`, or `tanh`.
        normalization: A convention of `model.lrn.CONVENTIONS` in place of the variant's normalisation, or `batch`, or
            `none`; None: its own.
        batch_norm_group: Consecutive samples that share the statistics of batch normalisation, at least 2; divides the
            global batch.
        overlapping_pooling: Windows of 3 at every second pixel; else of 2.
        num_towers: 1 or 2, of the grouped convolutions: the second, fourth and fifth. None: the variant's.
        initial_bias: Of the layers whose biases start above zero in the paper; None: as the initialisation has it.
        first_padding: Zeros around the picture in the first convolution; None: the variant's. With 0, `alexnet_2012`
            takes pictures of 227.
        resize_to: Height and width to which pictures are resized inside the model, bilinearly; None: not at all.
        channel_order: Of the first convolution's weights: `rgb`, or `bgr` as OpenCV and Caffe have it. Pictures are
            always RGB.
    """

    name: str
    initialization: str | None = None
    dropout: float = 0.5
    dropout_scaling: Scaling = "training"
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
        if self.name not in VARIANTS:
            raise ValueError(f"name={self.name!r}: must be one of {', '.join(VARIANTS)}")
        if self.initialization is not None and self.initialization not in INITIALIZATIONS:
            raise ValueError(f"initialization={self.initialization!r}: must be one of {', '.join(INITIALIZATIONS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: must lie in [0, 1)")
        if self.dropout_scaling not in get_args(Scaling):
            raise ValueError(f"dropout_scaling={self.dropout_scaling!r}: must be one of {', '.join(get_args(Scaling))}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r}: must be one of {', '.join(ACTIVATIONS)}")
        conventions = (_NO_NORMALIZATION, BATCH_NORM, *CONVENTIONS)
        if self.normalization is not None and self.normalization not in conventions:
            raise ValueError(f"normalization={self.normalization!r}: must be one of {', '.join(conventions)}")
        normalized = any(isinstance(layer, Normalization) for layer in VARIANTS[self.name].features)
        if self.normalization not in (None, _NO_NORMALIZATION) and not normalized:
            raise ValueError(f"normalization={self.normalization!r}: {self.name} has none that it could replace")
        if self.num_towers not in (None, 1, 2):
            raise ValueError(f"num_towers={self.num_towers}: must be 1 or 2")
        if self.batch_norm_group < 2:
            raise ValueError(f"batch_norm_group={self.batch_norm_group}: must be at least 2")
        if self.first_padding is not None and self.first_padding < 0:
            raise ValueError(f"first_padding={self.first_padding}: must not be negative")
        if self.resize_to is not None and self.resize_to < 1:
            raise ValueError(f"resize_to={self.resize_to}: must be at least 1")
        if self.channel_order not in get_args(ChannelOrder):
            raise ValueError(
                f"channel_order={self.channel_order!r}: must be one of {', '.join(get_args(ChannelOrder))}"
            )

    @property
    def group_size(self) -> int:
        """Consecutive samples that must stay together on one worker: 1 where none need to."""
        kinds = {
            layer.kind for layer in _switched(VARIANTS[self.name].features, self) if isinstance(layer, Normalization)
        }
        return self.batch_norm_group if BATCH_NORM in kinds else 1


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
        if config.resize_to is not None:
            check_image_size(config, config.resize_to)
        self._config, self._image_sizes = config, image_sizes(config)
        side = _made_for(config)
        build = partial(
            build_layers,
            dropout=config.dropout,
            dropout_scaling=config.dropout_scaling,
            seed=seed,
            activation=config.activation,
            batch_norm_group=config.batch_norm_group,
        )
        pictures = torch.empty(1, 3, side, side, device="meta")
        self.features, maps = build(tuple(_switched(variant.features, config)), pictures)
        self.classifier, _ = build((*variant.hidden, Dense(num_classes)), maps.flatten(1))
        if config.num_towers is not None or config.normalization is not None:  # may have other parameters
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

        Raises:
            ValueError: The pictures have a size that does not fit the model, see `image_sizes`.
        """
        if (side := self._config.resize_to) is not None:
            images = functional.interpolate(images, size=(side, side), mode="bilinear")
        else:
            for side in images.shape[2:]:
                if not _is_between(side, self._image_sizes):
                    raise ValueError(_does_not_fit(self._config, side))
        if self._config.channel_order == "bgr":
            images = images.flip(1)
        activations = self.features(images).flatten(1)
        for layer in self.classifier:
            if isinstance(layer, CountedDropout):
                activations = layer(activations, positions)
            else:
                activations = layer(activations)
        return activations


def image_sizes(config: ModelConfig) -> tuple[int, int | None]:
    """Return the smallest and the largest height and width of pictures that fit the layers; None: no upper limit.

    They are those of the variant (`Variant.image_sizes`). With another `first_padding` they are the sizes at which the
    first convolution has as many windows and still uses every pixel.
    """
    least, greatest = VARIANTS[config.name].image_sizes
    first, fewer = _first_convolution(config.name), _fewer_zeros(config)
    if fewer == 0 or greatest is None:
        return least + 2 * fewer, greatest
    # The last window may end before the padding does, but by less than a stride, else there would be one more.
    return least + 2 * fewer, min(greatest + fewer, least + 2 * fewer + first.stride - 1)


def _made_for(config: ModelConfig) -> int:
    """Return the size of pictures that the dense layers are made for."""
    size, (_, greatest) = VARIANTS[config.name].image_size + 2 * _fewer_zeros(config), image_sizes(config)
    return size if greatest is None else min(size, greatest)


def _fewer_zeros(config: ModelConfig) -> int:
    """Return how many zeros the switch takes away on each side of the picture."""
    padding = _first_convolution(config.name).padding
    return 0 if config.first_padding is None or not isinstance(padding, int) else padding - config.first_padding


def _first_convolution(name: str) -> Convolution:
    return next(layer for layer in VARIANTS[name].features if isinstance(layer, Convolution))


def _is_between(size: int, sizes: tuple[int, int | None]) -> bool:
    return sizes[0] <= size and (sizes[1] is None or size <= sizes[1])


def _does_not_fit(config: ModelConfig, size: int) -> str:
    """Return a message that names the sizes that fit."""
    (least, greatest), made_for = image_sizes(config), _made_for(config)
    padded = "" if config.first_padding is None else f" with first_padding={config.first_padding}"
    taken = "" if least == greatest else f" and takes {least} " + ("and more" if greatest is None else f"to {greatest}")
    field, remedy = "image_size", "crop the pictures to that, or resize them inside the model,"
    if config.resize_to is not None:
        field, remedy = "resize_to", "use"
    return f"{field}={size}: {config.name}{padded} is made for {made_for}{taken}; {remedy} resize_to={made_for}"


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
                if config.first_padding is not None and num_convolutions == 1:
                    layer = replace(layer, padding=config.first_padding)
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
    """Check that the layers use every pixel of pictures of this size, and that the result fits the dense layers.

    Raises:
        ValueError: Pictures of `image_size` x `image_size` pixels don't fit the variant; names the sizes that do.
    """
    size = config.resize_to or image_size
    if not _is_between(size, image_sizes(config)):
        raise ValueError(_does_not_fit(config, size))
