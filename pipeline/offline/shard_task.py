"""The unit of work of the offline stage: one shard, written by one process, with a record of its contents.

The record (`NAME.npz`; if it exists, the shard is done) keeps the shard's manifest rows, rejects and pixel sums until
all shards are there to be merged.
"""

import contextlib
import functools
import io
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import xxhash

from pipeline.command import InputError
from pipeline.format.manifest import MANIFEST_SCHEMA, REJECTS_SCHEMA
from pipeline.offline.direct_file import WrittenFile
from pipeline.offline.ordered_map import ordered_map
from pipeline.offline.shard_writer import ShardWriter
from pipeline.offline.statistics import PixelSums
from pipeline.pictures.decode import RejectedPicture
from pipeline.pictures.encode import EncodingConfig, store_picture
from pipeline.sources.base import Source
from pipeline.system.files import atomic_file, remove_temporary_files

Executor = Literal["local", "ray"]
PLAN_JSON = "plan.json"
RECORD_ENDING = ".npz"
# The manifest in a record also has the size and length of the source picture, for the histograms.
_RECORD_SCHEMA = pa.schema(
    [*MANIFEST_SCHEMA, ("source_width", pa.int32()), ("source_height", pa.int32()), ("source_bytes", pa.int64())]
)


@dataclass(frozen=True)
class ShardTask:
    """One shard to write.

    Attributes:
        name: File name of the shard without its ending, e.g. `train-000000`.
        split: Split that the shard belongs to.
        first_index: Place of the first row in the split's global shuffle; a sample's key is its place there.
        rows: Samples (`SAMPLE_SCHEMA`) in the order in which they are written.
        wnids: Identifiers of all classes, by class_index.
    """

    name: str
    split: str
    first_index: int
    rows: pa.Table
    wnids: tuple[str, ...]


@dataclass(frozen=True)
class ShardRecord:
    """Contents of a finished shard."""

    num_planned: int
    files: dict[str, WrittenFile]
    manifest: pa.Table
    rejects: pa.Table

    def save(self, folder: Path, name: str, sums: PixelSums) -> None:
        """Write the record, which marks the shard as finished."""
        document = {
            "num_planned": self.num_planned,
            "files": {file_name: asdict(written) for file_name, written in self.files.items()},
        }
        parts = {
            "document": json.dumps(document).encode(),
            "manifest": _to_ipc(self.manifest),
            "rejects": _to_ipc(self.rejects),
        }
        arrays = {part: np.frombuffer(content, dtype=np.uint8) for part, content in parts.items()}
        with atomic_file(record_path(folder, name)) as file:
            np.savez(file, **arrays, **sums.to_arrays())  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path, name: str) -> "ShardRecord":
        """Read the record of a finished shard, without its sums."""
        with np.load(record_path(folder, name)) as arrays:
            document = json.loads(arrays["document"].tobytes())
            return cls(
                num_planned=document["num_planned"],
                files={file_name: WrittenFile(**written) for file_name, written in document["files"].items()},
                manifest=pa.ipc.open_stream(arrays["manifest"].tobytes()).read_all(),
                rejects=pa.ipc.open_stream(arrays["rejects"].tobytes()).read_all(),
            )

    @staticmethod
    def load_sums(folder: Path, name: str) -> PixelSums:
        """Read the pixel sums of a finished shard."""
        with np.load(record_path(folder, name)) as arrays:
            return PixelSums.from_arrays(arrays)


def record_path(folder: Path, name: str) -> Path:
    """Return the path of the record of a shard."""
    return folder / f"{name}{RECORD_ENDING}"


