"""Make a licence-free miniature of ImageNet in the official layout: archives of synthetic pictures, and a devkit.

    python -m pipeline.synthesize OUT --classes 3 --train-per-class 20 --val-per-class 5

The classes differ in shape, texture and arrangement, so they can be learned, but not by their mean colour. The same
arguments give the same bytes.
"""

import io
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Annotated, Any, Literal, get_args

import numpy as np
import tyro
from PIL import ExifTags, Image

from pipeline.command import InputError, run_command
from pipeline.format.manifest import DATASET_JSON
from pipeline.offline.ordered_map import ordered_map
from pipeline.online.order import permutation
from pipeline.online.random_streams import picture_stream
from pipeline.progress import progress_bar
from pipeline.sources.devkit import DEVKIT_ARCHIVE
from pipeline.sources.official import TRAIN_ARCHIVE, VAL_ARCHIVE
from pipeline.synthetic.synthetic_devkit import add_member, class_wnid, devkit_archive
from pipeline.synthetic.synthetic_pictures import NUM_CLASSES, draw_picture
from pipeline.system.files import atomic_file

Oddity = Literal["cmyk", "png_as_jpeg", "grey", "exif_rotated", "truncated"]
_PICTURES_PER_PROCESS = 250  # for fewer pictures, another process does not pay off
_CHUNK = 16  # pictures that a process draws at a time
_EXIF_ROTATED = 6  # EXIF 2.3, 4.6.4: row 0 of the stored pixels is the picture's right side
_JPEG_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m pipeline.synthesize`."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder for the three archives."""
    classes: int = 10
    """Number of classes, at most 1144."""
    train_per_class: int = 300
    """Training pictures per class."""
    val_per_class: int = 50
    """Validation pictures per class."""
    max_side: int = 500
    """Maximum length of a picture's longer side, in pixels. Small pictures are made quickly."""
    odd_files: bool = False
    """Add ImageNet's odd files to both archives: CMYK, a PNG named .JPEG, grey, EXIF-rotated, truncated."""
    seed: int = 0
    """Seed for all pictures."""
    workers: int = os.cpu_count() or 1
    """Number of processes. Does not change the output."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture to draw; `number` is unique in its class and split."""

    split: Literal["train", "val"]
    class_index: int
    number: int
    oddity: Oddity | None = None

    @property
    def source(self) -> str:
        """Name of the picture in the archives."""
        if self.split == "val":
            return f"ILSVRC2012_val_{self.number:08d}.JPEG"
        wnid = class_wnid(self.class_index)
        return f"{wnid}/{wnid}_{self.number}.JPEG"


def synthesize(
    out: Path,
    *,
    classes: int = Arguments.classes,
    train_per_class: int = Arguments.train_per_class,
    val_per_class: int = Arguments.val_per_class,
    max_side: int = Arguments.max_side,
    odd_files: bool = Arguments.odd_files,
    seed: int = Arguments.seed,
    workers: int = Arguments.workers,
) -> dict[str, Oddity]:
    """Write the three archives into a folder; they appear together at the end, the devkit last.

    Args:
        out: Folder for the archives; created if needed.
        classes: Number of classes.
        train_per_class: Training pictures per class.
        val_per_class: Validation pictures per class.
        max_side: Maximum length of a picture's longer side, in pixels.
        odd_files: True to add one picture of each `Oddity` to each split.
        seed: Seed for all pictures.
        workers: Number of processes; does not change the bytes.

    Returns:
        Name of each odd picture in the listing of the official layout -> its oddity.

    Raises:
        InputError: A number is out of range, or the folder is a dataset or already holds one of the archives.
    """
    _check_range("classes", classes, 1, NUM_CLASSES)
    _check_range("train-per-class", train_per_class, 1, 10**6)
    _check_range("val-per-class", val_per_class, 1, 10**6)
    _check_range("max-side", max_side, 16, 500)
    _check_range("seed", seed, 0, 2**63 - 1)
    _check_range("workers", workers, 1, 1024)
    paths = [out / name for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE)]
    if (out / DATASET_JSON).exists():
        raise InputError(f"{out} is a dataset, which holds only its own files; choose another folder")
    for path in paths:
        if path.exists():
            raise InputError(f"{path} exists already; remove it, or choose another folder")
    oddities: tuple[Oddity, ...] = get_args(Oddity) if odd_files else ()
    train, val = _plan(classes, train_per_class, val_per_class, oddities, seed)
    pictures = [*train, *val]
    num_train_images = Counter(picture.class_index for picture in train)
    devkit = devkit_archive([num_train_images[index] for index in range(classes)], [p.class_index for p in val])
    num_processes = min(workers, 1 + len(pictures) // _PICTURES_PER_PROCESS)
    with (
        atomic_file(paths[2]) as devkit_file,
        atomic_file(paths[1]) as val_file,
        atomic_file(paths[0]) as train_file,
        progress_bar(len(pictures), "synthesising", "img") as bar,
        ordered_map(partial(encode_picture, seed=seed, max_side=max_side), pictures, num_processes, _CHUNK) as encoded,
    ):
        devkit_file.write(devkit)
        members = zip(pictures, _counted(encoded, bar.update), strict=True)
        with _open_tar(train_file) as outer:
            of_train = islice(members, len(train))
            for class_index, of_class in groupby(of_train, key=lambda member: member[0].class_index):
                inner = io.BytesIO()
                _write_tar(inner, of_class)
                add_member(outer, f"{class_wnid(class_index)}.tar", inner.getvalue())
        _write_tar(val_file, members)
    return {picture.source: picture.oddity for picture in pictures if picture.oddity}


def encode_picture(picture: Picture, seed: int, max_side: int) -> bytes:
    """Draw a picture and return its file; all random choices depend only on the seed and the picture."""
    stream = picture_stream(picture.split, picture.class_index, picture.number)
    random = np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))
    image = draw_picture(picture.class_index, random, max_side)
    match picture.oddity:
        case "cmyk":
            return _encode(image.convert("CMYK"))
        case "grey":
            return _encode(image.convert("L"))
        case "png_as_jpeg":
            return _encode(image, "PNG")
        case "exif_rotated":
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = _EXIF_ROTATED
            return _encode(image.transpose(Image.Transpose.ROTATE_90), exif=exif)
        case "truncated":
            data = _encode(image)
            return data[: len(data) // 2]
    return _encode(image)


def _encode(image: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, quality=_JPEG_QUALITY, **options)
    return buffer.getvalue()


def _plan(
    classes: int, train_per_class: int, val_per_class: int, oddities: Sequence[Oddity], seed: int
) -> tuple[list[Picture], list[Picture]]:
    """Return the pictures of `train`, sorted by class, and of `val`, shuffled; in each, the odd ones are last."""
    train = []
    for class_index in range(classes):
        odd_ones = oddities[class_index::classes]
        numbered = enumerate([None] * train_per_class + list(odd_ones), start=1)
        train += [Picture("train", class_index, number, oddity) for number, oddity in numbered]
    regular = permutation(seed, 0, classes * val_per_class) % classes
    val_classes = [*regular.tolist(), *(index % classes for index in range(len(oddities)))]
    val_oddities = [None] * len(regular) + list(oddities)
    return train, [
        Picture("val", class_index, number, oddity)
        for number, (class_index, oddity) in enumerate(zip(val_classes, val_oddities, strict=True), start=1)
    ]


def _counted(items: Iterable[bytes], update: Callable[[], object]) -> Iterator[bytes]:
    """Yield the items and call `update` for each."""
    for item in items:
        update()
        yield item


def _open_tar(file: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)


def _write_tar(file: IO[bytes], members: Iterable[tuple[Picture, bytes]]) -> None:
    with _open_tar(file) as tar:
        for picture, data in members:
            add_member(tar, Path(picture.source).name, data)


def _check_range(option: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise InputError(f"--{option} is {value}; it must be {lowest} to {highest}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    odd_files = synthesize(**vars(arguments))
    for source, oddity in odd_files.items():
        sys.stdout.write(f"{oddity}: {source}\n")
    sys.stdout.write(f"archives: {arguments.out.absolute()}\n")
    return 0


if __name__ == "__main__":
    run_command(main)
