"""Numbers of all random streams in the project, so that no two uses of one seed draw the same words.

There are two independent generators. Under the key (seed, number), NumPy's own Philox sorts samples and shards:

    number < 2**32           the order of epoch `number` (`order.py`)
    OrderStream              choices that are made once
    STREAM_EPOCHS + epoch    the order of an epoch that is read shard by shard (`stream_order.py`)

Under the key `seed`, Philox4x32-10 (`philox.py`) draws the numbers of one sample; the last word of its counter tells
the uses apart:

    number < 2**31           dropout masks: the upper half of a position (`model/dropout.py`, which does not import
                             this module)
    CounterStream            augmentation

`python -m pipeline.synthesize` draws pictures with NumPy's Philox under numbers of its own (`picture_stream`). Those of
class 0 are also numbers of epochs, which does no harm: the pictures are drawn before there is anything to order.
"""

from enum import IntEnum, unique
from typing import Literal


@unique
class OrderStream(IntEnum):
    """Second word of the key (seed, number), above the numbers of all epochs."""

    SHUFFLE = 1 << 32  # shuffle of each split before it is cut into shards
    VAL = (1 << 32) + 1  # choice of the training samples that become `val`
    DEAL = (1 << 32) + 2  # deal of the shards to the streams that read them
    SUBSET = (1 << 32) + 3  # choice of the training samples that are kept


STREAM_EPOCHS = 1 << 33


@unique
class CounterStream(IntEnum):
    """Last word of the counter (sample id, epoch, number)."""

    GEOMETRY = 0xA0000000  # crop and mirror
    COLOR = 0xA0000001


def picture_stream(split: Literal["train", "val"], class_index: int, number: int) -> int:
    """Return the second word of the key (seed, number) under which a synthetic picture is drawn.

    Args:
        split: Split of the picture.
        class_index: Class of the picture, below 2**22.
        number: Number of the picture, unique in its class and split, below 2**40.
    """
    return ("train", "val").index(split) << 62 | class_index << 40 | number
