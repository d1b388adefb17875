"""The protocol of a source of pictures: list the samples cheaply, read any one of them.

A listing is stored as columns, not objects: ImageNet's 1,281,167 training samples take a few tens of megabytes. Each
row says where a sample's bytes are (`file`, `offset`, `num_bytes`), so any process can read any sample by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import pyarrow as pa

from pipeline.sources.tree import LeftOut, SourceTree

SPLITS = ("train", "val", "test")

SAMPLE_SCHEMA = pa.schema(
    [
        # The sample's name for a person: relative to the source, unique in its split.
        ("source", pa.string()),
        ("class_index", pa.int32()),
        ("file", pa.string()),  # path relative to the source's root; may be the archive that holds the sample
        ("offset", pa.int64()),  # offset of the sample's bytes in `file` (uncompressed)
        ("num_bytes", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class ClassEntry:
    """One class.

    Attributes:
        wnid: Identifier: a WordNet id, or a folder's name.
        name: Name for people.
    """

    wnid: str
    name: str


@dataclass(frozen=True)
class ListingOptions:
    """User's options for a listing.

    Attributes:
        ignore: Patterns of files, folders and archive members to leave out; see `tree.ignored_by`.
        partial: True to read incomplete sets, for trials: with gaps in the shard numbers, or missing batches.
    """

    ignore: tuple[str, ...] = ()
    partial: bool = False


DEFAULT_OPTIONS = ListingOptions()


@dataclass(frozen=True)
class Members:
    """Contents of archives: tar members, rows or records.

    Attributes:
        num_found: Number of all members: samples, labels and those left out.
        num_labels: Number of members that give labels or names and are not samples.
        left_out: Reason -> members left out for it.
    """

    num_found: int
    num_labels: int = 0
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """Contents of a source.

    Attributes:
        classes: Classes sorted by wnid; the class_index is the rank. Sources with numbered classes (IDX) keep their
            numbers by using zero-padded numbers as wnids.
        splits: Split name (`train`, `val`, `test`) -> table of `SAMPLE_SCHEMA`. The order of the rows depends only on
            the source's content (sorted; never the file system's order).
        tables: Paths of files read for labels or names, relative to the root; they hold no samples.
        left_out: Path of a file or folder that the layout leaves out by its name, relative to the root -> reason.
        members: Members found in the files, if each file holds many samples.
        tree: Files of the source's folder, if it was walked for the listing.
    """

    classes: Sequence[ClassEntry]
    splits: Mapping[str, pa.Table]
    tables: Sequence[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    members: Members | None = None
    tree: SourceTree | None = None


class Source(Protocol):
    """Reader of one layout. Instances are picklable and cheap; each worker process opens its files again.

    Attributes:
        layout: Name of the layout on the command line.
        root: Folder to read.
        options: User's options for the listing.
    """

    layout: ClassVar[str]
    root: Path
    options: ListingOptions

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None: ...

    @property
    def native_pixels(self) -> bool:
        """Whether samples are stored pixels (IDX), which keep their native size by default."""

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Return whether the folder `root` has this layout, judging by names alone."""

    def list_samples(self) -> Listing:
        """List all samples of all splits.

        Raises:
            InputError: The source has this layout but is incomplete or inconsistent; the message names the cause.
        """

    def read(self, file: str, offset: int, num_bytes: int) -> bytes | np.ndarray:
        """Read one sample: an encoded picture's bytes, or uint8 RGB pixels (H, W, 3) if the source stores pixels.

        Not thread-safe: some of the libraries used allow only one thread at a time.

        Raises:
            OSError: The file can't be read or is shorter than listed.
        """
