"""Histograms of a dataset: numbers of pictures by class, size and number of bytes."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.format.manifest import HISTOGRAM_BIN_WIDTHS, HISTOGRAMS_SCHEMA

_COLUMNS = {"stored_bytes": "num_bytes"}  # of a shard's record, where they are not called as the quantity is


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
        for quantity, width in HISTOGRAM_BIN_WIDTHS.items():
            values = table[_COLUMNS.get(quantity, quantity)].cast(pa.int64())
            edges = pc.multiply(pc.divide(values, width), width)
            counted = pa.table({"value": edges}).group_by("value").aggregate([([], "count_all")]).sort_by("value")
            size = counted.num_rows
            columns = [[split] * size, [quantity] * size, counted["value"], counted["count_all"]]
            parts.append(pa.table(columns, schema=HISTOGRAMS_SCHEMA))
    return pa.concat_tables(parts).combine_chunks()
