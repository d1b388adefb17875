"""ImageNet's official archives, or what they unpack to.

    training    ILSVRC2012_img_train.tar with one tar per class inside; or those tars; or one folder per class
    validation  ILSVRC2012_img_val.tar; or its pictures in one folder; or one folder per class
    labels      ILSVRC2012_devkit_t12.tar.gz, or its folder; or Kaggle's LOC_synset_mapping.txt and LOC_val_solution.csv

Unpacked files lie in ROOT, ROOT/train and ROOT/val, or in folders named like the archives. Archives are read in place:
the inner tars are not compressed, so each picture has an absolute offset in the outer file. Samples have the same names
whether or not anything was unpacked. The test pictures have no labels and are left out.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

import pyarrow as pa

from pipeline.command import InputError
from pipeline.progress import progress_bar
from pipeline.sources import kaggle
from pipeline.sources.base import DEFAULT_OPTIONS, SAMPLE_SCHEMA, ClassEntry, Listing, ListingOptions
from pipeline.sources.byte_range import read_byte_range, read_whole_file
from pipeline.sources.devkit import DEVKIT_ARCHIVE, DEVKIT_FOLDER, DEVKIT_GROUND_TRUTH, DEVKIT_META, read_devkit
from pipeline.sources.flat import list_flat
from pipeline.sources.folders import Places, holds_pictures, list_class_folders
from pipeline.sources.split_names import split_of
from pipeline.sources.tar_headers import Member, scan_tar
from pipeline.sources.tar_pictures import TarPictures
from pipeline.sources.tree import UNLABELLED, Folder, check_twins, walk_source

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VAL_ARCHIVE = "ILSVRC2012_img_val.tar"
_ARCHIVES = {  # name -> published MD5
    TRAIN_ARCHIVE: "1d675b47d978889d74fa0da5fadfb00e",
    VAL_ARCHIVE: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT_ARCHIVE: "fa75699e90414af021442c21a62c3abf",
}
_UNPACKED = {"train": "ILSVRC2012_img_train", "val": "ILSVRC2012_img_val"}  # folders, besides those named like splits
_HASHED_BYTES = 1 << 24  # read at a time
_INNER_TAR = re.compile(r"n\d{8}\.tar")
_WNID = re.compile(r"n\d{8}")
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_TEST_ARCHIVE = re.compile(r"ILSVRC2012_img_test.*\.tar")
_TEST_NAME = re.compile(r"ILSVRC2012_test_\d{8}\.JPEG")


@dataclass(frozen=True)
class _Labels:
    """Classes, and labels of the validation pictures.

    Attributes:
        classes: Classes sorted by wnid.
        val: File name -> wnid of the validation pictures.
        origin: Where classes and labels come from, for messages.
        tables: Paths of the files they were read from, relative to the root.
    """

    classes: list[ClassEntry]
    val: Mapping[str, str]
    origin: str
    tables: list[str]


class OfficialArchives:
    """Reads the official archives in place, or what was unpacked from them; each read opens the file."""

    layout: ClassVar[str] = "official"
    native_pixels: ClassVar[bool] = False

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds the archives."""
        self.root, self.options = root, options

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Return whether the folder holds an archive, the tar of a class, or the validation pictures."""
        if not root.is_dir():
            return False
        names = os.listdir(root)
        if any((root / name).is_file() for name in _ARCHIVES):
            return True
        parts = [root / name for name in names if _may_hold_a_part(name) and (root / name).is_dir()]
        names += [name for folder in parts for name in os.listdir(folder)]
        return any(_INNER_TAR.fullmatch(name) or _VAL_NAME.fullmatch(name) for name in names)

    def list_samples(self) -> Listing:
        """List all pictures, sorted by name.

        Raises:
            InputError: A part is missing or damaged, or the parts do not match.
        """
        top = (tree := walk_source(self.root, self.options.ignore)).top
        places = {split: [top, *_part_folders(top, split)] for split in ("train", "val")}
        train_tars = [folder for folder in places["train"] if any(map(_INNER_TAR.fullmatch, folder.names))]
        train_folders = [classes for folder in places["train"] if (classes := _classes_of(folder)).folders]
        val_flat = [folder for folder in places["val"] if any(map(_VAL_NAME.fullmatch, folder.names))]
        val_folders = [classes for folder in places["val"][1:] if (classes := _classes_of(folder)).folders]
        self._check_complete(top, bool(train_tars or train_folders), bool(val_flat or val_folders))
        labels = self._read_labels(top)
        class_index = {entry.wnid: index for index, entry in enumerate(labels.classes)}
        tars = TarPictures(self.options.ignore)
        unpacked: dict[str, Folder] = {}
        splits = {}
        if TRAIN_ARCHIVE in top.names:
            splits["train"] = self._list_archive(class_index, labels, tars)
        elif train_tars:
            splits["train"] = self._list_inner_tars(train_tars[0], class_index, labels, tars)
        else:
            unpacked["train"] = train_folders[0]
        if VAL_ARCHIVE in top.names:
            splits["val"] = self._list_val_archive(labels, class_index, tars)
        elif val_flat:
            splits["val"] = list_flat(self.root, val_flat[0], labels.val, class_index)
        else:
            unpacked["val"] = val_folders[0]
        second_links = check_twins(tree, Places(unpacked).of)
        for split, folder in unpacked.items():
            self._check_classes(set(folder.folders), class_index, labels, f"{self.root / folder.path}")
            splits[split] = list_class_folders(folder, class_index, second_links)
        return Listing(
            labels.classes,
            {split: splits[split] for split in ("train", "val")},
            tables=labels.tables,
            left_out=_unlabelled(top) | second_links,
            members=tars.members if tars.members.num_found else None,
            tree=tree,
        )

    def check_md5(self) -> None:
        """Read all archives and compare their MD5 sums with the published ones.

        Raises:
            InputError: An archive is missing or differs from the published one.
        """
        missing = [name for name in _ARCHIVES if not (self.root / name).is_file()]
        if missing:
            raise InputError(f"{self.root} lacks {', '.join(missing)}; --check-md5 is for the archives as published")
        total = sum((self.root / name).stat().st_size for name in _ARCHIVES)
        with progress_bar(total, "checking MD5", "B", unit_scale=True) as bar:
            for name, published in _ARCHIVES.items():
                digest = hashlib.md5(usedforsecurity=False)
                with open(self.root / name, "rb") as file:
                    while content := file.read(_HASHED_BYTES):
                        digest.update(content)
                        bar.update(len(content))
                if digest.hexdigest() != published:
                    raise InputError(
                        f"{self.root / name} has the MD5 {digest.hexdigest()}, the published archive {published}; "
                        f"get the archive again"
                    )

    def read(self, file: str, offset: int, num_bytes: int) -> bytes:
        """Read one picture's bytes."""
        path = self.root / file
        return read_byte_range(path, offset, num_bytes) if file.endswith(".tar") else read_whole_file(path, num_bytes)

    def _check_complete(self, top: Folder, has_train: bool, has_val: bool) -> None:
        has_labels = DEVKIT_FOLDER in top.folders or {kaggle.CLASSES, kaggle.VAL_LABELS} <= set(top.names)
        unpacked = {TRAIN_ARCHIVE: has_train, VAL_ARCHIVE: has_val, DEVKIT_ARCHIVE: has_labels}
        missing = [name for name in _ARCHIVES if name not in top.names and not unpacked[name]]
        if missing:
            raise InputError(
                f"{self.root} lacks {', '.join(missing)}; put all of {', '.join(_ARCHIVES)} there, or what they unpack "
                f"to (for the labels, {kaggle.CLASSES} and {kaggle.VAL_LABELS} will do, too)"
            )

    def _read_labels(self, top: Folder) -> _Labels:
        if DEVKIT_ARCHIVE not in top.names and DEVKIT_FOLDER not in top.folders:
            classes = kaggle.read_classes(self.root / kaggle.CLASSES)
            val = kaggle.read_val_labels(self.root / kaggle.VAL_LABELS)
            return _Labels(classes, val, kaggle.CLASSES, [kaggle.CLASSES, kaggle.VAL_LABELS])
        is_archive = DEVKIT_ARCHIVE in top.names
        devkit = read_devkit(self.root / (DEVKIT_ARCHIVE if is_archive else DEVKIT_FOLDER))
        numbered = enumerate(devkit.ground_truth, start=1)
        val = {f"ILSVRC2012_val_{number:08d}.JPEG": devkit.wnids[label] for number, label in numbered}
        tables = [DEVKIT_ARCHIVE] if is_archive else [DEVKIT_META, DEVKIT_GROUND_TRUTH]
        return _Labels(devkit.classes, val, "devkit", tables)

    def _list_archive(self, class_index: Mapping[str, int], labels: _Labels, tars: TarPictures) -> pa.Table:
        path = self.root / TRAIN_ARCHIVE
        with open(path, "rb", buffering=0) as file:
            inner_tars = sorted(tar for tar in scan_tar(file, 0, os.path.getsize(path)) if not tar.name.startswith("."))
            found = [tar.name.removesuffix(".tar") for tar in inner_tars]
            self._check_classes(set(found), class_index, labels, "training archive")
            twice = next((before for before, after in itertools.pairwise(found) if before == after), None)
            if twice is not None:
                raise InputError(f"{path} holds {twice}.tar twice; get the archive again")
            return pa.concat_tables(
                _list_tar(file, TRAIN_ARCHIVE, tar.offset, tar.offset + tar.num_bytes, tar.name, class_index, tars)
                for tar in inner_tars
            )

    def _list_inner_tars(
        self, folder: Folder, class_index: Mapping[str, int], labels: _Labels, tars: TarPictures
    ) -> pa.Table:
        names = sorted(filter(_INNER_TAR.fullmatch, folder.names))
        self._check_classes(
            {name.removesuffix(".tar") for name in names}, class_index, labels, f"{self.root / folder.path}"
        )
        tables = []
        for name in names:
            path = self.root / folder.of(name)
            with open(path, "rb", buffering=0) as file:
                tables.append(_list_tar(file, folder.of(name), 0, os.path.getsize(path), name, class_index, tars))
        return pa.concat_tables(tables)

    def _check_classes(self, found: set[str], expected: Iterable[str], labels: _Labels, where: str) -> None:
        differing = sorted(found.symmetric_difference(expected))
        if differing:
            lacks, has = (labels.origin, where)[:: 1 if differing[0] in found else -1]
            raise InputError(
                f"{self.root}: the {lacks} lacks {differing[0]}, which the {has} has "
                f"({len(differing)} classes differ); use archives of one release"
            )

    def _list_val_archive(self, labels: _Labels, class_index: Mapping[str, int], tars: TarPictures) -> pa.Table:
        path = self.root / VAL_ARCHIVE
        with open(path, "rb", buffering=0) as file:
            members = tars.list(file, 0, os.path.getsize(path), VAL_ARCHIVE)
        for number, member in enumerate(members, start=1):
            match = _VAL_NAME.fullmatch(member.name)
            if match is None or int(match[1]) != number:
                raise InputError(f"{path} holds {member.name} where picture {number} should be; get the archive again")
        if len(members) != len(labels.val):
            raise InputError(
                f"{path} holds {len(members)} pictures, but the {labels.origin}'s ground truth has "
                f"{len(labels.val)} lines; use archives of one release"
            )
        return _table(VAL_ARCHIVE, "", members, [class_index[labels.val[member.name]] for member in members])


