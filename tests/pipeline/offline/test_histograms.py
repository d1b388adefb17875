"""Histograms count every stored picture once for each quantity."""

import numpy as np
import pyarrow.parquet as pq

from pipeline.format.manifest import HISTOGRAMS_PARQUET


def _counts(dataset, split: str, quantity: str) -> dict[int, int]:
    rows = pq.read_table(dataset.path / HISTOGRAMS_PARQUET).to_pylist()
    return {row["value"]: row["count"] for row in rows if (row["split"], row["quantity"]) == (split, quantity)}


def test_classes_sizes_and_bytes_are_those_of_the_manifest(jpeg_dataset):
    for split in ("train", "val"):
        manifest = jpeg_dataset.manifest(split)
        values, counts = np.unique(manifest["class_index"].to_numpy(), return_counts=True)
        assert _counts(jpeg_dataset, split, "class_index") == dict(zip(values.tolist(), counts.tolist(), strict=True))
        assert _counts(jpeg_dataset, split, "source_width") == {32: manifest.num_rows}
        assert _counts(jpeg_dataset, split, "source_height") == {32: manifest.num_rows}
        bins, counts = np.unique(manifest["num_bytes"].to_numpy() // 1024 * 1024, return_counts=True)
        stored = _counts(jpeg_dataset, split, "stored_bytes")
        assert stored == dict(zip(bins.tolist(), counts.tolist(), strict=True))
        assert sum(_counts(jpeg_dataset, split, "source_bytes").values()) == manifest.num_rows
