"""Stream a dataset's shards with Hugging Face's datasets: python examples/readers/with_huggingface.py DATASET SPLIT.

Nothing is downloaded, copied or converted.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import load_dataset

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("dataset", type=Path)
parser.add_argument("split")
arguments = parser.parse_args()
shards = sorted(map(str, arguments.dataset.glob(f"{arguments.split}-*.tar")))
if not shards:
    parser.error(f"{arguments.dataset} has no shards of {arguments.split}")
labels = []
for sample in load_dataset("webdataset", data_files={"train": shards}, split="train", streaming=True):
    pixels = np.asarray(sample["jpg"] if "jpg" in sample else sample["npy"])  # uint8 (H, W, 3)
    labels.append(int(sample["cls"]))
print(f"{len(labels)} samples, the last of {pixels.shape}; first labels {labels[:8]}")