def _list_tar(
    file: BinaryIO, path: str, start: int, end: int, name: str, class_index: Mapping[str, int], tars: TarPictures
) -> pa.Table:
    """Return the samples of one class's tar, which spans the bytes from `start` to `end` of a file of the source."""
    wnid = name.removesuffix(".tar")
    members = tars.list(file, start, end, name)
    if not members:
        raise InputError(f"{file.name}: {name} holds no picture; get the archive again")
    return _table(path, f"{wnid}/", members, [class_index[wnid]] * len(members))


def _table(file: str, folder: str, members: list[Member], labels: list[int]) -> pa.Table:
    names, offsets, sizes = zip(*members, strict=True)
    return pa.table(
        {
            "source": [folder + name for name in names],
            "class_index": labels,
            "file": [file] * len(members),
            "offset": offsets,
            "num_bytes": sizes,
        },
        schema=SAMPLE_SCHEMA,
    )


def _may_hold_a_part(name: str) -> bool:
    return split_of(name) in ("train", "val") or name in _UNPACKED.values()


def _part_folders(top: Folder, split: str) -> Iterator[Folder]:
    """Yield the folders that may hold what a split's archive unpacks to."""
    for name, folder in top.folders.items():
        if split_of(name) == split or name == _UNPACKED[split]:
            yield folder


def _classes_of(folder: Folder) -> Folder:
    """Return a copy of the folder with only the subfolders that are named by a wnid and hold pictures."""
    classes = {wnid: below for wnid, below in folder.folders.items() if _WNID.fullmatch(wnid) and holds_pictures(below)}
    return Folder(folder.path, folders=classes)


def _unlabelled(top: Folder) -> dict[str, str]:
    """Return the files and folders of the test pictures, with the reason to leave them out."""
    names = [name for name in top.names if _TEST_ARCHIVE.fullmatch(name)]
    names += [name for name, folder in top.folders.items() if any(map(_TEST_NAME.fullmatch, folder.names))]
    return dict.fromkeys(names, UNLABELLED)
