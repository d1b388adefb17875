"""Verify a dataset folder: read everything again and compare it with `dataset.json` and the manifests.

It checks the length and SHA-256 of every file; members, offsets, index, labels and hashes of every shard; every
picture, decoded to its last pixel; classes, counts and statistics. It prints one line per problem; the exit status is 1
if there is any.

    python -m pipeline.verify DATASET
    python -m pipeline.verify DATASET --json problems.json
"""

import contextlib
import functools
import itertools
import os
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import tyro
import xxhash

from pipeline.command import InputError, run_command
from pipeline.dataset import Dataset
from pipeline.format.manifest import DATASET_JSON, INVENTORY_JSON, NPY_HEADER_BYTES, manifest_path
from pipeline.format.store import Store, StoredFile
from pipeline.json_answer import JsonTarget, completed, json_answer
from pipeline.offline.ordered_map import ordered_map
from pipeline.offline.shard_writer import index_line, index_text
from pipeline.pictures.decode import RejectedPicture, decode_picture
from pipeline.progress import progress_bar
from pipeline.system.files import sha256_file


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m pipeline.verify`."""

    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Dataset folder."""
    workers: int = len(os.sched_getaffinity(0))
    """Number of processes."""
    json: JsonTarget = None
    """File to write the problems to as JSON; without a file, standard output."""


@dataclass(frozen=True)
class ShardCheck:
    """One shard to check: its name and its rows of the manifest, in order."""

    shard: str
    rows: pa.Table

    @property
    def index(self) -> str:
        """File name of the shard's index."""
        return f"{self.shard.removesuffix('.tar')}.idx"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=completed(argv), description=__doc__)
    if arguments.workers < 1:
        raise InputError(f"--workers is {arguments.workers}; it must be at least 1")
    dataset = Dataset.open(arguments.dataset)
    problems = []
    with json_answer(arguments.json, dataset.path) as answer:
        for problem in verify(dataset, arguments.workers):
            problems.append(problem)
            sys.stdout.write(f"{problem}\n")
        num_samples, num_files = sum(map(dataset.num_samples, dataset.splits)), len(dataset.files)
        sys.stdout.write(f"{num_samples} samples in {num_files} files: {len(problems)} problem(s)\n")
        answer(
            {
                "dataset": str(dataset.path),
                "sha256": dataset.sha256,
                "num_samples": num_samples,
                "num_files": num_files,
                "problems": problems,
            }
        )
    return 1 if problems else 0


def verify(dataset: Dataset, num_workers: int) -> Iterator[str]:
    """Yield every problem of a dataset, as one line each."""
    checks: list[ShardCheck] = []
    try:
        for split in dataset.splits:
            table = dataset.manifest(split)
            yield from _manifest_problems(dataset, split, table)
            checks += _split_by_shard(table)
        _ = dataset.color_basis, dataset.class_names
    except InputError as error:
        yield str(error)
    yield from _folder_problems(dataset, {name for check in checks for name in (check.shard, check.index)})
    read = functools.partial(check_shard, store=dataset.store, member=dataset.member, listed=dataset.files)
    with (
        progress_bar(sum(check.rows.num_rows for check in checks), "verifying", "img") as bar,
        ordered_map(read, checks, num_workers) as results,
    ):
        for check, problems in zip(checks, results, strict=True):
            yield from problems
            bar.update(check.rows.num_rows)


def check_shard(check: ShardCheck, store: Store, member: str, listed: dict[str, StoredFile]) -> list[str]:
    """Return the problems of one shard.

    Args:
        check: Shard to check, with its rows of the manifest.
        store: Store that holds the dataset's files.
        member: Extension of the pictures' members, `jpg` or `npy`.
        listed: Files that `dataset.json` lists, by name.

    Returns:
        One line per problem; a shard that can't be read is a problem, not an error.
    """
    path, problems = _check_file(store, check.shard, listed)
    index_path, index_problems = _check_file(store, check.index, listed)
    problems += index_problems
    if path is None or not path.is_file():
        return problems
    try:
        with tarfile.open(path) as tar:
            members = [(info.name, info.offset_data, info.size) for info in tar]
        content = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, tarfile.TarError, ValueError) as error:
        return [*problems, f"{check.shard}: can't be read as a tar: {error}"]
    rows = check.rows.to_pylist()
    expected_names = [name for row in rows for name in (f"{row['key']}.{member}", f"{row['key']}.cls")]
    if [name for name, _, _ in members] != expected_names:
        return [*problems, f"{check.shard}: its members are not those of the manifest"]
    lines = []
    for row, picture, label in zip(rows, members[::2], members[1::2], strict=True):
        where = f"{check.shard}: sample {row['key']}"
        lines.append(index_line([(member, *picture[1:], picture[0]), ("cls", *label[1:], label[0])]))
        if (row["offset"], row["num_bytes"]) != picture[1:]:
            problems.append(
                f"{where}: the manifest has offset and length {row['offset']}, {row['num_bytes']}, "
                f"the tar {picture[1]}, {picture[2]}"
            )
        data = content[picture[1] : picture[1] + picture[2]].tobytes()
        if content[label[1] : label[1] + label[2]].tobytes() != str(row["class_index"]).encode():
            problems.append(f"{where}: its label is not the manifest's {row['class_index']}")
        if xxhash.xxh3_64_intdigest(data) != row["hash"]:
            problems.append(f"{where}: its bytes have another hash than the manifest's")
        problems += [f"{where}: {problem}" for problem in _picture_problems(data, member, row["width"], row["height"])]
    if index_path is None:
        return problems
    try:
        index = index_path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        return [*problems, f"{check.index}: can't be read: {error}"]
    if index != index_text(lines):
        problems.append(f"{check.index}: is not the index of its shard")
    return problems


def _folder_problems(dataset: Dataset, checked_later: set[str]) -> Iterator[str]:
    """Compare the existing files with those that are listed; for all except the shards, also lengths and hashes."""
    listed = set(dataset.files)
    yield from (
        f"{name}: is not listed in {DATASET_JSON}"
        for name in sorted(dataset.store.names() - {DATASET_JSON, INVENTORY_JSON} - listed)
    )
    for name in sorted(listed - checked_later):
        yield from _check_file(dataset.store, name, dataset.files)[1]


def _check_file(store: Store, name: str, listed: dict[str, StoredFile]) -> tuple[Path | None, list[str]]:
    """Return a file's path on this machine, None if it has none, and its differences from `dataset.json`."""
    if name not in listed:
        problem = f"{name}: is named by a manifest, but not listed in {DATASET_JSON}"
        with contextlib.suppress(InputError, OSError):  # it may be there all the same
            return store.local_path(StoredFile(name, num_bytes=0, sha256="")), [problem]
        return None, [problem]
    written = listed[name]
    try:
        path = store.local_path(written)
    except FileNotFoundError:
        return None, [f"{name}: is missing"]
    except (InputError, OSError) as error:
        return None, [f"{name}: {error}"]
    if not path.is_file():
        return path, [f"{name}: is missing"]
    if (num_bytes := path.stat().st_size) != written.num_bytes:
        return path, [f"{name}: has {num_bytes} bytes, {DATASET_JSON} says {written.num_bytes}"]
    if sha256_file(path) != written.sha256:
        return path, [f"{name}: has another SHA-256 than {DATASET_JSON} says"]
    return path, []


def _manifest_problems(dataset: Dataset, split: str, table: pa.Table) -> Iterator[str]:
    name = manifest_path(split)
    if table.num_rows != dataset.num_samples(split):
        yield f"{name}: has {table.num_rows} rows, {DATASET_JSON} counts {dataset.num_samples(split)}"
    if len(set(table["key"].to_pylist())) != table.num_rows:
        yield f"{name}: a key stands in it twice"
    wnids = dict(enumerate(dataset.wnids))
    pairs = zip(table["class_index"].to_pylist(), table["wnid"].to_pylist(), strict=True)
    wrong = sum(wnids.get(class_index) != wnid for class_index, wnid in pairs)
    if wrong:
        yield f"{name}: {wrong} rows have a class that is not that of their wnid"


def _split_by_shard(table: pa.Table) -> list[ShardCheck]:
    """Cut the manifest where the shard changes; a shard that occurs in two places fails its check twice."""
    shards = table["shard"].combine_chunks().dictionary_encode()
    indices = shards.indices.to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(indices)) + 1).tolist(), len(indices)]
    return [
        ShardCheck(shards.dictionary[int(indices[first])].as_py(), table.slice(first, end - first))
        for first, end in itertools.pairwise(bounds)
        if first < end
    ]


def _picture_problems(data: bytes, member: str, width: int, height: int) -> Iterator[str]:
    if member == "npy":
        if len(data) != NPY_HEADER_BYTES + width * height * 3:
            yield f"is not an array of {height}x{width}x3 bytes"
        return
    try:
        found = decode_picture(data).pixels_HWC.shape[:2]
    except RejectedPicture as rejected:
        yield f"can't be decoded ({rejected})"
        return
    if found != (height, width):
        yield f"is {found[1]}x{found[0]}, the manifest says {width}x{height}"


if __name__ == "__main__":
    run_command(main)
