"""Samples, rejects and what was left out are all that lies in a source: generated sources of every layout."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS
from source_files import check_adds_up, taken

from pipeline import shard
from pipeline.dataset import Dataset

JPEG = b"\xff\xd8\xff\xe0 and no more"
FOLDERS = ["", "notes", "train", "val", "train/n00000000", "@eaDir/x", "__MACOSX", ".hidden", "ILSVRC/Annotations"]
NAMES = ["README", "a.txt", "b.XML", ".DS_Store", "._c.jpg", "Thumbs.db", ".cache", "d.csv", "e.tar.gz", "ü\n.dat"]
JUNK = st.lists(
    st.tuples(st.sampled_from(FOLDERS), st.sampled_from(NAMES), st.sampled_from([b"", b"text", b"\0\0\0"])), max_size=8
)
IGNORED = st.lists(st.tuples(st.sampled_from(FOLDERS), st.sampled_from(["x.dat", "y", ".z.jpg"])), max_size=3)


def count_files(root: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(root))


@pytest.fixture(scope="module", params=LAYOUTS)
def good(request, tmp_path_factory):
    """Layout and folder of a good source."""
    root = tmp_path_factory.mktemp("good") / "source"
    LAYOUTS[request.param](root)
    return request.param, root


@settings(max_examples=8, deadline=None, derandomize=True)
@given(junk=JUNK, ignored=IGNORED)
def test_every_file_has_its_place_in_the_inventory(good, junk, ignored):
    layout, source = good
    with tempfile.TemporaryDirectory() as name:
        root = shutil.copytree(source, Path(name) / "source")
        expected, _ = taken(root)
        num_good = count_files(root)
        names = {(root / folder / name): content for folder, name, content in junk}
        names |= {(root / folder / name): JPEG for folder, name in ignored}
        if layout == "classes":  # each folder would be a class
            names = {path: content for path, content in names.items() if path.parent == root}
        for path, content in names.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        listing, inventory = taken(root, *(name for _, name in ignored))
        assert listing.splits == expected.splits and listing.classes == expected.classes
        assert inventory.num_files == count_files(root) == num_good + len(names)
        check_adds_up(inventory)


@pytest.mark.parametrize("layout", ["folders", "kaggle", "official", "tiny_imagenet", "webdataset", "parquet"])
def test_samples_and_rejects_are_what_was_listed(tmp_path, layout):
    root, out = tmp_path / "source", tmp_path / "out"
    LAYOUTS[layout](root)
    source, expected = taken(root)[0], {}
    for split, table in source.splits.items():
        expected[split] = set(table["source"].to_pylist())
        row = table.slice(1, 1).to_pylist()[0]
        if layout in ("parquet", "webdataset", "official"):
            continue
        (root / row["file"]).write_bytes(b"no picture of this length"[: row["num_bytes"]])
    options = ["--size", "8", "--workers", "1", "--max-rejects", "0.5", "--samples-per-shard", "5"]
    assert shard.main([str(root), str(out), *options]) == 0
    dataset, rejects = Dataset.open(out), pq.read_table(out / "rejects.parquet").to_pylist()
    for split, names in expected.items():
        stored = dataset.manifest(split)["source"].to_pylist()
        refused = [row["source"] for row in rejects if row["split"] == split]
        assert len(stored) + len(refused) == len(names) and {*stored, *refused} == names
    assert bool(rejects) == (layout in ("folders", "kaggle", "tiny_imagenet"))
    inventory = json.loads((out / "inventory.json").read_text())
    assert {split: content["num_samples"] for split, content in inventory["splits"].items()} == {
        split: len(names) for split, names in expected.items()
    }
