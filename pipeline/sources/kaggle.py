"""Kaggle's ImageNet folder: ROOT/ILSVRC/Data/CLS-LOC/{train,val}, with its tables of classes and validation labels.

`LOC_synset_mapping.txt` has one line per class: the wnid, a space, the names. `LOC_val_solution.csv` has one line per
validation picture: ImageId, and a PredictionString of boxes, `wnid x y x y` each, all of one class. Training pictures
lie in one folder per class. The validation pictures may, too; the table, if present, is then compared with the
folders. The test set, which has no labels, and the boxes are left out.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.command import InputError
from pipeline.sources.base import DEFAULT_OPTIONS, ClassEntry, Listing, ListingOptions
from pipeline.sources.byte_range import read_whole_file
from pipeline.sources.flat import list_flat
from pipeline.sources.folders import Places, has_pictures, holds_pictures, list_class_folders
from pipeline.sources.text import read_lines
from pipeline.sources.tree import ANNOTATIONS, UNLABELLED, Folder, check_twins, walk_source

CLASSES, VAL_LABELS = "LOC_synset_mapping.txt", "LOC_val_solution.csv"
_PICTURES = Path("ILSVRC/Data/CLS-LOC")
_LEFT_OUT = {
    str(_PICTURES / "test"): UNLABELLED,
    "ILSVRC/Annotations": ANNOTATIONS,
    "ILSVRC/ImageSets": ANNOTATIONS,
    "LOC_train_solution.csv": ANNOTATIONS,
    "LOC_sample_submission.csv": ANNOTATIONS,
}


class KaggleFolder:
    """Reads the folder that Kaggle's archive unpacks to."""

    layout: ClassVar[str] = "kaggle"
    native_pixels: ClassVar[bool] = False

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds `ILSVRC` and the tables."""
        self.root, self.options = root, options

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Return whether the folder of the training pictures exists."""
        return (root / _PICTURES / "train").is_dir()

    def list_samples(self) -> Listing:
        """List the training and validation pictures, sorted by name.

        Raises:
            InputError: A table is missing or does not match the pictures.
        """
        classes = read_classes(self.root / CLASSES)
        class_index = {entry.wnid: index for index, entry in enumerate(classes)}
        tree = walk_source(self.root, self.options.ignore)
        pictures = tree.top.find(str(_PICTURES))
        if pictures is None or "train" not in pictures.folders:
            raise InputError(f"{self.root / _PICTURES / 'train'} is missing; unpack the archive there")
        folders: dict[str, Folder] = {s: pictures.folders[s] for s in ("train", "val") if s in pictures.folders}
        unknown = sorted({name for folder in folders.values() for name in folder.folders} - class_index.keys())
        if unknown:
            raise InputError(f"{self.root / CLASSES} does not name {unknown[0]}; get the file again")
        second_links = check_twins(tree, Places(folders).of)
        splits, tables = {}, [CLASSES]
        for split, folder in folders.items():
            if split == "train" or _is_sorted(folder):
                table = list_class_folders(folder, class_index, second_links)
                sources = pc.binary_join_element_wise(split, table["source"], "/")
                splits[split] = table.set_column(0, "source", sources)
        if "val" in folders and ("val" not in splits or VAL_LABELS in tree.top.names):
            labels = read_val_labels(self.root / VAL_LABELS)
            tables.append(VAL_LABELS)
            if "val" in splits:
                self._check_sorted(splits["val"], labels)
            else:
                splits["val"] = list_flat(self.root, folders["val"], labels, class_index, "val/")
        return Listing(classes, splits, tables=tables, left_out=_LEFT_OUT | second_links, tree=tree)

    def read(self, file: str, offset: int, num_bytes: int) -> bytes:
        """Read one picture's bytes."""
        return read_whole_file(self.root / file, num_bytes)

    def _check_sorted(self, val: pa.Table, labels: Mapping[str, str]) -> None:
        """Check that the validation pictures' folders agree with the table of their labels.

        Raises:
            InputError: Folders and table differ.
        """
        paths = (source.split("/") for source in val["source"].to_pylist())
        if odd := {(parts[-1], parts[1]) for parts in paths} ^ labels.items():
            raise InputError(
                f"the folders in {self.root / _PICTURES / 'val'} and {VAL_LABELS} differ; the first difference: "
                f"{' of '.join(min(odd))}; unpack the archive again"
            )


def _is_sorted(folder: Folder) -> bool:
    """Return whether validation pictures lie in class folders, as many scripts sort them."""
    return holds_pictures(folder) and not has_pictures(folder)


def read_classes(path: Path) -> list[ClassEntry]:
    """Return the classes in Kaggle's table, sorted by wnid.

    Raises:
        InputError: The table is missing or names no class.
    """
    names = dict(line.split(" ", 1) for line in read_lines(path) if " " in line)
    if not names:
        raise InputError(f"{path} names no class; get the file again")
    return [ClassEntry(wnid, names[wnid].strip()) for wnid in sorted(names)]


def read_val_labels(path: Path) -> dict[str, str]:
    """Return file name -> wnid for the validation pictures in Kaggle's table.

    Raises:
        InputError: The table is missing, or gives a picture no class or several classes.
    """
    labels = {}
    for row in csv.DictReader(read_lines(path)):
        wnids = set((row.get("PredictionString") or "").split()[::5])
        if "ImageId" not in row or len(wnids) != 1 or f"{row['ImageId']}.JPEG" in labels:
            raise InputError(f"{path}: {row} does not give one picture one class; get the file again")
        labels[f"{row['ImageId']}.JPEG"] = wnids.pop()
    return labels
