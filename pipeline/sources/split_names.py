"""Names that people give the splits."""

import re

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_RESEMBLING = re.compile(rf"(?:{'|'.join(SPLIT_WORDS)})[^a-z]+", re.IGNORECASE)


def split_of(name: str) -> str | None:
    """Return the split that a folder's or file's name means, in any case, or None."""
    return SPLIT_WORDS.get(name.lower())


def resembles_split(name: str) -> bool:
    """Return whether a name is a split's name followed by something else, like `val2017` or `test_1`."""
    return _RESEMBLING.fullmatch(name) is not None
