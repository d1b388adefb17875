"""Atomic files, which appear complete or not at all. Standard library only, but for tables."""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name only once it is complete.

    The file is flushed to disk before it is renamed. If the block raises, nothing remains.
    """
    with renamed_at_end(path) as aside, open(aside, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def renamed_at_end(path: Path) -> Iterator[Path]:
    """Yield a path for a file to write and flush; at the end, the file is renamed to `path`.

    If the block raises, the file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # unique to this writer, even across hosts
    try:
        yield aside
        os.replace(aside, path)
        flush_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Return whether a file has the name of an unfinished file of this project, as a kill leaves them."""
    return re.fullmatch(r"\..+[.-][0-9a-f]{32}\.tmp", name) is not None


def remove_temporary_files(*folders: Path) -> None:
    """Remove the unfinished files that killed processes of this project left in folders, and nothing else."""
    for folder in folders:
        for name in names_in(folder):
            if is_temporary(name):
                (folder / name).unlink(missing_ok=True)


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none if the folder does not exist.

    Raises:
        OSError: The folder can't be listed; `Path.glob` would treat it as empty.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def flush_folder(folder: Path) -> None:
    """Make new, renamed and removed entries of a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON document atomically, with keys in the given order and a trailing newline.

    Raises:
        ValueError: It holds NaN or infinity, which are not JSON: most readers refuse them.
    """
    with atomic_file(path) as file:
        file.write((json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def write_table(path: Path, table: "pa.Table") -> None:
    """Write a Parquet file atomically; the same rows give the same bytes."""
    import pyarrow.parquet as pq  # here: the doctor writes its findings where pyarrow is missing

    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd", store_schema=False)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
