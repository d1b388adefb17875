"""A source of odd and broken files becomes the same dataset, to the byte, in whatever processes."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pictures import encoded, photo

from pipeline.paths import CHECKOUT
from tests.pipeline.pictures.test_odd_pictures import DAMAGED, HARMLESS, PLAIN
from tests.pipeline.pictures.test_orientation import TURNED
from tests.pipeline.pictures.test_picture_kinds import ODD_FILES


def _source(folder: Path) -> Path:
    contents = [PLAIN, *DAMAGED.values(), *(content for content, _ in HARMLESS.values()), *TURNED.values()]
    contents += [*ODD_FILES.values(), encoded(photo(), "TIFF", compression="tiff_lzw")[:-200]]
    contents += [b"<!DOCTYPE html>" * 9, b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0\x08\0\0\0", b"RIFF\0\0\0\0WEBPVP8 "]
    for number, content in enumerate(contents):
        path = folder / "train" / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def _shard(source: Path, out: Path, hash_seed: int, num_workers: int, damaged: str) -> dict[str, bytes]:
    options = ["--encoding", "original", "--size", "32", "--samples-per-shard", "20", "--max-rejects", "1"]
    options += ["--workers", str(num_workers), "--damaged", damaged, "--val-fraction", "0"]
    subprocess.run(
        [sys.executable, "-m", "pipeline.shard", str(source), str(out), *options],
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(CHECKOUT)},
        check=True,
        capture_output=True,
    )
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("damaged", ["reject", "note"])
def test_two_processes_write_the_same_bytes(tmp_path, damaged):
    source = _source(tmp_path / "source")
    first = _shard(source, tmp_path / "a", 1, 1, damaged)
    (tmp_path / "elsewhere").mkdir()
    second = _shard(source, tmp_path / "elsewhere" / "b", 2, 3, damaged)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    rejects = pq.read_table(tmp_path / "a" / "rejects.parquet").to_pylist()
    assert {row["reason"] for row in rejects} >= {"empty", "undecodable"}
    for row in rejects:
        assert len(row["detail"]) <= 200 and " at 0x" not in row["detail"] and str(tmp_path) not in row["detail"]
