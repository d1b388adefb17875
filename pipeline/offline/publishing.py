"""The end of the offline stage: the records of the shards become manifests, statistics and `dataset.json`.

    records -> checks -> manifests, classes, rejects, histograms, inventory -> statistics, mean image -> dataset.json

`dataset.json` lists all files except the inventory with their hashes, so it is written last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.command import InputError
from pipeline.format.manifest import (
    CLASSES_PARQUET,
    CLASSES_SCHEMA,
    COLOR_JSON,
    DATASET_JSON,
    FORMAT_NAME,
    FORMAT_VERSION,
    HISTOGRAMS_PARQUET,
    INVENTORY_JSON,
    MANIFEST_SCHEMA,
    MEAN_IMAGE_NPY,
    REJECTS_PARQUET,
    manifest_path,
)
from pipeline.offline.histograms import histograms
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.shard_task import ShardRecord, ShardTask
from pipeline.offline.statistics import PixelSums, color_document
from pipeline.sources.base import Listing
from pipeline.sources.inventory import Inventory
from pipeline.system.files import atomic_file, sha256_file, write_json, write_table


@dataclass(frozen=True)
class Contents:
    """Planned contents of a dataset.

    Attributes:
        inventory: Account of the source's files.
        listing: Classes and samples of the source.
        splits: Planned samples of each split.
        tasks: All tasks, which are finished, in the order of the shards.
    """

    inventory: Inventory
    listing: Listing
    splits: Mapping[str, pa.Table]
    tasks: Sequence[ShardTask]


def publish(out: Path, partial: Path, contents: Contents, config: ShardingConfig) -> dict[str, Any]:
    """Write everything except the shards, and return `dataset.json`.

    Args:
        out: Dataset folder, which holds the shards.
        partial: Folder with the records of the shards.
        contents: Planned contents of the dataset.
        config: Configuration of the dataset.

    Raises:
        InputError: Too many pictures were rejected, or all of a split.
    """
    records = [ShardRecord.load(partial, task.name) for task in contents.tasks]
    rejects = pa.concat_tables([record.rejects for record in records])
    _check_rejects(contents, records, rejects, config.max_rejects)
    stored = _stored(contents, records, rejects)
    for split, table in stored.items():
        write_table(out / manifest_path(split), table.select(MANIFEST_SCHEMA.names))
    class_rows = [{"class_index": i, "wnid": c.wnid, "name": c.name} for i, c in enumerate(contents.listing.classes)]
    write_table(out / CLASSES_PARQUET, pa.Table.from_pylist(class_rows, schema=CLASSES_SCHEMA))
    write_table(out / REJECTS_PARQUET, rejects)
    write_table(out / HISTOGRAMS_PARQUET, histograms(stored))
    # dataset.json does not list the inventory: other files beside the pictures don't make another dataset.
    write_json(out / INVENTORY_JSON, contents.inventory.document())
    names = [*map(manifest_path, stored), CLASSES_PARQUET, REJECTS_PARQUET, HISTOGRAMS_PARQUET]
    names += _write_statistics(out, partial, contents.tasks, config)
    files = {name: asdict(written) for record in records for name, written in record.files.items()}
    files |= {name: {"num_bytes": (out / name).stat().st_size, "sha256": sha256_file(out / name)} for name in names}
    document = {
        "format": FORMAT_NAME,
        "format_version": FORMAT_VERSION,
        "source_layout": contents.inventory.layout,
        **config.document(),
        "num_classes": len(contents.listing.classes),
        "splits": {
            split: {"num_samples": table.num_rows, "num_shards": len(table["shard"].unique())}
            for split, table in stored.items()
        },
        "num_rejects": rejects.num_rows,
        "files": dict(sorted(files.items())),
    }
    write_json(out / DATASET_JSON, document)
    return document


def _check_rejects(contents: Contents, records: Sequence[ShardRecord], rejects: pa.Table, max_rejects: float) -> None:
    """Check that every planned sample was either stored or rejected, and that not too many were rejected."""
    num_planned = sum(table.num_rows for table in contents.splits.values())
    num_stored = sum(record.manifest.num_rows for record in records)
    if num_stored + rejects.num_rows != num_planned:
        raise RuntimeError(f"{num_planned} samples in, but {num_stored} stored and {rejects.num_rows} rejected")
    if rejects.num_rows > max_rejects * num_planned:
        raise InputError(_too_many_rejects(rejects, num_planned, max_rejects))


def _stored(contents: Contents, records: Sequence[ShardRecord], rejects: pa.Table) -> dict[str, pa.Table]:
    """Return the stored samples of each split, in the order of the shards."""
    stored = {}
    for split in contents.splits:
        parts = [record for task, record in zip(contents.tasks, records, strict=True) if task.split == split]
        stored[split] = pa.concat_tables([record.manifest for record in parts])
        if stored[split].num_rows == 0:
            raise InputError(f"every picture of {split} was rejected: {reject_counts(rejects)}")
    return stored


def _write_statistics(out: Path, partial: Path, tasks: Sequence[ShardTask], config: ShardingConfig) -> list[str]:
    """Write the colour statistics and, if all pictures have one size, the mean image; return the names of the files."""
    sums = PixelSums()
    for task in tasks:
        if task.split == "train":
            sums += ShardRecord.load_sums(partial, task.name)
    manifest_sha256 = sha256_file(out / manifest_path("train"))
    write_json(out / COLOR_JSON, color_document(sums, config.encoding.resize_rule, manifest_sha256))
    mean_image_HWC = sums.mean_image_HWC()
    if mean_image_HWC is None:
        return [COLOR_JSON]
    with atomic_file(out / MEAN_IMAGE_NPY) as file:
        np.save(file, mean_image_HWC)
    return [COLOR_JSON, MEAN_IMAGE_NPY]


def reject_counts(rejects: pa.Table) -> str:
    """Return a text that says how many pictures were rejected for which reason."""
    counted = rejects.group_by("reason").aggregate([("reason", "count")]).sort_by("reason").to_pylist()
    return ", ".join(f"{row['reason_count']} {row['reason']}" for row in counted)


def _too_many_rejects(rejects: pa.Table, num_planned: int, max_rejects: float) -> str:
    first = rejects.slice(0, 1).to_pylist()[0]
    return (
        f"{rejects.num_rows} of {num_planned} pictures were rejected ({reject_counts(rejects)}; "
        f"first: {first['source']}: {first['detail']}), more than --max-rejects {max_rejects:g}; "
        f"raise the limit, or repair the source and remove the folder"
    )
