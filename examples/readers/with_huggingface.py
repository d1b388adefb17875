"""Stream a dataset's shards with Hugging Face's datasets: python examples/readers/with_huggingface.py DATASET SPLIT.

Nothing is downloaded, copied or converted.
"""

import sys
from pathlib import Path

import numpy as np
from datasets import load_dataset

shards = [str(path) for path in sorted(Path(sys.argv[1]).glob(f"{sys.argv[2]}-*.tar"))]
labels = []
for sample in load_dataset("webdataset", data_files={"train": shards}, split="train", streaming=True):
    pixels = np.asarray(sample["jpg"] if "jpg" in sample else sample["npy"])  # uint8 (H, W, 3)
    labels.append(int(sample["cls"]))
print(f"{len(labels)} samples, the last of {pixels.shape}; first labels {labels[:8]}")
