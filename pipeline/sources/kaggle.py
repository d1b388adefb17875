"""Kaggle's ImageNet folder: ROOT/ILSVRC/Data/CLS-LOC/{train,val}, with its tables of classes and validation labels.

`LOC_synset_mapping.txt` has one line per class: the wnid, a space, the names. `LOC_val_solution.csv` has one line per
validation picture: ImageId, and a PredictionString of boxes, `wnid x y x y` each, all of one class. Training pictures
lie in one folder per class. The test set has no labels and is not listed.
"""

import csv
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from pipeline.command import InputError
from pipeline.sources.base import DEFAULT_OPTIONS, SAMPLE_SCHEMA, ClassEntry, Listing, ListingOptions
from pipeline.sources.byte_range import read_whole_file

_PICTURES = Path("ILSVRC/Data/CLS-LOC")
_CLASSES = "LOC_synset_mapping.txt"
_VAL_LABELS = "LOC_val_solution.csv"


class KaggleFolder:
    """Reads the folder that Kaggle's archive unpacks to."""

    layout: ClassVar[str] = "kaggle"
    native_pixels: ClassVar[bool] = False

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds `ILSVRC` and the tables."""
        self.root, self.options = root, options

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Tell whether the training pictures and the table of classes are there."""
        return (root / _PICTURES / "train").is_dir() and (root / _CLASSES).is_file()

    def list_samples(self) -> Listing:
        """List the training and validation pictures, sorted by name.

        Raises:
            InputError: A table is missing or does not fit the pictures.
        """
        names = dict(line.split(" ", 1) for line in self._read_lines(_CLASSES) if " " in line)
        classes = [ClassEntry(wnid, names[wnid].strip()) for wnid in sorted(names)]
        class_index = {entry.wnid: index for index, entry in enumerate(classes)}
        train = {
            f"train/{folder.name}/{path.name}": folder.name
            for folder in (self.root / _PICTURES / "train").iterdir()
            if folder.is_dir()
            for path in folder.iterdir()
        }
        splits = {"train": self._table(train, class_index)}
        if (self.root / _PICTURES / "val").is_dir():
            splits["val"] = self._table(self._val_labels(), class_index)
        return Listing(classes, splits)

    def read(self, file: str, offset: int, num_bytes: int) -> bytes:
        """Read one picture's bytes."""
        return read_whole_file(self.root / file, num_bytes)

    def _val_labels(self) -> dict[str, str]:
        """Return picture -> wnid of the validation split."""
        labels = {}
        for row in csv.DictReader(self._read_lines(_VAL_LABELS)):
            wnids = set((row.get("PredictionString") or "").split()[::5])
            if "ImageId" not in row or len(wnids) != 1:
                raise InputError(f"{self.root / _VAL_LABELS}: {row} gives no picture one class; get the file again")
            labels[f"val/{row['ImageId']}.JPEG"] = wnids.pop()
        found = {f"val/{path.name}" for path in (self.root / _PICTURES / "val").iterdir()}
        if found != labels.keys():
            odd = min(found ^ labels.keys())
            raise InputError(
                f"{_VAL_LABELS} lists {len(labels)} pictures, {len(found)} are there; the first odd: {odd}"
            )
        return labels

    def _table(self, labels: dict[str, str], class_index: dict[str, int]) -> pa.Table:
        names = sorted(labels)
        unknown = sorted({labels[name] for name in names} - class_index.keys())
        if unknown:
            raise InputError(f"{_CLASSES} of {self.root} does not name {unknown[0]}; get the file again")
        return pa.table(
            {
                "source": names,
                "class_index": [class_index[labels[name]] for name in names],
                "file": [str(_PICTURES / name) for name in names],
                "offset": [0] * len(names),
                "num_bytes": [(self.root / _PICTURES / name).stat().st_size for name in names],
            },
            schema=SAMPLE_SCHEMA,
        )

    def _read_lines(self, name: str) -> list[str]:
        try:
            return (self.root / name).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError as error:
            raise InputError(f"{self.root / name} is missing; it comes with the archive") from error
