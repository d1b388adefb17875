"""Recognition of a source's layout."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.command import InputError
from pipeline.sources.base import DEFAULT_OPTIONS, ListingOptions, Source
from pipeline.sources.cifar import CifarFiles
from pipeline.sources.folders import ClassFolders
from pipeline.sources.idx import IdxFiles
from pipeline.sources.kaggle import KaggleFolder
from pipeline.sources.official import OfficialArchives
from pipeline.sources.parquet import ParquetFiles
from pipeline.sources.tiny_imagenet import TinyImageNet
from pipeline.sources.webdataset_tars import WebDatasetTars

# Reader -> what its layout looks like, for people. The first that recognises a source reads it.
LAYOUTS: dict[type[Source], str] = {
    OfficialArchives: "ImageNet's official archives, ILSVRC2012_*, or what they unpack to",
    KaggleFolder: "Kaggle's ImageNet folder, ILSVRC/Data/CLS-LOC",
    TinyImageNet: "Tiny ImageNet's folder, wnids.txt and val/images",
    CifarFiles: "CIFAR's binary files, data_batch_1.bin or train.bin",
    IdxFiles: "IDX files, train-images-idx3-ubyte[.gz]",
    ParquetFiles: "Parquet files, train-*.parquet or data/train-*.parquet",
    WebDatasetTars: "WebDataset tars, *.tar, or a dataset of this project",
    ClassFolders: "class folders, train/CLASS/*.jpg or CLASS/*.jpg",
}

_LOOKED_INTO = 2  # levels of folders searched if SOURCE itself has no known layout


def open_source(root: Path, layout: str | None = None, options: ListingOptions = DEFAULT_OPTIONS) -> Source:
    """Return the reader of a source.

    Args:
        root: Folder of the source.
        layout: Name of its layout; None: recognised.
        options: Options for the listing.

    Raises:
        InputError: The folder does not exist or is empty, or its layout is unknown.
    """
    known = "; ".join(f"{kind.layout} ({looks})" for kind, looks in LAYOUTS.items())
    if not root.exists():
        raise InputError(f"{root} does not exist; name the folder that holds the pictures or archives")
    if not root.is_dir():
        raise InputError(f"{root} is a file; name the folder that holds the pictures or archives")
    if not any(root.iterdir()):
        raise InputError(f"{root} is empty; name the folder that holds the pictures or archives")
    for kind in LAYOUTS:
        if kind.layout == layout or (layout is None and kind.recognises(root)):
            return kind(root, options)
    if layout is not None:
        raise InputError(f"layout {layout!r} is unknown; known layouts: {known}")
    for folder in _folders_below(root, _LOOKED_INTO):
        for kind in LAYOUTS:
            if kind.recognises(folder):
                raise InputError(
                    f"the layout of {root} is not recognised, but {folder} in it has the layout {kind.layout}; name "
                    "that folder as the SOURCE"
                )
    raise InputError(f"the layout of {root} is not recognised; known layouts: {known}")


def _folders_below(root: Path, num_levels: int) -> Iterator[Path]:
    """Yield the folders below `root`, except hidden ones, sorted by name."""
    for folder in sorted(root.iterdir()) if num_levels else ():
        if folder.is_dir() and not folder.name.startswith("."):
            yield folder
            yield from _folders_below(folder, num_levels - 1)
