"""Faults from outside: a full disk, a target that can't be written, a source that changes while it is read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.paths import CHECKOUT


@pytest.fixture
def source(tmp_path):
    """Forty pictures in two classes."""
    for number in range(40):
        folder = tmp_path / "source" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((96, 96), 60).convert("RGB").save(folder / f"{number}.jpg", quality=95)
    return tmp_path / "source"


def _shard(source: Path, out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "pipeline.shard",
        source,
        out,
        "--size",
        "96",
        "--samples-per-shard",
        "5",
        *options,
    ]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)


def _error_line(answer: subprocess.CompletedProcess) -> str:
    assert answer.returncode == 2, answer.stderr
    assert "Traceback" not in answer.stderr
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0 and os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    assert mounted.returncode == 0, mounted.stderr
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_full_disk_ends_with_one_line_and_the_run_resumes(source, small_disk, tmp_path, workers):
    assert "No space left on device" in _error_line(_shard(source, small_disk / "out", "--workers", workers))
    assert not (small_disk / "out" / "dataset.json").exists()
    assert not list(small_disk.rglob(".*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert _shard(source, small_disk / "out", "--workers", workers).returncode == 0
    assert _shard(source, tmp_path / "undisturbed").returncode == 0
    written = (small_disk / "out" / "dataset.json").read_bytes()
    assert written == (tmp_path / "undisturbed" / "dataset.json").read_bytes()


def test_the_run_ends_with_a_count_of_rejects_by_reason(source, tmp_path):
    (source / "class0" / "empty.jpg").touch()
    for number in range(2):
        (source / "class1" / f"rubbish{number}.jpg").write_text("no picture")
    answer = _shard(source, tmp_path / "out", "--max-rejects", "0.1")
    assert answer.returncode == 0, answer.stderr
    assert "rejected: 3 (1 empty, 2 undecodable)" in answer.stdout
    line = _error_line(_shard(source, tmp_path / "strict"))
    assert line.startswith("error: 3 of 43 pictures were rejected (1 empty, 2 undecodable; first: ")


def test_a_target_that_is_a_file_is_refused(source, tmp_path):
    target = tmp_path / "file"
    target.write_text("mine")
    _error_line(_shard(source, target))
    assert target.read_text() == "mine"


def test_a_read_only_target_is_refused(source, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert "Read-only file system" in _error_line(_shard(source, small_disk / "out"))


CHANGING = """
import sys
from pathlib import Path
from pipeline import shard
from pipeline.command import run_command
from pipeline.sources.folders import ClassFolders
list_samples = ClassFolders.list_samples
def list_then_change(self):
    listing = list_samples(self)
    path = Path(sys.argv[1]) / "class0" / "0.jpg"
    path.write_bytes(path.read_bytes() + b"more")
    return listing
ClassFolders.list_samples = list_then_change
run_command(shard.main)
"""


def test_a_picture_that_changed_since_it_was_listed_is_named(source, tmp_path):
    command = [sys.executable, "-c", CHANGING, source, tmp_path / "out", "--workers", "1"]
    answer = subprocess.run(command, cwd=CHECKOUT, env=os.environ, capture_output=True, text=True)
    line = _error_line(answer)
    assert "when it was listed" in line and "class0/0.jpg" in line
    assert not (tmp_path / "out" / "dataset.json").exists()
