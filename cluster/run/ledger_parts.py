"""A Parquet file of a ledger: consecutive steps, the sample ids each step consumed, and a hash of each step.

The ids of an ImageNet epoch in random order, 128 per step, take 2.63 bytes each, of which 2.54 are their entropy: the
bytes of the int64 are stored plane by plane (BYTE_STREAM_SPLIT), and zstd removes the planes that are zero.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.command import InputError, UserError
from pipeline.system.files import atomic_file, names_in

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("world_size", pa.int32(), nullable=False),  # number of workers that made the step; for information
        pa.field("sample_ids", pa.list_(pa.field("element", pa.int64(), nullable=False)), nullable=False),
        pa.field("xxh3_64", pa.uint64(), nullable=False),  # hash of the step's ids as little-endian int64
    ]
)


class LedgerError(UserError):
    """The ledger fails to prove what it should; the message is one line that says what is wrong and what to do."""


@dataclass(frozen=True)
class LedgerSteps:
    """Consecutive steps as recorded.

    Attributes:
        first_step: Number of the first step, counted from 1.
        world_sizes_S: Number of workers that made each step, int32.
        sample_ids_SG: Sample ids of each step in the order of the positions, int64.
    """

    first_step: int
    world_sizes_S: np.ndarray
    sample_ids_SG: np.ndarray


@dataclass(frozen=True)
class Part:
    """A file of consecutive steps.

    Attributes:
        path: Path of the file, whose name gives the range of its steps.
        first: First step.
        last: Last step that counts; later ones are being rolled back.
        last_in_file: Last step in the file.
    """

    path: Path
    first: int
    last: int
    last_in_file: int


def part_name(kind: str, first_step: int, last_step: int) -> str:
    """Return the name of a file that holds the steps `first_step` to `last_step`."""
    return f"{kind}-{first_step:08d}-{last_step:08d}.parquet"


def parts_in(folder: Path, kind: str) -> list[Part]:
    """Return the files in a folder whose names were made by `part_name`; `kind` is a regular expression."""
    pattern = re.compile(rf"(?:{kind})-(\d{{8,}})-(\d{{8,}})\.parquet")
    matches = (pattern.fullmatch(name) for name in names_in(folder))
    return [Part(folder / match[0], int(match[1]), int(match[2]), int(match[2])) for match in matches if match]


def steps_table(first_step: int, sample_ids_SG: np.ndarray, world_size: int) -> pa.Table:
    """Return consecutive steps as rows; for the arguments, see `Ledger.append`."""
    ids_SG = np.ascontiguousarray(sample_ids_SG, dtype=np.int64)
    num_steps, global_batch_size = ids_SG.shape
    offsets = np.arange(0, ids_SG.size + 1, global_batch_size, dtype=np.int32)
    columns = [
        pa.array(np.arange(first_step, first_step + num_steps)),
        pa.array(np.full(num_steps, world_size, dtype=np.int32)),
        pa.ListArray.from_arrays(offsets, ids_SG.ravel(), type=LEDGER_SCHEMA.field("sample_ids").type),
        pa.array(_hashes(ids_SG)),
    ]
    return pa.Table.from_arrays(columns, schema=LEDGER_SCHEMA)


def _hashes(ids_SG: np.ndarray) -> np.ndarray:
    """Return each step's hash, uint64 (S,)."""
    little_endian = ids_SG.astype("<i8", copy=False)
    return np.array([xxhash.xxh3_64_intdigest(row.data) for row in little_endian], dtype=np.uint64)


def write_part(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write a part atomically, one row group per table; the same tables give the same bytes."""
    encodings = {
        "step": "DELTA_BINARY_PACKED",
        "world_size": "DELTA_BINARY_PACKED",
        "sample_ids.list.element": "BYTE_STREAM_SPLIT",
        "xxh3_64": "PLAIN",
    }
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(
            file, LEDGER_SCHEMA, compression="zstd", use_dictionary=False, column_encoding=encodings, store_schema=False
        ) as writer,
    ):
        for table in tables:
            writer.write_table(table)


def load_part(part: Part) -> pa.Table:
    """Return the rows of a part that count.

    Raises:
        LedgerError: The file is damaged, does not belong to a ledger, or its steps do not match its name.
    """
    with _open(part) as file:
        table = file.read()
    if not table.schema.equals(LEDGER_SCHEMA):
        raise LedgerError(f"{part.path} has other columns than a ledger; restore the file from a copy")
    if not np.array_equal(table["step"].to_numpy(), np.arange(part.first, part.last_in_file + 1)):
        raise LedgerError(f"{part.path} holds other steps than its name says; restore the file from a copy")
    return table.slice(0, part.last - part.first + 1)


def verified_steps(part: Part) -> LedgerSteps:
    """Return the steps of a part that count.

    Raises:
        LedgerError: See `load_part`; or the ids of a step do not match their hash, or steps differ in length.
    """
    table = load_part(part).combine_chunks()
    ids = table["sample_ids"].chunk(0)
    lengths_S = ids.value_lengths().to_numpy()
    if not (lengths_S == lengths_S[0]).all() or not lengths_S[0]:
        raise LedgerError(
            f"{part.path}: its steps have {lengths_S.min()} to {lengths_S.max()} samples; restore the file from a copy"
        )
    ids_SG = ids.flatten().to_numpy().reshape(len(ids), -1)
    wrong = np.flatnonzero(_hashes(ids_SG) != table["xxh3_64"].to_numpy())
    if len(wrong):
        raise LedgerError(
            f"{part.path}: the sample ids of step {part.first + wrong[0]} do not match the hash that was stored with "
            "them; restore the file from a copy"
        )
    return LedgerSteps(part.first, table["world_size"].to_numpy(), ids_SG)


def part_metadata(part: Part) -> pq.FileMetaData:
    """Return the metadata of a part's file.

    Raises:
        LedgerError: The file is damaged.
        InputError: The file is gone.
    """
    with _open(part) as file:
        return file.metadata


def num_ids_of(part: Part) -> int:
    """Return the number of sample ids in the file."""
    metadata, column = part_metadata(part), LEDGER_SCHEMA.get_field_index("sample_ids")
    return sum(metadata.row_group(group).column(column).num_values for group in range(metadata.num_row_groups))


@contextlib.contextmanager
def _open(part: Part) -> Iterator[pq.ParquetFile]:
    """Open a part, and turn the block's errors about its content into readable ones.

    Raises:
        LedgerError: The file is damaged.
        InputError: The file is gone.
    """
    try:
        with pq.ParquetFile(part.path) as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{part.path} was merged into another file meanwhile; run the command again") from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # an error of the file system, not of the content
            raise
        raise LedgerError(f"{part.path} is damaged ({error}); restore the file from a copy") from error
