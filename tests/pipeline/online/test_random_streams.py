"""No two uses of a seed draw the same words; what was drawn before the registry existed is drawn still."""

import itertools
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.offline.shard_plan import ShardingConfig, plan_shards, plan_splits
from pipeline.online.order import SampleOrder
from pipeline.online.random_streams import STREAM_EPOCHS, CounterStream, OrderStream, picture_stream
from pipeline.online.stream_order import StreamOrder
from pipeline.pictures.encode import EncodingConfig
from pipeline.sources.base import SAMPLE_SCHEMA, ClassEntry, Listing

CONFIG = ShardingConfig(encoding=EncodingConfig(encoding="raw", size=None), seed=5, val_fraction=0.2)
LABELS = [i % 3 for i in range(20)]
GOLDEN_VAL = [19, 6, 2]
GOLDEN_TRAIN = [12, 17, 18, 14, 5, 15, 11, 13, 3, 16, 8, 10, 7, 1, 9, 0, 4]


def _listing() -> Listing:
    columns = [[str(i) for i in range(20)], LABELS, [""] * 20, list(range(20)), [0] * 20]
    return Listing([ClassEntry(f"n{i}", "") for i in range(3)], {"train": pa.table(columns, schema=SAMPLE_SCHEMA)})


def test_each_use_of_a_seed_has_a_key_of_its_own(monkeypatch):
    keys, philox = [], np.random.Philox

    def recorded(key):
        keys.append(tuple(key.tolist()))
        return philox(key=key)

    monkeypatch.setattr(np.random, "Philox", recorded)
    config = replace(CONFIG, max_train_samples=10)
    splits = plan_splits(_listing(), config)  # chooses val, then a subset
    plan_shards(_listing(), {"train": splits["train"]}, config)
    StreamOrder([5, 5], seed=5, num_streams=2, window_size=2).sample_ids(np.arange(10))  # deals, orders an epoch
    SampleOrder(10, seed=5).sample_ids(np.arange(10))  # orders an epoch; threads begin the next ones
    assert len(set(keys)) == len(keys) >= 6


def test_the_choices_of_val_and_of_the_order_in_the_shards_are_what_they_were():
    tasks = plan_shards(_listing(), plan_splits(_listing(), CONFIG), CONFIG)
    chosen = {task.split: [int(source) for source in task.rows["source"].to_pylist()] for task in tasks}
    assert chosen == {"train": GOLDEN_TRAIN, "val": GOLDEN_VAL}


def test_the_numbers_lie_apart():
    most_epochs = 2**32
    taken = [range(most_epochs), range(STREAM_EPOCHS, STREAM_EPOCHS + most_epochs)]
    taken += [range(stream, stream + 1) for stream in OrderStream]
    taken.sort(key=lambda numbers: numbers.start)
    assert all(first.stop <= second.start for first, second in itertools.pairwise(taken))
    most_positions = 2**63
    assert len(set(CounterStream)) == 2 and min(CounterStream) > (most_positions - 1) >> 32  # of dropout


@pytest.mark.parametrize("split", ["train", "val"])
def test_pictures_lie_apart_from_each_other_and_all_but_class_0_from_the_orders(split):
    numbers = {
        picture_stream(split, class_index, number) for class_index in range(1, 4) for number in (1, 2, 2**40 - 1)
    }
    assert len(numbers) == 9
    assert min(numbers) >= STREAM_EPOCHS + 2**32
    assert picture_stream("train", 2**22 - 1, 2**40 - 1) < picture_stream("val", 0, 0) < 2**64
