"""Evaluate a run on a user's own unsharded pictures: class folders, or any source that the offline stage reads.

    source -> listing -> the run's classes -> pictures as the run's dataset stores them -> crops -> model -> rows

`pipeline/pictures/picture_files.py` converts the pictures; its header says how close the result is to a dataset's.
Nothing is skipped silently: classes that the run does not know are refused, or counted on request; pictures that cannot
be decoded are named and counted.
"""

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from cluster.run.run_folder import RunFolder
from cluster.worker.evaluation import BATCH_SIZE, Evaluation, empty_rows, fill, log_probabilities
from cluster.worker.evaluation_files import check_finite, describe, per_class_table, write_evaluation
from cluster.worker.evaluation_options import NUM_CROPS, Crops, UnknownClasses
from cluster.worker.prediction import classes_by_folder_name
from cluster.worker.trained_model import load_model
from pipeline.command import InputError
from pipeline.loader import Batch
from pipeline.pictures.decode import RejectedPicture
from pipeline.pictures.picture_files import evaluation_images, square_of
from pipeline.sources.base import ClassEntry, Listing, Source
from pipeline.sources.inventory import Inventory, take_inventory

_NAMED = 5  # maximum number of classes or pictures listed in a message


@dataclass(frozen=True)
class OwnPictures:
    """Pictures of a source, labelled with the classes of a run.

    Attributes:
        source: Source to read the pictures from.
        split: Split of the source.
        inventory: Inventory of the source's files.
        names: Readable names of the pictures, in the source's order.
        places: File, offset and length of each picture.
        labels_N: Class index of each picture in the run, int64.
        skipped: Name in the source -> number of pictures, for each class that the run does not know.
        absent: wnids of the run's classes without a picture.
    """

    source: Source
    split: str
    inventory: Inventory
    names: list[str]
    places: list[tuple[str, int, int]]
    labels_N: np.ndarray
    skipped: dict[str, int]
    absent: list[str]


@dataclass
class Rejects:
    """Pictures that cannot be decoded: name -> reason."""

    reasons: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the first pictures with their reasons."""
        return named([f"{name} ({reason})" for name, reason in self.reasons.items()])


def own_pictures(source: Source, run: RunFolder, split: str | None, unknown: UnknownClasses) -> OwnPictures:
    """List a source's pictures, labelled with the classes of a run.

    Args:
        source: Source to list.
        run: Run whose classes are matched by wnid, or by name if the name is unambiguous.
        split: Split of the source; None: its only split.
        unknown: Treatment of classes that the run does not know; `skip` leaves them out.

    Raises:
        InputError: The split is missing or ambiguous, the run does not know some classes, or two classes of the source
            match the same class of the run.
    """
    listing = source.list_samples()
    inventory = take_inventory(source, listing)
    split = _chosen(listing, source, split)
    table = listing.splits[split]
    class_index_N = table["class_index"].to_numpy()
    counts = np.bincount(class_index_N, minlength=len(listing.classes))
    present = {index: entry for index, entry in enumerate(listing.classes) if counts[index]}
    known = _matched(present, source, run)
    skipped = {entry.wnid: int(counts[index]) for index, entry in present.items() if index not in known}
    if skipped and (unknown == "refuse" or not known):
        way_out = "" if not known else ", or leave them out: --unknown-classes skip"
        raise InputError(
            f"{run.path} was not trained on {len(skipped)} of the classes of {source.root}: {named(list(skipped))}; "
            f"rename the folders to its {len(run.wnids)} wnids or names ({named(run.wnids)}){way_out}"
        )
    kept = np.isin(class_index_N, list(known))
    lookup = np.array([known.get(index, -1) for index in range(len(listing.classes))], dtype=np.int64)
    labels_N = lookup[class_index_N[kept]]
    rows = table.filter(kept)
    columns = (rows[name].to_pylist() for name in ("file", "offset", "num_bytes"))
    found = set(known.values())
    return OwnPictures(
        source=source,
        split=split,
        inventory=inventory,
        names=rows["source"].to_pylist(),
        places=list(zip(*columns, strict=True)),
        labels_N=labels_N,
        skipped=skipped,
        absent=[wnid for index, wnid in enumerate(run.wnids) if index not in found],
    )


def evaluate_own(
    pictures: OwnPictures, run: RunFolder, crops: Crops, out: Path, device: torch.device, num_threads: int
) -> Rejects:
    """Evaluate a run's model on pictures, write the files of `evaluation_files.py`, and return the rejected pictures.

    Only classes with a picture have a row in the results per class.

    Raises:
        InputError: There is no checkpoint, a file cannot be read, no picture can be decoded, or the model gives NaN.
    """
    torch.set_num_threads(num_threads)
    model, step = load_model(run, device)
    rows, rejects = empty_rows(len(pictures.names), device), Rejects()
    with ThreadPoolExecutor(num_threads) as threads:
        for batch in _batches(pictures, run, crops, device, threads, rejects):
            fill(rows, batch, log_probabilities(model, batch.images, run.config, device))
    kept = [index for index, name in enumerate(pictures.names) if name not in rejects.reasons]
    if not kept:
        raise InputError(f"no picture of {pictures.source.root} can be decoded: {rejects}; name another --source")
    evaluation = Evaluation.of_rows(pictures.split, rows.cpu()[kept])
    check_finite(evaluation, run)
    document = describe(run, step, crops) | {
        "source": str(pictures.source.root.resolve()),
        "skipped_classes": pictures.skipped,
        "absent_classes": pictures.absent,
        "rejected": rejects.reasons,
    }
    per_class = per_class_table(evaluation, run)
    per_class = per_class.filter(np.asarray(per_class["num_samples"]) > 0)
    write_evaluation(out, evaluation, [pictures.names[index] for index in kept], per_class, document)
    return rejects


def named(names: list[str]) -> str:
    """Return the first names as text, with the number of the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _chosen(listing: Listing, source: Source, split: str | None) -> str:
    if split is None and len(listing.splits) == 1:
        return next(iter(listing.splits))
    if split is None:
        names = ", ".join(listing.splits)
        raise InputError(f"{source.root} has the splits {names}; name one: --split {list(listing.splits)[-1]}")
    if split not in listing.splits:
        raise InputError(f"{source.root} has no split {split!r}; it has {', '.join(listing.splits)}")
    return split


