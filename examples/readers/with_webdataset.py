"""Read a dataset's shards with webdataset: python examples/readers/with_webdataset.py DATASET SPLIT."""

import argparse
import io
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("dataset", type=Path)
parser.add_argument("split")
arguments = parser.parse_args()
shards = sorted(map(str, arguments.dataset.glob(f"{arguments.split}-*.tar")))
if not shards:
    parser.error(f"{arguments.dataset} has no shards of {arguments.split}")
labels = []
for sample in webdataset.WebDataset(shards, shardshuffle=False):
    if "npy" in sample:
        pixels = np.load(io.BytesIO(sample["npy"]))  # uint8 (H, W, 3)
    else:
        pixels = np.asarray(Image.open(io.BytesIO(sample["jpg"])))
    labels.append(int(sample["cls"]))
print(f"{len(labels)} samples, the last of {pixels.shape}; first labels {labels[:8]}")
