"""ImageNet's official archives, never unpacked: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit.

The training archive holds one uncompressed tar a class, so that each picture has an absolute offset in it; the
validation archive is flat. The devkit's meta.mat maps ILSVRC ids to wnids; its ground truth holds one ILSVRC id a line,
for the validation pictures in the order of their names. **ILSVRC ids are not class indices**: the class_index is the
wnid's rank.
"""

import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipeline.command import InputError
from pipeline.progress import progress_bar
from pipeline.sources.base import DEFAULT_OPTIONS, SAMPLE_SCHEMA, ClassEntry, Listing, ListingOptions
from pipeline.sources.byte_range import read_byte_range
from pipeline.sources.tar_headers import Member, scan_tar

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VAL_ARCHIVE = "ILSVRC2012_img_val.tar"
DEVKIT_ARCHIVE = "ILSVRC2012_devkit_t12.tar.gz"
DEVKIT_META = "ILSVRC2012_devkit_t12/data/meta.mat"
DEVKIT_GROUND_TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
_ARCHIVES = {  # name -> MD5 as published with them
    TRAIN_ARCHIVE: "1d675b47d978889d74fa0da5fadfb00e",
    VAL_ARCHIVE: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT_ARCHIVE: "fa75699e90414af021442c21a62c3abf",
}
_HASHED_BYTES = 1 << 24  # at a time
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


@dataclass(frozen=True)
class Devkit:
    """What the devkit says.

    Attributes:
        wnids: ILSVRC id -> wnid, of the classes (the synsets without children).
        classes: Sorted by wnid.
        ground_truth: ILSVRC id of each validation picture.
    """

    wnids: dict[int, str]
    classes: list[ClassEntry]
    ground_truth: list[int]


class OfficialArchives:
    """Reads the official archives where they lie; an archive is opened at each read."""

    layout: ClassVar[str] = "official"
    native_pixels: ClassVar[bool] = False

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None:
        """Take the folder that holds the archives."""
        self.root, self.options = root, options

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Tell whether one of the archives is there."""
        return any((root / name).is_file() for name in _ARCHIVES)

    def list_samples(self) -> Listing:
        """List all pictures, sorted by name.

        Raises:
            InputError: An archive is missing or damaged, or the archives do not fit together.
        """
        self._check_complete()
        devkit = read_devkit(self.root / DEVKIT_ARCHIVE)
        class_index = {entry.wnid: index for index, entry in enumerate(devkit.classes)}
        return Listing(
            devkit.classes, {"train": self._list_train(class_index), "val": self._list_val(devkit, class_index)}
        )

    def check_md5(self) -> None:
        """Read all archives and compare their MD5 with the published ones.

        Raises:
            InputError: An archive is missing or another than the published one.
        """
        self._check_complete()
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
        return read_byte_range(self.root / file, offset, num_bytes)

    def _check_complete(self) -> None:
        missing = [name for name in _ARCHIVES if not (self.root / name).is_file()]
        if missing:
            raise InputError(f"{self.root} lacks {', '.join(missing)}; put all of {', '.join(_ARCHIVES)} there")

    def _list_train(self, class_index: dict[str, int]) -> pa.Table:
        path = self.root / TRAIN_ARCHIVE
        tables = []
        with open(path, "rb", buffering=0) as file:
            inner_tars = sorted(scan_tar(file, 0, os.path.getsize(path)))
            self._check_classes({tar.name.removesuffix(".tar") for tar in inner_tars}, class_index)
            for tar in inner_tars:
                wnid = tar.name.removesuffix(".tar")
                members = sorted(scan_tar(file, tar.offset, tar.offset + tar.num_bytes))
                if not members:
                    raise InputError(f"{path}: {tar.name} holds no picture; get the archive again")
                tables.append(_table(TRAIN_ARCHIVE, f"{wnid}/", members, [class_index[wnid]] * len(members)))
        return pa.concat_tables(tables)

    def _check_classes(self, found: set[str], expected: Iterable[str]) -> None:
        differing = sorted(found.symmetric_difference(expected))
        if differing:
            lacks, has = ("devkit", "training archive")[:: 1 if differing[0] in found else -1]
            raise InputError(
                f"{self.root}: the {lacks} lacks {differing[0]}, which the {has} has "
                f"({len(differing)} classes differ); use archives of one release"
            )

    def _list_val(self, devkit: Devkit, class_index: dict[str, int]) -> pa.Table:
        path = self.root / VAL_ARCHIVE
        with open(path, "rb", buffering=0) as file:
            members = sorted(scan_tar(file, 0, os.path.getsize(path)))
        for number, member in enumerate(members, start=1):
            match = _VAL_NAME.fullmatch(member.name)
            if match is None or int(match[1]) != number:
                raise InputError(f"{path} holds {member.name} where picture {number} should be; get the archive again")
        if len(members) != len(devkit.ground_truth):
            raise InputError(
                f"{path} holds {len(members)} pictures, but the devkit's ground truth has "
                f"{len(devkit.ground_truth)} lines; use archives of one release"
            )
        unknown = set(devkit.ground_truth) - devkit.wnids.keys()
        if unknown:
            raise InputError(
                f"{self.root / DEVKIT_ARCHIVE}: the ground truth holds {min(unknown)}, which is not the id of a class"
            )
        labels = [class_index[devkit.wnids[number]] for number in devkit.ground_truth]
        return _table(VAL_ARCHIVE, "", members, labels)


def read_devkit(path: Path) -> Devkit:
    """Read the devkit's archive.

    Raises:
        InputError: It is damaged, or not the devkit.
    """
    from scipy.io import loadmat, matlab  # a third of a second to import, which the other layouts need not pay

    try:
        with tarfile.open(path, "r:gz") as tar:
            files = {name: tar.extractfile(name) for name in (DEVKIT_META, DEVKIT_GROUND_TRUTH)}
            contents = {name: file.read() for name, file in files.items() if file is not None}
        ground_truth = [int(line) for line in contents[DEVKIT_GROUND_TRUTH].split()]
        synsets = np.atleast_1d(loadmat(io.BytesIO(contents[DEVKIT_META]), squeeze_me=True)["synsets"])
        leaves = {
            int(synset["ILSVRC2012_ID"]): ClassEntry(str(synset["WNID"]), str(synset["words"]))
            for synset in synsets
            if synset["num_children"] == 0
        }
    except (tarfile.TarError, EOFError, zlib.error, KeyError, TypeError, ValueError, matlab.MatReadError) as error:
        raise InputError(f"{path} is not a readable ILSVRC2012 devkit ({error}); get the archive again") from error
    if not leaves or not ground_truth:
        raise InputError(f"{path} names no class or no validation picture; get the archive again")
    classes = sorted(leaves.values(), key=lambda entry: entry.wnid)
    return Devkit({number: entry.wnid for number, entry in leaves.items()}, classes, ground_truth)


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
