"""AlexNet's switches in a recipe, and the picture sizes that fit with them. Loads no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

from model.layer_specs import (
    ACTIVATION_NAMES,
    BATCH_NORM,
    Convolution,
    DropoutScaling,
    Initialization,
    Layer,
    MaxPooling,
    Normalization,
)
from model.lrn_conventions import CONVENTIONS
from model.variants import VARIANTS

if TYPE_CHECKING:
    from model.registry import ModelConfig

INITIALIZATION_NAMES = get_args(Initialization)
ChannelOrder = Literal["rgb", "bgr"]
_NO_NORMALIZATION = "none"
_GROUPED = (2, 4, 5)  # convolutions that are split into two towers in the paper


def check_switches(config: "ModelConfig") -> None:
    """Check the fields of a variant's configuration.

    Raises:
        ValueError: A field is invalid; the message names it, its value and what would be right.
    """
    if config.initialization is not None and config.initialization not in INITIALIZATION_NAMES:
        raise ValueError(f"initialization={config.initialization!r}: must be one of {', '.join(INITIALIZATION_NAMES)}")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout={config.dropout}: must lie in [0, 1)")
    if config.dropout_scaling not in get_args(DropoutScaling):
        raise ValueError(
            f"dropout_scaling={config.dropout_scaling!r}: must be one of {', '.join(get_args(DropoutScaling))}"
        )
    if config.activation not in ACTIVATION_NAMES:
        raise ValueError(f"activation={config.activation!r}: must be one of {', '.join(ACTIVATION_NAMES)}")
    conventions = (_NO_NORMALIZATION, BATCH_NORM, *CONVENTIONS)
    if config.normalization is not None and config.normalization not in conventions:
        raise ValueError(f"normalization={config.normalization!r}: must be one of {', '.join(conventions)}")
    normalized = any(isinstance(layer, Normalization) for layer in VARIANTS[config.name].features)
    if config.normalization not in (None, _NO_NORMALIZATION) and not normalized:
        raise ValueError(f"normalization={config.normalization!r}: {config.name} has none that it could replace")
    if config.num_towers not in (None, 1, 2):
        raise ValueError(f"num_towers={config.num_towers}: must be 1 or 2")
    if config.batch_norm_group < 2:
        raise ValueError(f"batch_norm_group={config.batch_norm_group}: must be at least 2")
    if config.first_padding is not None and config.first_padding < 0:
        raise ValueError(f"first_padding={config.first_padding}: must not be negative")
    if config.resize_to is not None and config.resize_to < 1:
        raise ValueError(f"resize_to={config.resize_to}: must be at least 1")
    if config.channel_order not in get_args(ChannelOrder):
        raise ValueError(f"channel_order={config.channel_order!r}: must be one of {', '.join(get_args(ChannelOrder))}")


def group_size(config: "ModelConfig") -> int:
    """Return how many consecutive samples must stay together on one worker; 1 if they may be split freely."""
    kinds = {
        layer.kind for layer in switched(VARIANTS[config.name].features, config) if isinstance(layer, Normalization)
    }
    return config.batch_norm_group if BATCH_NORM in kinds else 1


def image_sizes(config: "ModelConfig") -> tuple[int, int | None]:
    """Return the smallest and largest height and width of pictures that fit the layers; None: no upper limit.

    They are the variant's (`Variant.image_sizes`). With another `first_padding`, they are the sizes at which the first
    convolution has the same number of windows and still uses every pixel.
    """
    least, greatest = VARIANTS[config.name].image_sizes
    first, fewer = _first_convolution(config.name), _fewer_zeros(config)
    if fewer == 0 or greatest is None:
        return least + 2 * fewer, greatest
    # The last window may end before the padding does, but by less than a stride; otherwise one more window would fit.
    return least + 2 * fewer, min(greatest + fewer, least + 2 * fewer + first.stride - 1)


def made_for(config: "ModelConfig") -> int:
    """Return the picture size that the dense layers are made for."""
    size, (_, greatest) = VARIANTS[config.name].image_size + 2 * _fewer_zeros(config), image_sizes(config)
    return size if greatest is None else min(size, greatest)


def _fewer_zeros(config: "ModelConfig") -> int:
    """Return how many zeros the switch removes on each side of the picture."""
    padding = _first_convolution(config.name).padding
    return 0 if config.first_padding is None or not isinstance(padding, int) else padding - config.first_padding


def _first_convolution(name: str) -> Convolution:
    return next(layer for layer in VARIANTS[name].features if isinstance(layer, Convolution))


def is_between(size: int, sizes: tuple[int, int | None]) -> bool:
    """Return whether a height or width lies in a range of `image_sizes`."""
    return sizes[0] <= size and (sizes[1] is None or size <= sizes[1])


def does_not_fit(config: "ModelConfig", size: int) -> str:
    """Return a message that names the sizes that fit."""
    (least, greatest), best = image_sizes(config), made_for(config)
    padded = "" if config.first_padding is None else f" with first_padding={config.first_padding}"
    taken = "" if least == greatest else f" and takes {least} " + ("and more" if greatest is None else f"to {greatest}")
    field, remedy = "image_size", "crop the pictures to that, or resize them inside the model,"
    if config.resize_to is not None:
        field, remedy = "resize_to", "use"
    return f"{field}={size}: {config.name}{padded} is made for {best}{taken}; {remedy} resize_to={best}"


def switched(features: Sequence[Layer], config: "ModelConfig") -> Iterator[Layer]:
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


def check_image_size(config: "ModelConfig", image_size: int) -> None:
    """Check that the layers use every pixel of pictures of this size, and that the result fits the dense layers.

    Raises:
        ValueError: Pictures of `image_size` x `image_size` do not fit the variant; the message names the sizes that do.
    """
    size = config.resize_to or image_size
    if not is_between(size, image_sizes(config)):
        raise ValueError(does_not_fit(config, size))
