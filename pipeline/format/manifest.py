"""Documents of the dataset folder: `dataset.json`, the manifests, the class list. See docs/dataset_format.md.

Readers never search the folder for files: they open `dataset.json` and read the files it names.
"""

import pyarrow as pa

FORMAT_NAME = "alexnet-at-scale"
FORMAT_VERSION = 1

DATASET_JSON = "dataset.json"
# `np.save` pads the header of a version 1.0 file to a multiple of 64 bytes; that of a uint8 picture takes 128.
NPY_HEADER_BYTES = 128
CLASSES_PARQUET = "classes.parquet"
REJECTS_PARQUET = "rejects.parquet"
INVENTORY_JSON = "inventory.json"
COLOR_JSON = "statistics/color.json"
MEAN_IMAGE_NPY = "statistics/mean_image.npy"
HISTOGRAMS_PARQUET = "statistics/histograms.parquet"

MANIFEST_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # base name of the sample's members in its shard
        ("shard", pa.string()),  # file name of the tar
        ("offset", pa.int64()),  # offset of the picture's bytes in the shard
        ("num_bytes", pa.int64()),
        ("class_index", pa.int32()),
        ("wnid", pa.string()),
        ("source", pa.string()),  # name of the sample, relative to the source
        ("width", pa.int32()),  # width of the stored picture, in pixels
        ("height", pa.int32()),  # height of the stored picture, in pixels
        ("hash", pa.uint64()),  # XXH3-64 of the picture's bytes
        ("notes", pa.string()),  # oddities that were normalised, comma-separated; empty for most
    ]
)
HISTOGRAMS_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("quantity", pa.string()),
        ("value", pa.int64()),  # lower edge of the bin
        ("count", pa.int64()),
    ]
)
# Width of the histograms' bins, by quantity.
HISTOGRAM_BIN_WIDTHS = {
    "class_index": 1,
    "source_width": 1,
    "source_height": 1,
    "source_bytes": 1024,
    "stored_bytes": 1024,
}
CLASSES_SCHEMA = pa.schema([("class_index", pa.int32()), ("wnid", pa.string()), ("name", pa.string())])
REJECTS_SCHEMA = pa.schema(
    [("split", pa.string()), ("source", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)


def manifest_path(split: str) -> str:
    """Return the path of a split's manifest in the dataset folder."""
    return f"manifest/{split}.parquet"
