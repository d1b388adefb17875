"""What a person chooses about an evaluation; apart from the evaluation, which loads torch, for a command's help."""

from typing import Literal

Crops = Literal["centre", "ten"]
NUM_CROPS: dict[Crops, int] = {"centre": 1, "ten": 10}
UnknownClasses = Literal["refuse", "skip"]
