"""The embedded default: a small synthetic ImageNet in the user's cache folder, for commands run without arguments."""

import os
from pathlib import Path

STORED_SIZE = 64


def cache_folder() -> Path:
    """Return the project's folder in the user's cache (XDG base directory specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "alexnet-at-scale"


def source_folder() -> Path:
    """Return where the synthetic archives lie."""
    return cache_folder() / "mini-imagenet" / "archives"


def dataset_folder() -> Path:
    """Return where they are sharded to."""
    return cache_folder() / "mini-imagenet" / "dataset"


def run_folder() -> Path:
    """Return where the demo recipe is trained on them."""
    return cache_folder() / "runs" / "demo"
