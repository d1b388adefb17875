"""Readers that no one here wrote read the shards: the same samples, the same labels."""

import gc
import io
import subprocess
import tarfile

import numpy as np
import pytest
import webdataset
from nvidia.dali import fn, pipeline_def, types

from pipeline.online.shard_reader import ShardReader


def _expected(dataset):
    manifest, reader = dataset.manifest("train").to_pylist(), ShardReader(dataset, "train")
    return {row["key"]: (row["class_index"], reader.read(i).tobytes()) for i, row in enumerate(manifest)}


def _shards(dataset):
    return sorted(str(dataset.path / name) for name in set(dataset.manifest("train")["shard"].to_pylist()))


def _webdataset(dataset):
    samples = list(webdataset.WebDataset(_shards(dataset), shardshuffle=False))
    gc.collect()  # webdataset leaves its shards open: the warning is to be raised here, where it is expected
    return samples


leaves_files_open = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@leaves_files_open
def test_webdataset_reads_pixels(raw_dataset):
    samples = _webdataset(raw_dataset)
    found = {s["__key__"]: (int(s["cls"]), np.load(io.BytesIO(s["npy"])).tobytes()) for s in samples}
    assert found == _expected(raw_dataset)


@leaves_files_open
def test_webdataset_reads_jpegs(jpeg_dataset):
    samples = _webdataset(jpeg_dataset)
    assert {s["__key__"]: (int(s["cls"]), s["jpg"]) for s in samples} == _expected(jpeg_dataset)


def test_dalis_own_reader_reads_jpegs_by_our_index(jpeg_dataset):
    expected = sorted(_expected(jpeg_dataset).values())
    shards = _shards(jpeg_dataset)

    @pipeline_def(batch_size=len(expected), num_threads=1, device_id=None)
    def graph():
        jpegs, labels = fn.readers.webdataset(
            paths=shards,
            index_paths=[path.replace(".tar", ".idx") for path in shards],
            ext=["jpg", "cls"],
            dtypes=[types.UINT8, types.UINT8],
        )
        return jpegs, labels

    pipeline = graph()
    pipeline.build()
    jpegs, labels = pipeline.run()
    found = [(int(labels.at(i).tobytes()), jpegs.at(i).tobytes()) for i in range(len(expected))]
    assert sorted(found) == expected


@pytest.mark.parametrize("command", [["tar", "-xOf"], None], ids=["GNU tar", "tarfile"])
def test_tar_programs_read_the_members(jpeg_dataset, command):
    row = jpeg_dataset.manifest("train").to_pylist()[20]
    shard, member = jpeg_dataset.path / row["shard"], f"{row['key']}.jpg"
    if command:
        content = subprocess.run([*command, str(shard), member], capture_output=True, check=True).stdout
    else:
        with tarfile.open(shard) as tar:
            content = tar.extractfile(member).read()
            assert tar.getmember(member).offset_data == row["offset"]
    assert content == _expected(jpeg_dataset)[row["key"]][1]
