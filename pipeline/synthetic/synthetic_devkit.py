"""The devkit of the synthetic ImageNet, built like ILSVRC-2012's.

It has the traps of the real one: the ids of the classes are not ranks of the wnids, and `synsets` ends with synsets
that have children and are not classes, with wnids before, between and after those of the classes.
"""

import gzip
import io
import tarfile
from collections.abc import Sequence

import numpy as np

from pipeline.sources.devkit import DEVKIT_GROUND_TRUTH, DEVKIT_META
from pipeline.synthetic.synthetic_pictures import class_name

_SYNSET_FIELDS = (
    "ILSVRC2012_ID",
    "WNID",
    "words",
    "gloss",
    "num_children",
    "children",
    "wordnet_height",
    "num_train_images",
)
_MAT_HEADER = b"MATLAB 5.0 MAT-file, synthetic ILSVRC2012 devkit"
_MAT_TEXT_BYTES = 116  # length of the header's text field, into which scipy writes the time


def class_wnid(class_index: int) -> str:
    """Return the wnid of a class; sorted wnids are in the order of the class indices."""
    return f"n{90_000_000 + 10 * class_index:08d}"


def ilsvrc_id(class_index: int, num_classes: int) -> int:
    """Return the ILSVRC id of a class, from 1 to `num_classes`: its index, shifted by a third of the classes."""
    return (class_index + (num_classes + 1) // 3) % num_classes + 1


def devkit_archive(num_train_images: Sequence[int], val_classes: Sequence[int]) -> bytes:
    """Return the devkit's .tar.gz.

    Args:
        num_train_images: Number of training pictures of each class.
        val_classes: class_index of each validation picture, in the order of their names.
    """
    num_classes = len(num_train_images)
    ground_truth = "".join(f"{ilsvrc_id(class_index, num_classes)}\n" for class_index in val_classes)
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, data in ((DEVKIT_GROUND_TRUTH, ground_truth.encode()), (DEVKIT_META, _meta(num_train_images))):
            add_member(tar, name, data)
    return buffer.getvalue()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a file to a tar without time or owner."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _meta(num_train_images: Sequence[int]) -> bytes:
    """Return meta.mat with `synsets`, a column of structs: the classes by ILSVRC id, then the inner synsets."""
    num_classes = len(num_train_images)
    first_half = [ilsvrc_id(index, num_classes) for index in range((num_classes + 1) // 2)]
    second_half = [number for number in range(1, num_classes + 1) if number not in first_half]
    synsets = [
        (
            ilsvrc_id(index, num_classes),
            class_wnid(index),
            class_name(index),
            f"pictures that show {class_name(index)}",
            0,
            np.zeros(0, dtype=np.uint16),
            0,
            num_images,
        )
        for index, num_images in enumerate(num_train_images)
    ]
    synsets.sort(key=lambda synset: synset[0])
    inner = (
        ("n00000001", "picture", [num_classes + 2, num_classes + 3], 2),
        ("n90000005", "first half", first_half, 1),
        ("n99999999", "second half", second_half, 1),
    )
    for number, (wnid, words, children, height) in enumerate(inner, start=num_classes + 1):
        gloss = f"synthetic pictures: {words}"
        synsets.append((number, wnid, words, gloss, len(children), np.array(children, np.uint16), height, 0))
    column = np.array(synsets, dtype=[(field, object) for field in _SYNSET_FIELDS])[:, None]
    buffer = io.BytesIO()
    from scipy.io import savemat  # imported here: the offline stage imports this module but rarely needs it

    savemat(buffer, {"synsets": column}, do_compression=True)
    return _MAT_HEADER.ljust(_MAT_TEXT_BYTES) + buffer.getvalue()[_MAT_TEXT_BYTES:]