def _matched(present: dict[int, ClassEntry], source: Source, run: RunFolder) -> dict[int, int]:
    """Return class index in the source -> class index in the run, for the classes that the run knows."""
    by_name = classes_by_folder_name(run.wnids, run.class_names)
    known: dict[int, int] = {}
    owner: dict[int, str] = {}
    for index, entry in present.items():
        class_index = by_name.get(entry.wnid, by_name.get(entry.name))
        if class_index is None:
            continue
        if class_index in owner:
            raise InputError(
                f"{source.root} has the classes {owner[class_index]} and {entry.wnid}, which both mean "
                f"{run.wnids[class_index]}; bring them into one folder, or leave one out: --ignore"
            )
        known[index], owner[class_index] = class_index, entry.wnid
    return known


def _batches(
    pictures: OwnPictures,
    run: RunFolder,
    crops: Crops,
    device: torch.device,
    threads: ThreadPoolExecutor,
    rejects: Rejects,
) -> Iterator[Batch]:
    """Yield all pictures that can be decoded, in order; add the others to `rejects`."""
    encoding = run.encoding

    def read(index: int) -> bytes | np.ndarray:
        file, offset, num_bytes = pictures.places[index]
        try:
            return pictures.source.read(file, offset, num_bytes)
        except OSError as error:
            path = os.path.join(pictures.source.root, file)
            raise InputError(f"{path} can't be read: {error.strerror or error}; leave it out: --ignore") from error

    def square(content: bytes | np.ndarray) -> np.ndarray | str:
        try:
            return square_of(content, encoding)
        except RejectedPicture as error:
            return str(error)

    size, total = BATCH_SIZE // NUM_CROPS[crops], len(pictures.names)
    for first in range(0, total, size):
        indices = range(first, min(first + size, total))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders set this too, but threads reset it for each other
            # Only this thread reads: the libraries behind some sources (Parquet) are not thread-safe.
            squares = dict(zip(indices, threads.map(square, map(read, indices)), strict=True))
        rejects.reasons.update({pictures.names[i]: why for i, why in squares.items() if isinstance(why, str)})
        whole = {index: pixels for index, pixels in squares.items() if not isinstance(pixels, str)}
        if not whole:
            continue
        images = evaluation_images(
            list(whole.values()),
            run.config.augmentation,
            run.color_basis,
            run.mean_image_HWC,
            ten_crops=crops == "ten",
        )
        ids = torch.tensor(list(whole))
        labels = torch.from_numpy(pictures.labels_N)[ids]
        yield Batch(torch.from_numpy(images).to(device), labels.to(device), ids, ids, ids.to(device))
