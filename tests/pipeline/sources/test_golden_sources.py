"""What becomes of a good source of each layout never changes: shards, indices, manifests, statistics.

The hashes are those of the revision before inventories were taken, but for Tiny ImageNet, which that could not read.
"""

import hashlib
import json

import pytest
from layouts import LAYOUTS

from pipeline import shard
from pipeline.dataset import Dataset

GOLDEN = {
    "folders": "2af9a71d1b251bdf",
    "classes": "28804aa11bc3cff3",
    "kaggle": "3f8a388e46372343",
    "tiny_imagenet": "6e699979884ebbe4",
    "official": "eb9d5a03e81d59bf",
    "idx": "0a376ae04fb78041",
    "cifar": "d985f215d4f4a94d",
    "parquet": "4ad702d58c9f8c94",
    "webdataset": "391ba0d2a9db65e0",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_good_source_gives_the_same_bytes_as_ever(tmp_path, layout):
    LAYOUTS[layout](tmp_path / "source")
    options = ["--encoding", "raw", "--size", "8", "--samples-per-shard", "7", "--workers", "1"]
    assert shard.main([str(tmp_path / "source"), str(tmp_path / "out"), *options]) == 0
    dataset = Dataset.open(tmp_path / "out")
    digest = hashlib.sha256()
    for path in sorted([*dataset.path.glob("*.tar"), *dataset.path.glob("*.idx")]):
        digest.update(path.name.encode() + path.read_bytes())
    for split in dataset.splits:  # by its values: the version of pyarrow is in the file
        digest.update(json.dumps(dataset.manifest(split).to_pylist()).encode())
    statistics = json.loads((dataset.path / "statistics/color.json").read_text())
    names = [dataset.wnids, dataset.class_names]
    digest.update(json.dumps([*names, statistics["mean"], statistics["covariance"]]).encode())
    assert digest.hexdigest()[:16] == GOLDEN[layout]
