"""The contents of a dataset and the place of each sample, decided from the listing before any picture is read.

    listing -> splits: a part of `train` becomes `val`, a subset of the rest stays -> shuffle of each split -> shards

All choices are pure functions of the listing and the seed, so the number of workers can't change them.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.command import InputError
from pipeline.offline.shard_task import ShardTask
from pipeline.online.order import permutation
from pipeline.online.random_streams import OrderStream
from pipeline.pictures.encode import EncodingConfig
from pipeline.sources.base import SPLITS, Listing

DEFAULT_VAL_FRACTION = 0.05


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """Configuration of a dataset, which alone determines the bytes that a source becomes.

    Attributes:
        encoding: Form in which pictures are stored.
        seed: Seed of the global shuffle, of the split into train and val, and of the subset of train.
        val_fraction: Fraction of each class of `train` that is moved to `val` if the source has no `val`. None:
            `DEFAULT_VAL_FRACTION`, or with `val_last` no fraction.
        val_last: Number of samples at the end of `train`, in the source's own order, that become `val` instead.
        max_train_samples: Largest number of training samples; if there are more, a random subset of `train` is kept, in
            which each class has its share.
        samples_per_shard: Planned number of samples per shard; rejected pictures make a shard shorter.
        max_rejects: Largest tolerated fraction of rejected pictures.
    """

    encoding: EncodingConfig
    seed: int = 0
    val_fraction: float | None = None
    val_last: int | None = None
    max_train_samples: int | None = None
    samples_per_shard: int = 1000
    max_rejects: float = 0.001

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: A field has a bad value; the message names the field, the value and what would be right.
        """
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be 0 to 2**63 - 1")
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction is {self.val_fraction}; it must be at least 0 and less than 1")
        if self.val_last is not None and self.val_last < 1:
            raise ValueError(f"val_last is {self.val_last}; it must be at least 1")
        if self.val_last is not None and self.val_fraction is not None:
            raise ValueError(f"val_last is {self.val_last} beside val_fraction {self.val_fraction}; give one of them")
        if self.max_train_samples is not None and self.max_train_samples < 1:
            raise ValueError(f"max_train_samples is {self.max_train_samples}; it must be at least 1")
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard is {self.samples_per_shard}; it must be at least 1")
        if not 0 <= self.max_rejects <= 1:
            raise ValueError(f"max_rejects is {self.max_rejects}; it is a fraction, 0 to 1")

    def document(self) -> dict[str, Any]:
        """Return its part of `plan.json` and `dataset.json`: all but `max_rejects`, which changes no byte."""
        default = DEFAULT_VAL_FRACTION if self.val_last is None else None
        return {
            "encoding": self.encoding.document(),
            "seed": self.seed,
            "val_fraction": default if self.val_fraction is None else self.val_fraction,
            "val_last": self.val_last,
            "max_train_samples": self.max_train_samples,
            "samples_per_shard": self.samples_per_shard,
        }


def plan_splits(listing: Listing, config: ShardingConfig) -> dict[str, pa.Table]:
    """Return the splits that will be stored.

    If the source has no `val`, a part of `train` becomes `val`: a random part of each class, or the last samples. Then
    `train` is reduced to `max_train_samples`.

    Raises:
        InputError: There is no `train`, or the configuration does not fit the source.
    """
    splits = {name: listing.splits[name] for name in SPLITS if name in listing.splits}
    if "train" not in splits:
        raise InputError(
            "the source has no training pictures; a dataset needs a `train` split (to evaluate a trained run on such a "
            "source as it lies: python jobs/evaluate.py --source SOURCE --run RUN)"
        )
    if "val" not in splits:
        train = splits.pop("train")
        is_val = _choose_val(train, listing, config)
        val = {"val": train.filter(pa.array(is_val))} if is_val.any() else {}
        splits = {"train": train.filter(pa.array(~is_val)), **val, **splits}
    elif config.val_last is not None:
        raise InputError(
            f"--val-last {config.val_last} is for sources without a validation split; this one has "
            f"{splits['val'].num_rows} validation samples of its own: leave the option out"
        )
    if config.max_train_samples is not None and config.max_train_samples < splits["train"].num_rows:
        is_kept = _choose_subset(splits["train"], config.max_train_samples, config.seed)
        splits["train"] = splits["train"].filter(pa.array(is_kept))
    return splits


