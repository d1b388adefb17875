"""Read a dataset's shards with webdataset: python examples/readers/with_webdataset.py DATASET SPLIT."""

import io
import sys
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

shards = [str(path) for path in sorted(Path(sys.argv[1]).glob(f"{sys.argv[2]}-*.tar"))]
labels = []
for sample in webdataset.WebDataset(shards, shardshuffle=False):
    if "npy" in sample:
        pixels = np.load(io.BytesIO(sample["npy"]))  # uint8 (H, W, 3)
    else:
        pixels = np.asarray(Image.open(io.BytesIO(sample["jpg"])))
    labels.append(int(sample["cls"]))
print(f"{len(labels)} samples, the last of {pixels.shape}; first labels {labels[:8]}")
