"""Pictures in a single folder, with their labels in a table."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from pipeline.command import InputError
from pipeline.sources.byte_range import whole_files
from pipeline.sources.folders import is_picture_name
from pipeline.sources.tree import Folder


def list_flat(
    root: Path, folder: Folder, labels: Mapping[str, str], class_index: Mapping[str, int], prefix: str = ""
) -> pa.Table:
    """Return a table of `SAMPLE_SCHEMA` for the pictures in a single folder, sorted by name.

    Args:
        root: Root of the source.
        folder: Folder of the pictures.
        labels: File name -> wnid.
        class_index: wnid -> class index.
        prefix: Prefix of the samples' names.

    Raises:
        InputError: Pictures and labels don't match.
    """
    sizes = {name: size for name, size in zip(folder.names, folder.sizes, strict=True) if is_picture_name(name)}
    if odd := sizes.keys() ^ labels.keys():
        raise InputError(
            f"{root / folder.path} holds {len(sizes)} pictures, the table of their labels lists {len(labels)}; the "
            f"first mismatch: {folder.of(min(odd))}; unpack the archive again"
        )
    if unknown := set(labels.values()) - class_index.keys():
        raise InputError(f"the table of classes does not name {min(unknown)}, which {root / folder.path} has")
    return whole_files(
        [(prefix + name, class_index[labels[name]], folder.of(name), sizes[name]) for name in sorted(sizes)]
    )
