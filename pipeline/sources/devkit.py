"""ImageNet's devkit: the classes, and the labels of the validation pictures.

meta.mat maps ILSVRC ids to wnids. The ground truth holds one ILSVRC id per line, for the validation pictures in the
order of their names. **ILSVRC ids are not class indices**: the class_index is the wnid's rank.
"""

import gzip
import io
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.command import InputError
from pipeline.sources.base import ClassEntry

DEVKIT_ARCHIVE = "ILSVRC2012_devkit_t12.tar.gz"
DEVKIT_FOLDER = "ILSVRC2012_devkit_t12"  # what the archive unpacks to
DEVKIT_META = f"{DEVKIT_FOLDER}/data/meta.mat"
DEVKIT_GROUND_TRUTH = f"{DEVKIT_FOLDER}/data/ILSVRC2012_validation_ground_truth.txt"
_MAX_BYTES = 2**28  # upper bound for the unpacked devkit, which has about 20 megabytes
_MAT_HEADER_BYTES, _COMPRESSED = 128, 15  # MATLAB, "MAT-File Format", version 5
# What tarfile, gzip and SciPy raise on damaged bytes; they raise OSError without an errno.
_DAMAGE = (
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    MemoryError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Devkit:
    """Contents of the devkit.

    Attributes:
        wnids: ILSVRC id -> wnid, for the classes (the synsets without children).
        classes: Classes sorted by wnid.
        ground_truth: ILSVRC id of each validation picture.
    """

    wnids: dict[int, str]
    classes: list[ClassEntry]
    ground_truth: list[int]


def read_devkit(path: Path) -> Devkit:
    """Read the devkit.

    Args:
        path: Archive of the devkit, or the folder it unpacks to.

    Raises:
        InputError: The devkit is damaged, or the path is not a devkit.
    """
    from scipy.io import loadmat, matlab  # takes a third of a second to import; only this layout needs it

    try:
        contents = _read_folder(path) if path.is_dir() else _read_archive(path)
        _check_compressed(contents[DEVKIT_META])
        ground_truth = [int(line) for line in contents[DEVKIT_GROUND_TRUTH].split()]
        synsets = np.atleast_1d(loadmat(io.BytesIO(contents[DEVKIT_META]), squeeze_me=True)["synsets"])
        leaves = {
            int(synset["ILSVRC2012_ID"]): ClassEntry(str(synset["WNID"]), str(synset["words"]))
            for synset in synsets
            if synset["num_children"] == 0
        }
    except (*_DAMAGE, matlab.MatReadError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(f"{path} is not a readable ILSVRC2012 devkit ({error!r}); get the archive again") from error
    if not leaves or not ground_truth:
        raise InputError(f"{path} names no class or no validation picture; get the archive again")
    unknown = set(ground_truth) - leaves.keys()
    if unknown:
        raise InputError(f"{path}: the ground truth holds {min(unknown)}, which is not the id of a class")
    classes = sorted(leaves.values(), key=lambda entry: entry.wnid)
    return Devkit({number: entry.wnid for number, entry in leaves.items()}, classes, ground_truth)


def _read_archive(path: Path) -> dict[str, bytes]:
    with gzip.open(path) as file:
        content = file.read(_MAX_BYTES + 1)  # to the end, where gzip compares the checksum
    if len(content) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES} bytes")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        files = {name: tar.extractfile(name) for name in (DEVKIT_META, DEVKIT_GROUND_TRUTH)}
        return {name: file.read() for name, file in files.items() if file is not None}


def _check_compressed(meta: bytes) -> None:
    """Check the checksums of the compressed parts of a MATLAB 5 file, since damage can crash SciPy's reader.

    Raises:
        zlib.error: A part is damaged.
    """
    byte_order: Literal["little", "big"] = "little" if meta[126:128] == b"IM" else "big"
    position = _MAT_HEADER_BYTES
    while position < len(meta):
        kind, size = (int.from_bytes(meta[at : at + 4], byte_order) for at in (position, position + 4))
        position += 8 + size
        if kind == _COMPRESSED:
            zlib.decompress(meta[position - size : position])


def _read_folder(path: Path) -> dict[str, bytes]:
    paths = {name: path.parent / name for name in (DEVKIT_META, DEVKIT_GROUND_TRUTH)}
    missing = [name.partition("/")[2] for name, found in paths.items() if not found.is_file()]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; unpack {DEVKIT_ARCHIVE} again")
    return {name: found.read_bytes() for name, found in paths.items()}
