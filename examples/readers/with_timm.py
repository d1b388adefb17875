"""Read a dataset's shards with timm: python examples/readers/with_timm.py DATASET SPLIT.

timm reads JPEGs and other encoded pictures; shards of stored pixels (`--encoding raw`) are not for it. In training,
`is_training=True` shuffles them, and `timm.data.create_loader` takes the result.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from timm.data import create_dataset

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("dataset", type=Path)
parser.add_argument("split")
arguments = parser.parse_args()
root, split = arguments.dataset, arguments.split
num_shards = len(list(root.glob(f"{split}-*.tar")))
if not num_shards:
    parser.error(f"{root} has no shards of {split}")
num_samples = pq.read_metadata(root / "manifest" / f"{split}.parquet").num_rows
shards = f"{split}-{{000000..{num_shards - 1:06d}}}.tar|{num_samples}"  # timm's own notation
labels = []
for picture, label in create_dataset("wds/own", root=str(root), split=shards):
    pixels = np.asarray(picture)  # uint8 (H, W, 3)
    labels.append(label)
print(f"{len(labels)} samples, the last of {pixels.shape}; first labels {labels[:8]}")