def plan_shards(listing: Listing, splits: dict[str, pa.Table], config: ShardingConfig) -> list[ShardTask]:
    """Cut each split's global shuffle into shards of equal planned length (to within one sample)."""
    wnids = tuple(entry.wnid for entry in listing.classes)
    tasks = []
    for split, table in splits.items():
        num_shards = -(-table.num_rows // config.samples_per_shard)
        shuffle = permutation(config.seed, OrderStream.SHUFFLE, table.num_rows)
        bounds = [table.num_rows * i // num_shards for i in range(num_shards + 1)]
        for index, (first, end) in enumerate(itertools.pairwise(bounds)):
            rows = table.take(pa.array(shuffle[first:end]))
            tasks.append(ShardTask(f"{split}-{index:06d}", split, first, rows, wnids))
    return tasks


def _choose_val(train: pa.Table, listing: Listing, config: ShardingConfig) -> np.ndarray:
    """Return which training samples become `val`; one bool per row."""
    classes = train["class_index"].to_numpy()
    counts = np.bincount(classes)
    if config.val_last is None:
        fraction = config.document()["val_fraction"]
        # At least one sample of a class that has two or more, so that model selection sees every class; never all.
        at_least = 1 if fraction > 0 else 0
        num_chosen = [min(max(round(count * fraction), at_least), max(count - 1, 0)) for count in counts.tolist()]
        return _choose_of_each_class(classes, np.array(num_chosen), config.seed, OrderStream.VAL)
    if config.val_last >= len(classes):
        raise InputError(
            f"--val-last is {config.val_last}, but the source has {len(classes)} training samples; some must be left"
        )
    is_val = np.arange(len(classes)) >= len(classes) - config.val_last
    lost = np.flatnonzero((counts > 0) & (np.bincount(classes[~is_val], minlength=len(counts)) == 0))
    if len(lost):
        raise InputError(
            f"--val-last {config.val_last} would leave no training sample of {len(lost)} classes (the first is "
            f"{listing.classes[lost[0]].wnid}); where a source lists class after class, use --val-fraction"
        )
    return is_val


def _choose_subset(train: pa.Table, num_samples: int, seed: int) -> np.ndarray:
    """Return which training samples are kept: one per class and an equal part of the rest; one bool per row."""
    classes = train["class_index"].to_numpy()
    counts = np.bincount(classes)
    first = np.minimum(counts, 1)
    if num_samples < first.sum():
        raise InputError(
            f"--max-train-samples is {num_samples}, but the training samples have {first.sum()} classes; "
            "give at least as many"
        )
    # Largest remainders, in integers: the shares add up to the requested number on every machine.
    num_rest, rest = num_samples - first.sum(), counts - first
    shares, remainders = np.divmod(rest * num_rest, rest.sum())
    shares[np.argsort(-remainders, kind="stable")[: num_rest - shares.sum()]] += 1
    return _choose_of_each_class(classes, first + shares, seed, OrderStream.SUBSET)


def _choose_of_each_class(classes: np.ndarray, num_chosen: np.ndarray, seed: int, stream: OrderStream) -> np.ndarray:
    """Choose samples of each class at random.

    Args:
        classes: Class of each sample.
        num_chosen: Number of samples to choose, by class.
        seed: Seed of the choice.
        stream: Random stream of the choice, which tells it from others under the same seed.

    Returns:
        Whether a sample is chosen; one bool per sample.
    """
    shuffled = permutation(seed, stream, len(classes))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    counts = np.bincount(classes, minlength=len(num_chosen))
    chosen = np.zeros(len(classes), dtype=bool)
    for first, number in zip(np.cumsum(counts) - counts, num_chosen, strict=True):
        chosen[by_class[first : first + number]] = True
    return chosen
