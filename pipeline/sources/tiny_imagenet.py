"""Tiny ImageNet as unpacked: ROOT/train/WNID/images, ROOT/val/images with val_annotations.txt.

`wnids.txt` lists the classes, one per line. `words.txt` gives their names for people: a wnid, a tab, the names. A line
of `val/val_annotations.txt` has a picture's name, its wnid and a box, separated by tabs. The test pictures, which have
no labels, and the boxes are left out.
"""

from pathlib import Path
from typing import ClassVar

from pipeline.command import InputError
from pipeline.sources.base import DEFAULT_OPTIONS, ClassEntry, Listing, ListingOptions
from pipeline.sources.byte_range import read_whole_file
from pipeline.sources.flat import list_flat
from pipeline.sources.folders import Places, list_class_folders
from pipeline.sources.text import read_lines
from pipeline.sources.tree import UNLABELLED, check_twins, walk_source

_CLASSES, _NAMES, _VAL_LABELS = "wnids.txt", "words.txt", "val/val_annotations.txt"


class TinyImageNet:
    """Reads Tiny ImageNet's folder; each read opens the file."""

    layout: ClassVar[str] = "tiny-imagenet"
    native_pixels: ClassVar[bool] = False

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds `wnids.txt`."""
        self.root, self.options = root, options

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Return whether the list of classes and the single folder of validation pictures are present."""
        return (root / _CLASSES).is_file() and (root / "val/images").is_dir()

    def list_samples(self) -> Listing:
        """List the training and validation pictures, sorted by name.

        Raises:
            InputError: A table is missing or does not match the pictures.
        """
        wnids = sorted({line.strip() for line in read_lines(self.root / _CLASSES)} - {""})
        tree = walk_source(self.root, self.options.ignore)
        train, val = tree.top.find("train"), tree.top.find("val/images")
        if train is None or val is None:
            raise InputError(f"{self.root} lacks train or val/images; unpack the archive again")
        if odd := train.folders.keys() ^ set(wnids):
            raise InputError(
                f"{self.root / _CLASSES} and the folders of {self.root / 'train'} differ; the first mismatch: "
                f"{min(odd)}; unpack the archive again"
            )
        class_index = {wnid: index for index, wnid in enumerate(wnids)}
        second_links = check_twins(tree, Places({"train": train}).of)
        names, tables = {}, [_CLASSES, _VAL_LABELS]
        if _NAMES in tree.top.names:
            tables.append(_NAMES)
            names = dict(line.split("\t", 1) for line in read_lines(self.root / _NAMES) if "\t" in line)
        return Listing(
            [ClassEntry(wnid, names.get(wnid, wnid).strip()) for wnid in wnids],
            {
                "train": list_class_folders(train, class_index, second_links),
                "val": list_flat(self.root, val, self._val_labels(), class_index),
            },
            tables=tables,
            left_out={"test": UNLABELLED} | second_links,
            tree=tree,
        )

    def read(self, file: str, offset: int, num_bytes: int) -> bytes:
        """Read one picture's bytes."""
        return read_whole_file(self.root / file, num_bytes)

    def _val_labels(self) -> dict[str, str]:
        """Return file name -> wnid."""
        labels: dict[str, str] = {}
        path = self.root / _VAL_LABELS
        for number, line in enumerate(read_lines(path), start=1):
            name, *rest = line.split("\t")
            if len(rest) < 1 or name in labels:
                raise InputError(f"{path}, line {number}: {line!r} does not label a picture; unpack the archive again")
            labels[name] = rest[0].strip()
        return labels