def _to_ipc(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


class _NothingStored(Exception):
    """All pictures of a shard were rejected. It gets no file: readers of tars and indices would refuse an empty one."""


def write_shard(task: ShardTask, source: Source, encoding: EncodingConfig, out: Path, partial: Path) -> int:
    """Write one shard, its index and its record, which depend only on the task and the source's bytes.

    Returns:
        Number of bytes of the shard and its index.

    Raises:
        InputError: This node does not see the output folder.
    """
    if not (partial / PLAN_JSON).exists():
        raise InputError(f"node {socket.gethostname()} does not see {out}; write to a file system that all nodes share")
    cv2.setNumThreads(1)  # the processes share the cores already
    rows, rejects, sums = [], [], PixelSums()
    writer = ShardWriter(out, task.name)
    with contextlib.suppress(_NothingStored), writer.open():
        for index, sample in enumerate(task.rows.to_pylist(), start=task.first_index):
            try:
                row = _write_sample(sample, f"{index:08d}", source, encoding, writer, sums, task.split == "train")
            except RejectedPicture as rejected:
                rejects.append(
                    {
                        "split": task.split,
                        "source": sample["source"],
                        "reason": rejected.reason,
                        "detail": rejected.detail,
                    }
                )
                continue
            rows.append(row | {"shard": f"{task.name}.tar", "wnid": task.wnids[row["class_index"]]})
        if not rows:
            raise _NothingStored
    record = ShardRecord(
        num_planned=task.rows.num_rows,
        files=writer.files,
        manifest=pa.Table.from_pylist(rows, schema=_RECORD_SCHEMA),
        rejects=pa.Table.from_pylist(rejects, schema=REJECTS_SCHEMA),
    )
    record.save(partial, task.name, sums)
    return sum(file.num_bytes for file in record.files.values())


def _write_sample(
    sample: dict[str, Any],
    key: str,
    source: Source,
    encoding: EncodingConfig,
    writer: ShardWriter,
    sums: PixelSums,
    counted: bool,
) -> dict[str, Any]:
    """Read, encode, count and write one sample; return its part of the manifest row.

    All of its pixels are released at the end, so that the next sample's use the same memory, which is still in the
    processor's cache.

    Raises:
        RejectedPicture: The sample is not a complete picture.
    """
    content = source.read(sample["file"], sample["offset"], sample["num_bytes"])
    picture = store_picture(content, encoding)
    if counted:
        sums.add_picture(picture.pixels_HWC)
    label = str(sample["class_index"]).encode()
    return {
        "key": key,
        "offset": writer.write(key, {encoding.member: picture.data, "cls": label}),
        "num_bytes": len(picture.data),
        "class_index": sample["class_index"],
        "source": sample["source"],
        "width": picture.width,
        "height": picture.height,
        "hash": xxhash.xxh3_64_intdigest(picture.data),
        "notes": ",".join(picture.notes),
        "source_width": picture.source_width,
        "source_height": picture.source_height,
        "source_bytes": len(content) if isinstance(content, bytes) else content.nbytes,
    }


def unfinished_tasks(tasks: list[ShardTask], out: Path, partial: Path) -> list[ShardTask]:
    """Return the tasks whose shards are not finished yet."""
    return [task for task in tasks if not _is_finished(task, out, partial)]


def run_tasks(
    tasks: list[ShardTask],
    source: Source,
    encoding: EncodingConfig,
    out: Path,
    partial: Path,
    executor: Executor,
    num_workers: int | None,
) -> Iterator[tuple[ShardTask, int]]:
    """Write shards; yield the tasks in order, each with its number of bytes as soon as it is finished.

    Raises:
        InputError: A worker process was killed, or no Ray cluster answers.
    """
    remove_temporary_files(out, partial)
    try:
        write = functools.partial(write_shard, source=source, encoding=encoding, out=out, partial=partial)
        if executor == "ray":
            # Ray takes a second to import, which the local executor need not pay.
            from pipeline.offline.ray_executor import ray_map

            context = ray_map(write, tasks, num_workers)
        else:
            context = ordered_map(write, tasks, num_workers or len(os.sched_getaffinity(0)))
        with context as sizes:
            yield from zip(tasks, sizes, strict=True)
    finally:
        remove_temporary_files(out, partial)


def _is_finished(task: ShardTask, out: Path, partial: Path) -> bool:
    """Return whether a shard has a record and the files that the record names are still there."""
    if not record_path(partial, task.name).exists():
        return False
    files = ShardRecord.load(partial, task.name).files
    paths = {out / name: written.num_bytes for name, written in files.items()}
    return all(path.exists() and path.stat().st_size == num_bytes for path, num_bytes in paths.items())
