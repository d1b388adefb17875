"""What a dataset holds, told by its own files without reading a picture.

Numbers of pictures come from `statistics/histograms.parquet` and the manifests, colours from `statistics/color.json`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import Dataset
from pipeline.format.color import ColorBasis
from pipeline.format.manifest import HISTOGRAM_BIN_WIDTHS, MEAN_IMAGE_NPY

# Of red, green and blue in the luma of a JPEG (ITU-R BT.601, JFIF 1.02).
_LUMA_3 = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, eq=False)
class Histogram:
    """Numbers of pictures by the value of a quantity.

    Attributes:
        edges_B: Lower edges of the bins that are not empty, ascending; int64 (B,).
        counts_B: Number of pictures in each bin; int64 (B,).
        bin_width: Width of every bin; 1: the edges are the values.
    """

    edges_B: np.ndarray
    counts_B: np.ndarray
    bin_width: int = 1

    @property
    def num_samples(self) -> int:
        """Number of pictures."""
        return int(self.counts_B.sum())

    def quantile(self, fraction: float) -> int:
        """Return the lower edge of the bin that holds a quantile: 0 the least value, 0.5 the median, 1 the greatest."""
        rank = min(int(fraction * self.num_samples), self.num_samples - 1)
        return int(self.edges_B[np.searchsorted(np.cumsum(self.counts_B), rank, side="right")])

    def document(self) -> dict[str, int]:
        """Return the least, the median and the greatest value; with bins wider than 1, their bins' lower edges."""
        return {"min": self.quantile(0), "median": self.quantile(0.5), "max": self.quantile(1)}


