"""The recipe for pictures of one's own, chosen from their number and size; pure functions, but for the look at them.

| pictures to train on | device | recipe | stored | crop |
| --- | --- | --- | --- | --- |
| 20,000 or more, of 256 pixels and more | GPU | `owt_2014` | 256 | 224 |
| others | any | `own_pictures` | at most 80 | 3/4 of it: small crops of few pictures are many |

The number of epochs of `own_pictures` falls with the root of the number of pictures: fewer pictures need more passes,
but fewer steps. Few pictures also need a larger part that is held out, or its top-1 would say nothing.
"""

import io
import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from cluster.run.config import TrainingConfig
from jobs.recipes import own_pictures, owt_2014
from pipeline.command import InputError
from pipeline.sources.base import Listing, Source

_MANY = 20_000
_LARGE_SIZE = 256
_SMALL_SIZE, _LEAST_SIZE = 80, 32
_LEAST_CROPPED = 40  # stored size from which a crop of 3/4 is still large enough for the network
_EPOCHS, _EPOCHS_AT = 60, 160
_LEAST_EPOCHS, _MOST_EPOCHS = 10, 80
_SMALL_BATCH, _LARGE_BATCH, _LARGE_BATCH_FROM = 32, 128, 3_000
_HELD_OUT = ((1_000, 0.2), (10_000, 0.1))  # up to that many pictures, this fraction of each class
_SMALLEST_FRACTION = 0.05
_NUM_LOOKED_AT = 64


@dataclass(frozen=True)
class OwnPictures:
    """What a listing, and a look at some pictures, tell of a source.

    Attributes:
        num_train: Number of training pictures, before some of them are held out.
        num_classes: Number of classes.
        has_val: Whether the source has a validation split of its own.
        side: Median length of the shorter side, in pixels.
        stores_pixels: Whether the source stores pixels, which keep their size.
        has_pairs: Whether a class has more than one training picture, so that one can be held out.
    """

    num_train: int
    num_classes: int
    has_val: bool
    side: int
    stores_pixels: bool = False
    has_pairs: bool = True

    @classmethod
    def of(cls, source: Source, listing: Listing) -> "OwnPictures":
        """Look at a source; of its pictures, at the sizes of 64.

        Raises:
            InputError: There is no picture to train on.
        """
        train = listing.splits.get("train")
        if train is None or not train.num_rows:
            raise InputError(f"{source.root} has no training pictures; put them into class folders, CLASS/*.jpg")
        chosen = np.unique(np.linspace(0, train.num_rows - 1, _NUM_LOOKED_AT, dtype=int))
        columns = train.take(chosen).to_pydict()
        places = zip(*(columns[name] for name in ("file", "offset", "num_bytes")), strict=True)
        sides = [_shorter_side(source.read(*place)) for place in places]
        side = int(np.median([side for side in sides if side] or [_LARGE_SIZE]))
        has_pairs = len(train["class_index"].unique()) < train.num_rows
        return cls(train.num_rows, len(listing.classes), "val" in listing.splits, side, source.native_pixels, has_pairs)


@dataclass(frozen=True)
class Choice:
    """How pictures are stored, and the recipe that they are trained with.

    Attributes:
        config: The recipe.
        stored_size: Size at which they are stored; None: as they are.
        val_fraction: Fraction of each class that is held out; None: the source has its own `val`.
        reason: Why this recipe, in a few words.
    """

    config: TrainingConfig
    stored_size: int | None
    val_fraction: float | None
    reason: str

    def overridden(self, config: TrainingConfig) -> "Choice":
        """Return the choice with the recipe as the command line overrides it, and room for its crop."""
        stored_size, crop_size = self.stored_size, config.augmentation.crop_size
        if stored_size is not None and crop_size is not None:
            stored_size = max(stored_size, crop_size)
        return replace(self, config=config, stored_size=stored_size)

    def stored(self, pictures: OwnPictures) -> int:
        """Return the size at which pictures are stored."""
        return pictures.side if self.stored_size is None else self.stored_size


def keep(pictures: OwnPictures, config: TrainingConfig, reason: str) -> Choice:
    """Choose how pictures are stored for a recipe that is given."""
    crop_size = config.augmentation.crop_size
    size = _small_size(pictures) if crop_size is None else max(crop_size, _LARGE_SIZE)
    return Choice(config, None if pictures.stores_pixels else size, _held_out(pictures), reason)


def choose(pictures: OwnPictures, has_gpu: bool) -> Choice:
    """Choose how pictures are stored, and the recipe.

    Args:
        pictures: What is known of them.
        has_gpu: Whether this machine has a GPU.
    """
    fraction = _held_out(pictures)
    if has_gpu and pictures.num_train >= _MANY and pictures.side >= _LARGE_SIZE and not pictures.stores_pixels:
        reason = f"{_MANY:,} pictures or more of at least {_LARGE_SIZE} pixels, and a GPU"
        return Choice(owt_2014(), _LARGE_SIZE, fraction, reason)
    num_train = round(pictures.num_train * (1 - (fraction or 0)))
    size = pictures.side if pictures.stores_pixels else _small_size(pictures)
    config = own_pictures()
    if size < _LEAST_CROPPED:
        config = replace(config, augmentation=replace(config.augmentation, crop_fraction=7 / 8))
    epochs = _EPOCHS * math.sqrt(_EPOCHS_AT / max(num_train, 1))
    config = replace(
        config,
        num_epochs=float(round(min(max(epochs, _LEAST_EPOCHS), _MOST_EPOCHS))),
        global_batch_size=_SMALL_BATCH if num_train < _LARGE_BATCH_FROM else _LARGE_BATCH,
    )
    few = f"fewer than {_MANY:,} pictures" if pictures.num_train < _MANY else "no GPU, or small pictures"
    return Choice(config, None if pictures.stores_pixels else size, fraction, few)


def described(pictures: OwnPictures, choice: Choice) -> str:
    """Return lines that say what was found and chosen.

    Args:
        pictures: What is known of the pictures.
        choice: What was chosen.
    """
    config, stored = choice.config, choice.stored(pictures)
    if choice.val_fraction is None:
        held_out = "its own val"
    elif pictures.has_pairs:
        held_out = f"{choice.val_fraction:.0%} of each class held out"
    else:
        held_out = "none held out, since each class has one"
    classes = "1 class" if pictures.num_classes == 1 else f"{pictures.num_classes} classes"
    return (
        f"own pictures: {pictures.num_train:,} in {classes}, {held_out}; shorter side "
        f"{pictures.side} pixels (median)\n"
        f"recipe {config.name} ({choice.reason}): stored at {stored} pixels, crops of "
        f"{config.augmentation.crop_of(stored)}, batches of {config.global_batch_size}, {config.num_epochs:g} epochs\n"
    )


def _held_out(pictures: OwnPictures) -> float | None:
    """Return the fraction of each class to hold out; None if the source has a validation split."""
    if pictures.has_val:
        return None
    return next((fraction for most, fraction in _HELD_OUT if pictures.num_train < most), _SMALLEST_FRACTION)


def _small_size(pictures: OwnPictures) -> int:
    return min(max(pictures.side, _LEAST_SIZE), _SMALL_SIZE)


def _shorter_side(content: bytes | np.ndarray) -> int | None:
    """Return the length of a picture's shorter side, or None if it can't be read: sharding judges it."""
    if isinstance(content, np.ndarray):
        return min(content.shape[:2])
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return min(picture.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
