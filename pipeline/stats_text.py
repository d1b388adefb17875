"""The summary of a dataset as text for a terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.summary import DatasetSummary, Histogram, SplitSummary
from pipeline.system.byte_counts import readable_bytes, three_digits

_MOST_CLASSES = 3  # named at each end of the order by size
_MOST_NAMED = 8  # reasons and notes


def lines_of(summary: DatasetSummary) -> Iterator[str]:
    """Yield the lines: what the dataset is, its splits side by side, classes, notes, rejects, source and colours."""
    dataset = summary.dataset
    encoding, layout = dataset.document["encoding"], dataset.document["source_layout"]
    size = f"{encoding['size']} pixels" if encoding["size"] else "native size"
    yield (
        f"{dataset.path}: {summary.num_samples:,} pictures of {dataset.num_classes:,} classes, "
        f"{readable_bytes(summary.num_bytes)} in {len(dataset.files):,} files"
    )
    yield f"encoding {dataset.encoding}, {size}, crop {encoding['crop']}; source layout {layout}"
    yield f"sha256 {dataset.sha256}"
    yield ""
    yield from _aligned([("", *summary.splits), *_rows(list(summary.splits.values()))])
    yield ""
    for split in summary.splits.values():
        yield from _class_lines(split, summary)
    for split in summary.splits.values():
        yield f"notes of {split.name}: {_counts(split.notes)}"
    for name, reasons in summary.rejects.items():
        yield f"rejected from {name}: {_counts(reasons)}"
    if not summary.rejects:
        yield "rejected: none"
    yield from _inventory_lines(dataset.inventory)
    yield from _color_lines(summary)


def _rows(splits: Sequence[SplitSummary]) -> Iterator[tuple[str, ...]]:
    yield ("pictures", *(f"{split.num_samples:,}" for split in splits))
    yield ("shards", *(f"{split.num_shards:,}" for split in splits))
    yield ("bytes of shards", *(readable_bytes(split.num_bytes) for split in splits))
    yield ("classes with pictures", *(f"{np.count_nonzero(split.class_counts_C):,}" for split in splits))
    yield ("largest : smallest class", *(f"{split.imbalance:.3g} : 1" for split in splits))
    yield ("", *("min / median / max" for _ in splits))
    for title, quantity in (
        ("width of source pictures", "source_width"),
        ("height of source pictures", "source_height"),
        ("width of stored pictures", "stored_width"),
        ("height of stored pictures", "stored_height"),
    ):
        yield (title, *(_spread(split.histograms[quantity]) for split in splits))
    for title, quantity in (
        ("kB of source pictures, about", "source_bytes"),
        ("kB of stored pictures", "stored_bytes"),
    ):
        yield (title, *(_spread(split.histograms[quantity], 1000) for split in splits))


def _spread(histogram: Histogram, unit: int = 1) -> str:
    """Return least, median and greatest value in a unit, or the one value that all pictures have.

    Of a bin that is wider than 1, the middle is shown.
    """
    middle = (histogram.bin_width - 1) / 2
    values = [three_digits((histogram.quantile(fraction) + middle) / unit) for fraction in (0, 0.5, 1)]
    return " / ".join(values) if len(set(values)) > 1 else values[0]


def _aligned(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()


def _class_lines(split: SplitSummary, summary: DatasetSummary) -> Iterator[str]:
    counts_C = split.class_counts_C
    order = [index for index in np.argsort(counts_C, kind="stable").tolist() if counts_C[index]]
    if split.imbalance == 1:
        yield f"classes of {split.name}: {counts_C[order[0]]:,} pictures each"
    else:
        fewest = ", ".join(_class(index, split, summary) for index in order[:_MOST_CLASSES])
        most = ", ".join(_class(index, split, summary) for index in order[: -_MOST_CLASSES - 1 : -1])
        share = counts_C[order[-1]] / split.num_samples
        yield f"classes of {split.name}, fewest pictures: {fewest}"
        yield f"classes of {split.name}, most pictures: {most}"
        yield f"always naming the largest class would be right for {share:.1%} of {split.name}"
    absent = np.flatnonzero(counts_C == 0).tolist()
    if absent:
        named = ", ".join(summary.dataset.wnids[index] for index in absent[:_MOST_CLASSES])
        more = ", ..." if len(absent) > _MOST_CLASSES else ""
        yield f"classes without a picture in {split.name}: {len(absent):,} ({named}{more})"


def _class(index: int, split: SplitSummary, summary: DatasetSummary) -> str:
    wnid, name = summary.dataset.wnids[index], summary.dataset.class_names[index].partition(",")[0]
    return f"{wnid if wnid == name else f'{wnid} {name}'} {split.class_counts_C[index]:,}"


def _counts(counts: Mapping[str, int]) -> str:
    named = [f"{name} {count:,}" for name, count in list(counts.items())[:_MOST_NAMED]]
    more = [f"{len(counts) - _MOST_NAMED} more"] if len(counts) > _MOST_NAMED else []
    return ", ".join([*named, *more]) or "none"


def _inventory_lines(inventory: Mapping[str, Any] | None) -> Iterator[str]:
    if inventory is None:
        yield "source: not known, since inventory.json is absent or broken"
        return
    try:
        yield (
            f"source: {inventory['num_files']:,} files; of them pictures: {inventory['num_samples']:,}, "
            f"archives: {inventory['num_archives']:,}, tables of labels or names: {len(inventory['tables'])}"
        )
        left_out = {reason: group["num_files"] for reason, group in inventory["left_out"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):  # it is for people, and nothing proves it unchanged
        yield "source: inventory.json can't be read"
        return
    yield f"left out of the source: {_counts(left_out)}"


def _color_lines(summary: DatasetSummary) -> Iterator[str]:
    basis = summary.dataset.color_basis
    yield ""
    rows: list[tuple[str, ...]] = [("grey levels of train", "red", "green", "blue", "luma")]
    luma_mean, luma_deviation = summary.luma
    for title, values_3, luma in (("mean", basis.mean_3, luma_mean), ("std", basis.std_3, luma_deviation)):
        rows.append((title, *(f"{value * basis.pixel_scale:.1f}" for value in values_3), f"{luma:.1f}"))
    yield from _aligned(rows)
    total = basis.eigenvalues_3.sum()
    rows = [("principal component", "share", "red", "green", "blue")]
    for index, eigenvalue in enumerate(basis.eigenvalues_3):
        vector = (f"{value:+.3f}" for value in basis.eigenvectors_33[:, index])
        rows.append((str(index + 1), f"{eigenvalue / total if total else 0:.1%}", *vector))
    yield from _aligned(rows)
