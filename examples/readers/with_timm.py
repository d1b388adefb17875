"""Read a dataset's shards with timm: python examples/readers/with_timm.py DATASET SPLIT.

timm reads JPEGs and other encoded pictures; shards of stored pixels (`--encoding raw`) are not for it. In training,
`is_training=True` shuffles them, and `timm.data.create_loader` takes the result.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from timm.data import create_dataset

root, split = Path(sys.argv[1]), sys.argv[2]
num_samples = pq.read_metadata(root / "manifest" / f"{split}.parquet").num_rows
num_shards = len(list(root.glob(f"{split}-*.tar")))
shards = f"{split}-{{000000..{num_shards - 1:06d}}}.tar|{num_samples}"  # timm's own notation
labels = []
for picture, label in create_dataset("wds/own", root=str(root), split=shards):
    pixels = np.asarray(picture)  # uint8 (H, W, 3)
    labels.append(label)
print(f"{len(labels)} samples, the last of {pixels.shape}; first labels {labels[:8]}")
