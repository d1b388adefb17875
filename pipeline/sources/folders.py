"""Class folders: ROOT/train/CLASS/*, ROOT/val/CLASS/*, ROOT/test/CLASS/*, or ROOT/CLASS/* as training pictures alone.

A class folder's pictures may lie in folders below it. Names that start with a dot and files with other extensions are
no pictures. ROOT/classes.txt may name classes for people: a line is a class folder's name, a space, and the name.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from pipeline.command import InputError
from pipeline.sources.base import DEFAULT_OPTIONS, SAMPLE_SCHEMA, SPLITS, ClassEntry, Listing, ListingOptions
from pipeline.sources.byte_range import read_whole_file

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")  # in any case
CLASS_NAMES = "classes.txt"


class ClassFolders:
    """Reads class folders; a file is opened at each read."""

    layout: ClassVar[str] = "folders"
    native_pixels: ClassVar[bool] = False

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds the splits or the classes."""
        self.root, self.options = root, options

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Tell whether any class folder holds a picture."""
        class_folders = (folder for split in _split_folders(root).values() for folder in _subfolders(split))
        return any(next(_pictures(folder), None) for folder in class_folders)

    def list_samples(self) -> Listing:
        """List all pictures, sorted by class folder and name.

        Raises:
            InputError: There is no class folder, or one holds no picture.
        """
        splits = _split_folders(self.root)
        wnids = sorted({folder.name for split in splits.values() for folder in _subfolders(split)})
        if not wnids:
            raise InputError(f"{self.root} has no class folders; expected ROOT/train/CLASS/* or ROOT/CLASS/*")
        class_index = {wnid: index for index, wnid in enumerate(wnids)}
        names = self._class_names()
        return Listing(
            classes=[ClassEntry(wnid, names.get(wnid, wnid)) for wnid in wnids],
            splits={name: self._list_split(folder, class_index) for name, folder in splits.items()},
        )

    def read(self, file: str, offset: int, num_bytes: int) -> bytes:
        """Read one picture's bytes."""
        return read_whole_file(os.path.join(self.root, file), num_bytes)

    def _list_split(self, split_folder: Path, class_index: dict[str, int]) -> pa.Table:
        rows = []
        for class_folder in _subfolders(split_folder):
            pictures = list(_pictures(class_folder))
            if not pictures:
                raise InputError(
                    f"{class_folder} holds no picture ({' '.join(EXTENSIONS)}), but each folder there is a class; "
                    "fill it or remove it"
                )
            wnid = class_folder.name
            rows += [(f"{wnid}/{name}", class_index[wnid], (class_folder / name).stat().st_size) for name in pictures]
        rows.sort()
        parent = "" if split_folder == self.root else f"{split_folder.name}/"
        try:
            return pa.table(
                {
                    "source": [source for source, _, _ in rows],
                    "class_index": [label for _, label, _ in rows],
                    "file": [parent + source for source, _, _ in rows],
                    "offset": [0] * len(rows),
                    "num_bytes": [num_bytes for _, _, num_bytes in rows],
                },
                schema=SAMPLE_SCHEMA,
            )
        except UnicodeEncodeError as error:
            raise InputError(f"a file name is not UTF-8: {error.object!a}; rename the file") from error

    def _class_names(self) -> dict[str, str]:
        path = self.root / CLASS_NAMES
        if not path.exists():
            return {}
        lines = path.read_text(encoding="utf-8").splitlines()
        return {wnid: name.strip() for wnid, _, name in (line.partition(" ") for line in lines)}


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits; `root` itself is `train` where no split folder holds class folders."""
    found = {split: root / split for split in SPLITS if _subfolders(root / split)}
    return found or ({"train": root} if _subfolders(root) else {})


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name; none where it is absent or a file."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(class_folder: Path) -> Iterator[str]:
    """Yield the names of all pictures below a class folder, relative to it, in the file system's order."""
    start = len(str(class_folder)) + 1
    for parent, subfolders, names in os.walk(class_folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower().endswith(EXTENSIONS):
                yield os.path.join(parent, name)[start:]
