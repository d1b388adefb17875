"""What a loader holds in memory: batches in pieces, and as many made ahead as a bound in bytes allows."""

import pytest
import torch

from pipeline.loader import LoaderConfig, TrainLoader
from pipeline.online.augmentation import AugmentationConfig
from pipeline.online.batch_thread import joined
from pipeline.online.stream_order import StreamConfig

CONFIG = AugmentationConfig(crop_size=28)


@pytest.mark.parametrize("micro_batch_size", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("streams", [None, StreamConfig(num_streams=2, window_size=4)])
def test_the_pieces_of_a_batch_are_the_batch(raw_dataset, micro_batch_size, streams):
    options = {"global_batch_size": 16, "world_size": 2, "rank": 1, "seed": 11, "streams": streams}
    whole = TrainLoader(raw_dataset, augmentation=CONFIG, **options)
    pieces = TrainLoader(
        raw_dataset, augmentation=CONFIG, **options, config=LoaderConfig(micro_batch_size=micro_batch_size)
    )
    for step in range(4):
        expected = next(whole)
        taken = list(pieces.micro_batches()) if step % 2 else [next(pieces)]
        if step % 2:
            sizes = [len(batch.labels) for batch in taken]
            assert sizes == {1: [1] * 8, 3: [2, 3, 3]}.get(micro_batch_size, [8])
        assert all(
            torch.equal(a, b) for a, b in zip(vars(expected).values(), vars(joined(taken)).values(), strict=True)
        )
        assert pieces.samples_seen == whole.samples_seen
    whole.close()
    pieces.close()


def test_what_is_made_ahead_is_bounded_in_bytes(raw_dataset):
    batch = 8 * CONFIG.crop_of(32) ** 2 * 3 * 4
    for num_bytes, depth in ((2 * batch * 3, 3), (2 * batch * 2 + batch, 2), (batch, 1), (1 << 40, 3)):
        loader = TrainLoader(
            raw_dataset, global_batch_size=8, augmentation=CONFIG, config=LoaderConfig(prefetch_bytes=num_bytes)
        )
        next(loader)
        assert loader._graph_config.prefetch_batches == loader._thread._queue.maxsize == depth
        loader.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batch_size": 7, "group_size": 8}, "micro_batch_size=7: must be at least 8"),
        ({"prefetch_bytes": 0}, "prefetch_batches and prefetch_bytes: must be at least 1"),
        ({"decode": "split"}, "decode='split': needs device='gpu'"),
        ({"cache": "gpu"}, "cache='gpu': needs device='gpu'"),
        ({"gpu_share": 1.5}, "gpu_share=1.5: must be 0 to 1"),
    ],
)
def test_settings_that_fit_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LoaderConfig(**options)
