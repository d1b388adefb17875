"""The protocol that every source of pictures follows: list the samples cheaply, read one at random.

A listing is columns, not objects: ImageNet's 1,281,167 training samples take some tens of megabytes. A row says where a
sample's bytes are (`file`, `offset`, `num_bytes`), so that any worker process can read any sample by itself.
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
        (
            "source",
            pa.string(),
        ),  # the sample's name for a person, relative to the source, unique in its split
        ("class_index", pa.int32()),
        ("file", pa.string()),  # relative to the source's root; may be the archive that holds the sample
        ("offset", pa.int64()),  # of the sample's bytes in `file` (uncompressed)
        ("num_bytes", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class ClassEntry:
    """One class: `wnid` is its identifier (a WordNet id, or a folder's name), `name` is for people."""

    wnid: str
    name: str


@dataclass(frozen=True)
class ListingOptions:
    """What a person decides about a listing.

    Attributes:
        ignore: Patterns of files, folders and members of archives that are left out; see `tree.ignored_by`.
        partial: Read sets that are incomplete, for trials: gaps in the numbers of shards, missing batches.
    """

    ignore: tuple[str, ...] = ()
    partial: bool = False


DEFAULT_OPTIONS = ListingOptions()


@dataclass(frozen=True)
class Members:
    """What archives hold: members of tars, rows, records. `num_found` is samples, labels and what was left out.

    Attributes:
        num_found: All of them.
        num_labels: Those that give labels or names, and are no samples.
        left_out: Reason -> the rest.
    """

    num_found: int
    num_labels: int = 0
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        classes: Sorted by wnid: the class_index is the rank. Sources with numbered classes (IDX) keep their numbers
            by using zero-padded numbers as wnids.
        splits: Split name (`train`, `val`, `test`) -> table of `SAMPLE_SCHEMA`, rows in an order that depends on the
            source's content alone (sorted; never the file system's order).
        tables: Files that were read for labels or names, relative to the root; they hold no sample.
        left_out: Files and folders, relative to the root, that the layout leaves out by their names -> why.
        members: What was found in the files, where these hold many samples each.
        tree: The files of the source's folder, if they were walked for the listing.
    """

    classes: Sequence[ClassEntry]
    splits: Mapping[str, pa.Table]
    tables: Sequence[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    members: Members | None = None
    tree: SourceTree | None = None


class Source(Protocol):
    """A layout's reader. Instances are picklable and cheap: opened again in each worker process.

    Attributes:
        layout: Its name on the command line.
        root: The folder that it reads.
        options: What a person decided about the listing.
    """

    layout: ClassVar[str]
    root: Path
    options: ListingOptions

    def __init__(self, root: Path, options: ListingOptions = DEFAULT_OPTIONS) -> None: ...

    @property
    def native_pixels(self) -> bool:
        """Tell whether samples are stored pixels (IDX), which stay at their native size by default."""

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Tell from names alone whether the folder `root` has this layout."""

    def list_samples(self) -> Listing:
        """List all samples of all splits.

        Raises:
            InputError: The source has this layout but is incomplete or inconsistent; names the cause.
        """

    def read(self, file: str, offset: int, num_bytes: int) -> bytes | np.ndarray:
        """Read one sample: an encoded picture's bytes, or uint8 pixels, HWC RGB, where the source stores pixels.

        For one thread at a time: the libraries behind some sources allow no more.

        Raises:
            OSError: The file can't be read or is shorter than listed.
        """