@dataclass(frozen=True, eq=False)
class SplitSummary:
    """Contents of a split.

    Attributes:
        name: Name of the split.
        num_shards: Number of its shards.
        num_bytes: Bytes of its shards and their indices.
        class_counts_C: Number of pictures of each class, by class_index; int64 (C,), zeros included.
        histograms: Quantity -> histogram: `source_width`, `source_height` (upright source pictures, in pixels),
            `source_bytes` (in bins), `stored_width`, `stored_height`, `stored_bytes`.
        stored_sizes: (width, height) of stored pictures -> number of pictures, the most frequent first.
        notes: Note -> number of pictures that have it, the most frequent first.
    """

    name: str
    num_shards: int
    num_bytes: int
    class_counts_C: np.ndarray
    histograms: Mapping[str, Histogram]
    stored_sizes: Mapping[tuple[int, int], int]
    notes: Mapping[str, int]

    @property
    def num_samples(self) -> int:
        """Number of pictures."""
        return int(self.class_counts_C.sum())

    @property
    def smallest_class(self) -> int:
        """Class_index of the class with the fewest pictures, of those that have any."""
        counts_C = np.where(self.class_counts_C > 0, self.class_counts_C, np.iinfo(np.int64).max)
        return int(counts_C.argmin())

    @property
    def largest_class(self) -> int:
        """Class_index of the class with the most pictures."""
        return int(self.class_counts_C.argmax())

    @property
    def imbalance(self) -> float:
        """Number of pictures of the largest class, divided by that of the smallest class that has any."""
        return float(self.class_counts_C[self.largest_class] / self.class_counts_C[self.smallest_class])

    @property
    def aspect_ratios(self) -> tuple[np.ndarray, np.ndarray]:
        """Widths divided by heights of stored pictures, ascending, and the number of pictures that have each."""
        counts: Counter[float] = Counter()
        for (width, height), count in self.stored_sizes.items():
            counts[width / height] += count
        ratios = sorted(counts)
        return np.array(ratios), np.array([counts[ratio] for ratio in ratios], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class DatasetSummary:
    """Contents of a dataset.

    Attributes:
        dataset: The dataset.
        splits: Its splits, by name.
        rejects: Split -> reason -> number of rejected pictures.
    """

    dataset: Dataset
    splits: Mapping[str, SplitSummary]
    rejects: Mapping[str, Mapping[str, int]]

    @property
    def num_samples(self) -> int:
        """Number of pictures in all splits."""
        return sum(split.num_samples for split in self.splits.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all files that `dataset.json` lists."""
        return sum(file.num_bytes for file in self.dataset.files.values())

    @property
    def has_mean_image(self) -> bool:
        """Whether the dataset has a mean image: its pictures have one size."""
        return MEAN_IMAGE_NPY in self.dataset.files

    @property
    def luma(self) -> tuple[float, float]:
        """Mean and standard deviation of the training pixels' luma (ITU-R BT.601), in grey levels."""
        return luma_of(self.dataset.color_basis)

    def document(self) -> dict[str, Any]:
        """Return the summary as a JSON document."""
        dataset, color = self.dataset, dict(self.dataset.color_document)
        mean, deviation = self.luma
        return {
            "dataset": str(dataset.path),
            "sha256": dataset.sha256,
            "source_layout": dataset.document["source_layout"],
            "encoding": dataset.document["encoding"],
            "num_samples": self.num_samples,
            "num_classes": dataset.num_classes,
            "num_bytes": self.num_bytes,
            "splits": {name: self._split_document(split) for name, split in self.splits.items()},
            "rejects": {split: dict(reasons) for split, reasons in self.rejects.items()},
            "color": color | {"luma": {"mean": mean / color["pixel_scale"], "std": deviation / color["pixel_scale"]}},
            "inventory": dataset.inventory,
        }

    def _split_document(self, split: SplitSummary) -> dict[str, Any]:
        ratios, counts = split.aspect_ratios
        return {
            "num_samples": split.num_samples,
            "num_shards": split.num_shards,
            "num_bytes": split.num_bytes,
            "class_counts": dict(zip(self.dataset.wnids, split.class_counts_C.tolist(), strict=True)),
            "smallest_class": self.dataset.wnids[split.smallest_class],
            "largest_class": self.dataset.wnids[split.largest_class],
            "imbalance": split.imbalance,
            **{name: histogram.document() for name, histogram in split.histograms.items()},
            "num_stored_sizes": len(split.stored_sizes),
            "aspect_ratio": {
                "min": float(ratios[0]),
                "mean": float(np.average(ratios, weights=counts)),
                "max": float(ratios[-1]),
            },
            "notes": dict(split.notes),
        }


def summarize(dataset: Dataset) -> DatasetSummary:
    """Return what a dataset holds.

    Raises:
        InputError: One of its documents is missing or was changed.
    """
    splits = {name: _summarize_split(dataset, name) for name in dataset.splits}
    rejects: dict[str, dict[str, int]] = {}
    counted = dataset.rejects.group_by(["split", "reason"]).aggregate([([], "count_all")])
    for row in counted.sort_by("reason").to_pylist():
        rejects.setdefault(row["split"], {})[row["reason"]] = row["count_all"]
    return DatasetSummary(dataset, splits, rejects)


def read_histogram(dataset: Dataset, split: str, quantity: str) -> Histogram:
    """Return a histogram of a split.

    Args:
        dataset: The dataset.
        split: Name of the split.
        quantity: One of `HISTOGRAM_BIN_WIDTHS`.
    """
    table = dataset.histograms
    rows = table.filter(pc.and_(pc.equal(table["split"], split), pc.equal(table["quantity"], quantity)))
    edges_B, counts_B = rows["value"].to_numpy(), rows["count"].to_numpy()
    return Histogram(edges_B, counts_B, HISTOGRAM_BIN_WIDTHS[quantity])


def luma_of(basis: ColorBasis) -> tuple[float, float]:
    """Return mean and standard deviation of luma (ITU-R BT.601) over all training pixels, in grey levels.

    Luma is a weighted sum of red, green and blue, so both follow from the mean and the covariance of the colours.
    """
    variance = _LUMA_3 @ basis.covariance_33 @ _LUMA_3
    return float(_LUMA_3 @ basis.mean_3) * basis.pixel_scale, float(np.sqrt(variance)) * basis.pixel_scale


def _summarize_split(dataset: Dataset, name: str) -> SplitSummary:
    classes = read_histogram(dataset, name, "class_index")
    class_counts_C = np.zeros(dataset.num_classes, dtype=np.int64)
    class_counts_C[classes.edges_B] = classes.counts_B
    manifest = dataset.manifest(name, ["shard", "width", "height", "num_bytes", "notes"])
    sizes = _sizes(manifest)
    shards = manifest["shard"].unique().to_pylist()
    files = [*shards, *(f"{shard.removesuffix('.tar')}.idx" for shard in shards)]
    return SplitSummary(
        name=name,
        num_shards=len(shards),
        num_bytes=sum(dataset.listed(file).num_bytes for file in files),
        class_counts_C=class_counts_C,
        histograms={
            "source_width": read_histogram(dataset, name, "source_width"),
            "source_height": read_histogram(dataset, name, "source_height"),
            "source_bytes": read_histogram(dataset, name, "source_bytes"),
            "stored_width": _counted((width, count) for (width, _), count in sizes.items()),
            "stored_height": _counted((height, count) for (_, height), count in sizes.items()),
            "stored_bytes": _counted(_values(manifest["num_bytes"])),
        },
        stored_sizes=sizes,
        notes=_notes(manifest),
    )


def _sizes(manifest: pa.Table) -> dict[tuple[int, int], int]:
    counted = manifest.group_by(["width", "height"]).aggregate([([], "count_all")])
    order = [("count_all", "descending"), ("width", "ascending"), ("height", "ascending")]
    return {(row["width"], row["height"]): row["count_all"] for row in counted.sort_by(order).to_pylist()}


def _values(column: pa.ChunkedArray) -> Iterator[tuple[Any, int]]:
    """Yield the values of a column, each with its number."""
    yield from ((row["values"], row["counts"]) for row in column.value_counts().to_pylist())


def _counted(pairs: Iterable[tuple[int, int]]) -> Histogram:
    """Return the histogram of values and their numbers, in which a value may occur several times."""
    counts: Counter[int] = Counter()
    for value, count in pairs:
        counts[value] += count
    edges = sorted(counts)
    return Histogram(np.array(edges, dtype=np.int64), np.array([counts[edge] for edge in edges], dtype=np.int64))


def _notes(manifest: pa.Table) -> dict[str, int]:
    notes: Counter[str] = Counter()
    for value, count in _values(manifest["notes"]):
        for note in filter(None, value.split(",")):
            notes[note] += count
    return dict(notes.most_common())
