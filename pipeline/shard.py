"""Shard a source of pictures into a dataset folder: WebDataset tars, DALI indices, manifest and statistics in one pass.

    python -m pipeline.shard SOURCE DATASET
    python -m pipeline.shard /data/imagenet /data/imagenet-256 --workers 32 --check-md5
    python -m pipeline.shard PHOTOS DATASET --val-fraction 0.1 --dry-run

The source's layout is recognised: the official ImageNet archives (unpacked or not), Kaggle's folder, Tiny ImageNet,
class folders, Hugging Face's Parquet files, WebDataset tars (including datasets of this project), IDX and CIFAR files.
The command first prints what the source holds. It refuses sources that are ambiguous, or with pictures that would be
left out in silence. After an interruption, the same command continues where it stopped. Without arguments, it makes a
small synthetic ImageNet in the user's cache folder and shards that.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import tyro

from pipeline import embedded
from pipeline.command import InputError, run_command
from pipeline.format.manifest import DATASET_JSON, REJECTS_PARQUET
from pipeline.offline.estimate import estimate
from pipeline.offline.publishing import reject_counts
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.shard_task import Executor
from pipeline.offline.sharding import shard_dataset
from pipeline.paths import lies_in, shared_path
from pipeline.pictures.decode import Damaged
from pipeline.pictures.encode import Crop, Encoding, EncodingConfig
from pipeline.sources.base import ListingOptions, Source
from pipeline.sources.detect import open_source
from pipeline.sources.devkit import DEVKIT_ARCHIVE
from pipeline.sources.inventory import Inventory, take_inventory
from pipeline.sources.official import OfficialArchives
from pipeline.synthesize import synthesize

_PICTURE_SIZE = 256  # as in the 2012 paper
_TRAIN = "ray job submit --working-dir . -- python jobs/train.py"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m pipeline.shard`."""

    source: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")] = None
    """Folder with the pictures or archives to read. Default: a small synthetic ImageNet."""
    out: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = None
    """Dataset folder to write."""
    layout: str | None = None
    """Layout of the source. Default: recognised."""
    encoding: Encoding | None = None
    """jpeg, raw (uint8 pixels), or original (bytes untouched). Default: jpeg; raw for sources of stored pixels."""
    size: int | None = None
    """Length of the shorter side after resizing (squash: of both), in pixels. Default: 256; native for sources of
    stored pixels."""
    crop: Crop = "centre"
    """centre: store the centre square; none: store the whole resized picture; squash: squeeze the whole picture into a
    square, like Caffe's ImageNet scripts."""
    quality: int = 95
    """JPEG quality, 1 to 95."""
    executor: Executor = "local"
    """local: processes on this machine; ray: tasks on a running cluster, all of whose nodes see SOURCE and OUT."""
    workers: int | None = None
    """Number of processes or concurrent Ray tasks. Default: number of CPUs. Does not change the output."""
    seed: int = 0
    """Seed for the global shuffle, for --val-fraction and for --max-train-samples."""
    val_fraction: float | None = None
    """Fraction of each training class that becomes `val` if the source has none. Default: 0.05."""
    val_last: int | None = None
    """Instead of --val-fraction: number of samples at the end of `train`, in the source's own order, that become `val`.
    For IDX and CIFAR files, whose order is random; many tutorials split them this way."""
    max_train_samples: int | None = None
    """For trials: number of training samples to keep, a random part of each class. `val` and `test` stay complete."""
    samples_per_shard: int = 1000
    """Planned number of samples per shard."""
    max_rejects: float = 0.001
    """Maximum fraction of rejected pictures."""
    damaged: Damaged = "reject"
    """For pictures that lack pixels. reject: leave them out; note: store what can be decoded, noted as damaged."""
    check_md5: bool = False
    """Read the official archives once beforehand and compare their MD5 sums with the published ones."""
    ignore: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Pattern of files, folders or archive members to leave out, matched against the path in SOURCE or its last part:
    --ignore '*.txt'. A pattern that begins with a slash matches only the whole path. May be repeated."""
    partial: bool = False
    """For trials: read incomplete sets, with missing numbered files."""
    dry_run: bool = False
    """Write nothing; print what SOURCE holds, the expected number of shards and bytes, and about how long sharding
    would take."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    if arguments.workers is not None and arguments.workers < 1:
        raise InputError(f"--workers is {arguments.workers}; it must be at least 1")
    size = arguments.size
    if arguments.source is None and arguments.dry_run:
        raise InputError("--dry-run writes nothing, so it cannot make the synthetic source; name a SOURCE and an OUT")
    if arguments.source is None:
        folder = embedded.dataset_folder()
        sys.stdout.write(f"no SOURCE given: sharding the embedded synthetic mini-ImageNet into {folder}\n")
        for other in embedded.datasets_of_other_versions():
            sys.stdout.write(f"{other} was left by another version and is not used; you may remove it\n")
        if (folder / DATASET_JSON).exists():
            sys.stdout.write(f"the dataset is already there; train on it with\n  {_TRAIN}\n")
            return 0
        if not (embedded.source_folder() / DEVKIT_ARCHIVE).exists():
            shutil.rmtree(embedded.source_folder(), ignore_errors=True)  # left by a kill during the renaming
            synthesize(embedded.source_folder(), workers=arguments.workers or len(os.sched_getaffinity(0)))
        source_path = embedded.source_folder()
        size = embedded.STORED_SIZE if size is None else size
    elif arguments.out is None:
        raise InputError("OUT is missing: python -m pipeline.shard SOURCE OUT")
    else:
        source_path, folder = shared_path(arguments.source, "SOURCE"), shared_path(arguments.out, "OUT")
        if lies_in(folder, source_path):
            raise InputError(f"OUT {folder} lies in SOURCE {source_path}; choose a folder outside SOURCE")
    source = open_source(source_path, arguments.layout, ListingOptions(arguments.ignore, arguments.partial))
    config = _config(arguments, source, size)
    if arguments.check_md5:
        if not isinstance(source, OfficialArchives):
            raise InputError(f"--check-md5 is for the official archives; {source_path} has the layout {source.layout}")
        source.check_md5()
    if arguments.dry_run:
        listing = source.list_samples()
        _write_inventory(take_inventory(source, listing))
        sys.stdout.write(f"{estimate(source, listing, config, arguments.workers)}\n")
        return 0
    document = shard_dataset(source, folder, config, arguments.workers, arguments.executor, _write_inventory)
    for split, counts in document["splits"].items():
        sys.stdout.write(f"{split}: {counts['num_samples']} samples in {counts['num_shards']} shards\n")
    reasons = f" ({reject_counts(pq.read_table(folder / REJECTS_PARQUET))})" if document["num_rejects"] else ""
    sys.stdout.write(f"rejected: {document['num_rejects']}{reasons}\ndataset: {folder}\n")
    return 0


def _write_inventory(inventory: Inventory) -> None:
    sys.stdout.write(f"source, layout {inventory.layout}:\n{textwrap.indent(str(inventory), '  ')}\n")
    sys.stdout.flush()


def _config(arguments: Arguments, source: Source, size: int | None) -> ShardingConfig:
    pixels = source.native_pixels
    if pixels and arguments.encoding == "original":
        raise InputError(
            "--encoding original keeps encoded files, but this source holds pixels; use --encoding raw, which is "
            "lossless"
        )
    if size is None and not pixels:
        size = _PICTURE_SIZE
    try:
        return ShardingConfig(
            encoding=EncodingConfig(
                encoding=arguments.encoding or ("raw" if pixels else "jpeg"),
                size=size,
                crop=arguments.crop,
                quality=arguments.quality,
                damaged=arguments.damaged,
            ),
            seed=arguments.seed,
            val_fraction=arguments.val_fraction,
            val_last=arguments.val_last,
            max_train_samples=arguments.max_train_samples,
            samples_per_shard=arguments.samples_per_shard,
            max_rejects=arguments.max_rejects,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


if __name__ == "__main__":
    run_command(main)
