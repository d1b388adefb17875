"""Histograms of a dataset: numbers of pictures by class, size and number of bytes."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.format.manifest import HISTOGRAMS_SCHEMA

# Column of a shard's record and width of a bin, by quantity.
_QUANTITIES = {
    "class_index": ("class_index", 1),
    "source_width": ("source_width", 1),
    "source_height": ("source_height", 1),
    "source_bytes": ("source_bytes", 1024),
    "stored_bytes": ("num_bytes", 1024),
}


def histograms(records: Mapping[str, pa.Table]) -> pa.Table:
    """Count the stored pictures of each split by quantity and bin.

    Args:
        records: Stored pictures of each split, as in the records of its shards: columns `class_index`, `num_bytes`,
            `source_width`, `source_height`, `source_bytes`.

    Returns:
        Table of `HISTOGRAMS_SCHEMA`, sorted by value within each quantity, without empty bins.
    """
    parts = []
    for split, table in records.items():
        for quantity, (column, width) in _QUANTITIES.items():
            edges = pc.multiply(pc.divide(table[column].cast(pa.int64()), width), width)
            counted = pa.table({"value": edges}).group_by("value").aggregate([([], "count_all")]).sort_by("value")
            size = counted.num_rows
            columns = [[split] * size, [quantity] * size, counted["value"], counted["count_all"]]
            parts.append(pa.table(columns, schema=HISTOGRAMS_SCHEMA))
    return pa.concat_tables(parts).combine_chunks()
