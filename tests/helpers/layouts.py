"""A small good source of every layout, from a fixed seed."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.synthesize import synthesize

_SIDE = 8


def _pixels(number: int) -> np.ndarray:
    words = np.random.Philox(key=number).random_raw(3 * _SIDE * _SIDE // 8)
    return words.view(np.uint8).reshape(_SIDE, _SIDE, 3)


def _picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(_pixels(number)).save(stream, "PNG")
    return stream.getvalue()


def _save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def folders(root: Path) -> None:
    """Three classes in splits, with names for two of them."""
    for split, number in (("train", 6), ("val", 2)):
        for label in range(3):
            for index in range(number):
                _save(root / f"{split}/n0000000{label}/{index}.png", _picture(100 * label + index))
    (root / "classes.txt").write_text("n00000000 cat\nn00000001 dog\n")


def classes(root: Path) -> None:
    """Three class folders alone, with a space in their names and a folder in each."""
    for label in range(3):
        for index in range(6):
            _save(root / f"class {label}/deep/{index}.PNG", _picture(100 * label + index))


def kaggle(root: Path) -> None:
    """Kaggle's folder with three classes."""
    pictures, rows = root / "ILSVRC/Data/CLS-LOC", ["ImageId,PredictionString"]
    for label in range(3):
        for index in range(4):
            _save(pictures / f"train/n0000000{label}/n0000000{label}_{index}.JPEG", _picture(100 * label + index))
        _save(pictures / f"val/ILSVRC2012_val_0000000{label + 1}.JPEG", _picture(900 + label))
        rows.append(f"ILSVRC2012_val_0000000{label + 1},n0000000{2 - label} 1 2 3 4 ")
    (root / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    (root / "LOC_synset_mapping.txt").write_text("n00000002 c\nn00000001 b, bb\nn00000000 a\n")


def tiny_imagenet(root: Path) -> None:
    """Tiny ImageNet's folder with three classes."""
    for label in range(3):
        for index in range(4):
            _save(root / f"train/n0000000{label}/images/{index}.JPEG", _picture(100 * label + index))
        _save(root / f"val/images/val_{label}.JPEG", _picture(900 + label))
    labels = "".join(f"val_{label}.JPEG\tn0000000{2 - label}\t0\t0\t7\t7\n" for label in range(3))
    (root / "val/val_annotations.txt").write_text(labels)
    (root / "wnids.txt").write_text("n00000002\nn00000001\nn00000000\n")


def official(root: Path) -> None:
    """ImageNet's archives with three classes."""
    synthesize(root, classes=3, train_per_class=5, val_per_class=2, max_side=32)


def idx(root: Path) -> None:
    """MNIST's files with ten classes."""
    for prefix, number in (("train", 30), ("t10k", 10)):
        images = np.stack([_pixels(index)[..., 0] for index in range(number)])
        sizes = np.array([0x0803, *images.shape], ">u4").tobytes()
        _save(root / f"{prefix}-images-idx3-ubyte.gz", gzip.compress(sizes + images.tobytes()))
        labels = bytes(index % 10 for index in range(number))
        _save(root / f"{prefix}-labels-idx1-ubyte", np.array([0x0801, number], ">u4").tobytes() + labels)


def cifar(root: Path) -> None:
    """CIFAR-10's files with ten pictures each."""
    names = [*(f"data_batch_{batch}" for batch in range(1, 6)), "test_batch"]
    for batch, name in enumerate(names):
        pixels = [np.random.Philox(key=100 * batch + index).random_raw(384).tobytes() for index in range(10)]
        _save(root / f"{name}.bin", b"".join(bytes([index]) + planes for index, planes in enumerate(pixels)))
    (root / "batches.meta.txt").write_text("".join(f"name {label}\n" for label in range(10)) + "\n")


def parquet(root: Path) -> None:
    """Hugging Face's files with three classes."""
    files = {"train-00000-of-00002": (0, 9), "train-00001-of-00002": (50, 9), "validation-00000-of-00001": (700, 4)}
    (root / "data").mkdir(parents=True)
    for name, (first, number) in files.items():
        rows = [{"image": {"bytes": _picture(first + i), "path": f"{i}.png"}, "label": i % 3} for i in range(number)]
        pq.write_table(pa.Table.from_pylist(rows), root / f"data/{name}.parquet", row_group_size=4)


def webdataset(root: Path) -> None:
    """Three tars with three classes."""
    root.mkdir(exist_ok=True)
    for first, (name, number) in enumerate((("train-000000", 9), ("train-000001", 9), ("val-000000", 4))):
        with tarfile.open(root / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(number):
                members = {"png": _picture(100 * first + index), "cls": str(index % 3).encode()}
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"{index:04d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    make.__name__: make for make in (folders, classes, kaggle, tiny_imagenet, official, idx, cifar, parquet, webdataset)
}
