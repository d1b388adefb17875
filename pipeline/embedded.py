"""The embedded default: a small synthetic ImageNet in the user's cache folder, for commands run without arguments."""

import os
from pathlib import Path

STORED_SIZE = 32


def cache_folder() -> Path:
    """Return the project's folder in the user's cache (XDG base directory specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "alexnet-at-scale"


def source_folder() -> Path:
    """Return the folder of the synthetic archives."""
    return cache_folder() / "mini-imagenet" / "archives"


def dataset_folder() -> Path:
    """Return the dataset's folder; its name contains the stored size, which differs between versions."""
    return cache_folder() / "mini-imagenet" / f"dataset-{STORED_SIZE}"


def datasets_of_other_versions() -> list[Path]:
    """Return the datasets left by other versions of this program, which this version does not use."""
    return sorted(path for path in dataset_folder().parent.glob("dataset*") if path != dataset_folder())


def run_folder() -> Path:
    """Return the run folder of the default recipe on the embedded dataset."""
    return cache_folder() / "runs" / "synthetic_demo"
