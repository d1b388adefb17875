"""Options of an evaluation, in a separate module so that a command's help does not load torch."""

from typing import Literal

Crops = Literal["centre", "ten"]
NUM_CROPS: dict[Crops, int] = {"centre": 1, "ten": 10}
UnknownClasses = Literal["refuse", "skip"]
