"""The summary of a dataset tells what its pictures are, without reading one."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import shard, stats
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.format.manifest import INVENTORY_JSON
from pipeline.online.shard_reader import ShardReader
from pipeline.paths import CHECKOUT
from pipeline.stats_text import lines_of
from pipeline.summary import Histogram, read_histogram, summarize
from pipeline.system.byte_counts import readable_bytes

NUM_PICTURES = {"cat": 9, "dog": 3, "emu": 1}
SIZES = ((40, 30), (30, 40), (32, 32))


def _picture(number: int, file_format: str) -> bytes:
    width, height = SIZES[number % len(SIZES)]
    pixels = np.random.Philox(key=number).random_raw(width * height * 3).astype(np.uint8).reshape(height, width, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, file_format)
    return stream.getvalue()


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Dataset:
    """Whole pictures of three sizes in uneven classes; a PNG, a picture without bytes, and a file of a desktop."""
    root = tmp_path_factory.mktemp("uneven")
    for name, count in NUM_PICTURES.items():
        for number in range(count):
            path = root / "source" / "train" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_picture(number, "PNG" if (name, number) == ("dog", 0) else "JPEG"))
    (root / "source" / "train" / "cat" / "empty.jpg").touch()
    (root / "source" / "train" / ".DS_Store").write_bytes(b"\0")
    options = ["--size", "24", "--crop", "none", "--val-fraction", "0", "--max-rejects", "0.2", "--workers", "1"]
    assert shard.main([str(root / "source"), str(root / "dataset"), *options]) == 0
    return Dataset.open(root / "dataset")


def test_classes_are_counted(uneven):
    split = summarize(uneven).splits["train"]
    assert split.class_counts_C.tolist() == list(NUM_PICTURES.values())
    assert (split.num_samples, split.smallest_class, split.largest_class, split.imbalance) == (13, 2, 0, 9.0)


def test_stored_sizes_and_shapes_are_those_of_the_manifest(uneven):
    split = summarize(uneven).splits["train"]
    rows = uneven.manifest("train").to_pylist()
    assert sum(split.stored_sizes.values()) == len(rows)
    assert set(split.stored_sizes) == {(row["width"], row["height"]) for row in rows}
    ratios, counts = split.aspect_ratios
    expected = sorted(row["width"] / row["height"] for row in rows)
    assert np.repeat(ratios, counts).tolist() == expected
    widths = split.histograms["stored_width"]
    assert np.repeat(widths.edges_B, widths.counts_B).tolist() == sorted(row["width"] for row in rows)


def test_notes_rejects_and_what_was_left_out_are_named(uneven):
    summary = summarize(uneven)
    assert summary.splits["train"].notes == {"png": 1}
    assert summary.rejects == {"train": {"empty": 1}}
    text = "\n".join(lines_of(summary))
    assert "notes of train: png 1" in text and "rejected from train: empty 1" in text
    assert re.search(r"source: [\d,]+ files; of them pictures: [\d,]+, archives: 0, tables", text)
    assert "left out of the source: of a NAS or desktop 1" in text or "left out of the source: hidden 1" in text
    assert "fewest pictures: emu 1, dog 3, cat 9" in text
    assert "always naming the largest class would be right for 69.2% of train" in text


@pytest.mark.parametrize("fraction", [0, 0.1, 0.5, 0.9, 1])
def test_quantiles_are_values_that_occur(fraction):
    values = np.array([1, 1, 1, 5, 7, 7, 30])
    edges, counts = np.unique(values, return_counts=True)
    expected = np.quantile(values, fraction, method="higher" if fraction < 1 else "linear")
    found = Histogram(edges, counts).quantile(fraction)
    assert found in values and abs(np.searchsorted(values, found) - np.searchsorted(values, expected)) <= 1
    assert (Histogram(edges, counts).quantile(0), Histogram(edges, counts).quantile(1)) == (1, 30)
    assert Histogram(edges, counts).quantile(0.5) == 5


def test_large_pictures_are_told_without_exponents(uneven):
    summary = summarize(uneven)
    large = Histogram(np.array([900, 12_000]), np.array([1, 2]))
    split = replace(summary.splits["train"], histograms=dict.fromkeys(summary.splits["train"].histograms, large))
    text = "\n".join(lines_of(replace(summary, splits={"train": split})))
    assert "900 / 12,000 / 12,000" in text and "0.9 / 12 / 12" in text and "e+" not in text


def test_luma_is_that_of_the_pixels(raw_dataset):
    reader = ShardReader(raw_dataset, "train")
    pixels = np.stack([reader.read(number) for number in range(raw_dataset.num_samples("train"))])
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert summarize(raw_dataset).luma == pytest.approx((luma.mean(), luma.std()), rel=1e-9)


def test_no_picture_is_read(uneven, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(uneven.path, copy, ignore=shutil.ignore_patterns("*.tar", "*.idx"))
    assert stats.main([str(copy), "--figure", str(tmp_path / "figure.png")]) == 0
    assert "13" in capsys.readouterr().out
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.size[0] > 1000


def test_the_json_document_has_the_counts_of_every_class(uneven, capsys):
    assert stats.main([str(uneven.path), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert "pictures of 3 classes" in captured.err
    train = document["splits"]["train"]
    assert train["class_counts"] == NUM_PICTURES
    assert train["source_width"] == {"min": 30, "median": 32, "max": 40}
    assert train["source_bytes"]["min"] % 1024 == 0
    assert train["stored_bytes"]["max"] == max(uneven.manifest("train")["num_bytes"].to_pylist())
    assert document["rejects"] == {"train": {"empty": 1}}
    assert document["color"]["eigenvalues"] == uneven.color_document["eigenvalues"]
    assert document["inventory"]["layout"] == "folders"


@pytest.mark.parametrize("fixture", ["raw_dataset", "jpeg_dataset", "original_dataset"])
def test_every_encoding_is_told(fixture, request, tmp_path, capsys):
    dataset = request.getfixturevalue(fixture)
    assert stats.main([str(dataset.path), "--figure", str(tmp_path / "figure.png")]) == 0
    text = capsys.readouterr().out
    assert f"encoding {dataset.encoding}" in text and "classes of val" in text
    assert sum(read_histogram(dataset, "val", "source_bytes").counts_B) == 10


@pytest.mark.parametrize("content", [None, "{", "[]", '{"num_files": 1}', '{"num_files": null, "left_out": 3}'])
def test_a_broken_inventory_is_told(content, uneven, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(uneven.path, copy)
    (copy / INVENTORY_JSON).unlink() if content is None else (copy / INVENTORY_JSON).write_text(content)
    assert stats.main([str(copy)]) == 0
    assert "source: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--figure", "figure.jpg"], "does not end in .png"),
        (["--figure", "{data}/figure.png"], "lies in the dataset"),
        (["--json", "{data}"], "is a folder; name a file to write"),
        (["--json", "{data}/dataset.json"], "lies in .* which holds only its own files"),
    ],
)
def test_wrong_options_are_refused(options, message, uneven):
    with pytest.raises(InputError, match=message):
        stats.main([str(uneven.path), *(option.format(data=uneven.path) for option in options)])


def test_a_changed_document_is_refused(uneven, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(uneven.path, copy)
    table = pq.read_table(copy / "statistics" / "histograms.parquet")
    pq.write_table(table.slice(1), copy / "statistics" / "histograms.parquet")
    with pytest.raises(InputError, match="was changed since it was written"):
        stats.main([str(copy)])


def test_a_folder_that_is_no_dataset_gets_one_line(tmp_path):
    command = [sys.executable, "-m", "pipeline.stats", str(tmp_path)]
    answer = subprocess.run(command, cwd=CHECKOUT, env=os.environ, capture_output=True, text=True)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1 and "dataset.json" in answer.stderr


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (999_600, "1 MB"), (1.5e9, "1.5 GB"), (2e15, "2,000 TB")],
)
def test_bytes_have_three_digits(num_bytes, text):
    assert readable_bytes(num_bytes) == text
