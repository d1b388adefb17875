"""Shard planning and the index, for any numbers."""

import io
import itertools
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.command import InputError
from pipeline.offline.shard_plan import ShardingConfig, plan_shards, plan_splits
from pipeline.offline.shard_writer import ShardWriter
from pipeline.pictures.encode import EncodingConfig
from pipeline.sources.base import SAMPLE_SCHEMA, ClassEntry, Listing


def _listing(labels: list[int], num_val: int) -> Listing:
    def table(name: str, classes: list[int]) -> pa.Table:
        size = len(classes)
        columns = [[f"{name}/{i}" for i in range(size)], classes, [""] * size, list(range(size)), [0] * size]
        return pa.table(columns, schema=SAMPLE_SCHEMA)

    splits = {"train": table("train", labels)} | ({"val": table("val", [0] * num_val)} if num_val else {})
    return Listing([ClassEntry(f"n{i}", "") for i in range(5)], splits)


@settings(deadline=None)  # the first example pays for libraries that load late
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=200),
    num_val=st.integers(0, 30),
    samples_per_shard=st.integers(1, 40),
    val_fraction=st.floats(0, 0.99),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_sample_has_one_place_in_one_shard_of_planned_length(
    labels, num_val, samples_per_shard, val_fraction, seed
):
    config = ShardingConfig(
        encoding=EncodingConfig(encoding="raw", size=None),
        seed=seed,
        samples_per_shard=samples_per_shard,
        val_fraction=val_fraction,
    )
    listing = _listing(labels, num_val)
    splits = plan_splits(listing, config)
    tasks = plan_shards(listing, splits, config)
    planned = [source for task in tasks for source in task.rows["source"].to_pylist()]
    listed = [source for table in listing.splits.values() for source in table["source"].to_pylist()]
    assert sorted(planned) == sorted(listed)
    assert {tuple(row.values()) for task in tasks for row in task.rows.to_pylist()} == {
        tuple(row.values()) for table in listing.splits.values() for row in table.to_pylist()
    }
    for split, group in itertools.groupby(tasks, key=lambda task: task.split):
        of_split = list(group)
        lengths = [task.rows.num_rows for task in of_split]
        assert 1 <= max(lengths) <= samples_per_shard and max(lengths) - min(lengths) <= 1
        assert [task.first_index for task in of_split] == [0, *itertools.accumulate(lengths)][:-1]
        assert [task.name for task in of_split] == [f"{split}-{index:06d}" for index in range(len(of_split))]
    again = plan_shards(listing, splits, config)
    assert all(one.rows.equals(other.rows) for one, other in zip(tasks, again, strict=True))
    if num_val == 0 and "val" in splits:  # stratified: no class is moved whole
        before, after = (
            np.bincount(table["class_index"], minlength=5) for table in (listing.splits["train"], splits["train"])
        )
        assert (after[before > 0] > 0).all()


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=200),
    max_train_samples=st.integers(1, 220),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_subset_has_the_number_asked_for_and_the_share_of_each_class(labels, max_train_samples, seed):
    config = ShardingConfig(
        encoding=EncodingConfig(encoding="raw", size=None),
        seed=seed,
        val_fraction=0.2,
        max_train_samples=max_train_samples,
    )
    listing = _listing(labels, num_val=0)
    whole = plan_splits(listing, replace(config, max_train_samples=None))
    before = np.bincount(whole["train"]["class_index"])
    if max_train_samples < min(np.count_nonzero(before), before.sum()):
        with pytest.raises(InputError, match=rf"is {max_train_samples}, but the training samples have \d classes"):
            plan_splits(listing, config)
        return
    splits = plan_splits(listing, config)
    assert {split: table for split, table in splits.items() if split != "train"} == {
        split: table for split, table in whole.items() if split != "train"
    }
    kept = splits["train"]["source"].to_pylist()
    assert kept == [source for source in whole["train"]["source"].to_pylist() if source in set(kept)]
    after = np.bincount(splits["train"]["class_index"], minlength=len(before))
    assert after.sum() == len(set(kept)) == min(max_train_samples, before.sum())
    # One of each class, of the rest an equal part, to within the one sample that rounding moves.
    first = np.minimum(before, 1)
    part = (after.sum() - first.sum()) / max((before - first).sum(), 1)
    assert (np.abs(after - first - part * (before - first)) < 1).all() and (after >= first).all()


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), val_last=st.integers(1, 70))
def test_the_last_samples_become_val(labels, val_last):
    config = ShardingConfig(encoding=EncodingConfig(encoding="raw", size=None), val_last=val_last)
    listing = _listing(labels, num_val=0)
    sources = listing.splits["train"]["source"].to_pylist()
    if val_last >= len(labels):
        with pytest.raises(InputError, match=f"is {val_last}, but the source has {len(labels)} training samples"):
            plan_splits(listing, config)
    elif lost := set(labels) - set(labels[:-val_last]):
        with pytest.raises(InputError, match=rf"no training sample of {len(lost)} classes \(the first is n{min(lost)}"):
            plan_splits(listing, config)
    else:
        splits = plan_splits(listing, config)
        assert list(splits) == ["train", "val"]
        assert splits["train"]["source"].to_pylist() == sources[:-val_last]
        assert splits["val"]["source"].to_pylist() == sources[-val_last:]


@settings(deadline=None)  # it writes to a disk
@given(st.lists(st.tuples(st.binary(max_size=1500), st.integers(0, 10**6)), min_size=1, max_size=30))
def test_the_index_leads_to_the_bytes_of_every_member(samples):
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder), "s")
        with writer.open():
            offsets = [
                writer.write(f"{key:08d}", {"jpg": data, "cls": str(label).encode()})
                for key, (data, label) in enumerate(samples)
            ]
        content, index = (Path(folder) / "s.tar").read_bytes(), (Path(folder) / "s.idx").read_text()
    version, *lines = index.splitlines()
    assert version == f"v1.2 {len(samples)}" and len(lines) == len(samples)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}
        assert all(info.mtime == 0 and info.mode == 0o644 for info in tar.getmembers())
    assert len(content) % tarfile.RECORDSIZE == 0 and len(members) == 2 * len(samples)
    for (data, label), line, first_offset in zip(samples, lines, offsets, strict=True):
        words = line.split(" ")
        groups = [(words[i], int(words[i + 1]), int(words[i + 2]), words[i + 3]) for i in range(0, len(words), 4)]
        assert [group[0] for group in groups] == ["jpg", "cls"] and groups[0][1] == first_offset
        assert [content[start : start + size] for _, start, size, _ in groups] == [data, str(label).encode()]
        assert [members[name] for *_, name in groups] == [data, str(label).encode()]
