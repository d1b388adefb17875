"""Who decodes is chosen by a trial: the fastest of cores, GPU and both; a sample's decoder depends on its id alone."""

import dataclasses

import numpy as np
import pytest
import torch
from nvidia.dali import fn, types

from pipeline.loader import LoaderConfig, TrainLoader
from pipeline.online import fed_graph, graph
from pipeline.online.augmentation import AugmentationConfig
from pipeline.online.decoding_trial import ENGINE_LOADS, Decoding, choose_decoding
from pipeline.online.fed_graph import Decoder
from pipeline.online.shard_reader import ShardReader
from tests.pipeline.online.test_graph_backends import BASE

CPU = Decoding("cpu")


@pytest.mark.parametrize(
    ("cpu", "gpu", "split_rate", "chosen"),
    [
        (30.0, (5.0, 10.0, 8.0), 39.0, Decoding("split", 4 / 16, ENGINE_LOADS[1])),
        (30.0, (5.0, 10.0, 8.0), 29.0, CPU),  # they got in each other's way
        (10.0, (20.0, 5.0, 30.0), 0.0, Decoding("mixed", 1.0, ENGINE_LOADS[2])),
        (1.0, (1000.0, 5.0, 30.0), None, Decoding("mixed", 1.0, ENGINE_LOADS[0])),  # no share is small enough
    ],
)
def test_the_fastest_way_is_chosen(cpu, gpu, split_rate, chosen):
    asked = []

    def measure(ways):
        asked.append(ways)
        return [cpu, *gpu] if len(ways) > 1 else [split_rate]

    assert choose_decoding(measure) == chosen
    assert len(asked) == (1 if split_rate is None else 2)


def test_rates_are_measured_on_the_pictures_of_the_dataset(jpeg_dataset):
    loader = TrainLoader(jpeg_dataset, global_batch_size=8, augmentation=AugmentationConfig(crop_size=28))
    assert all(rate > 10 for rate in loader.decoding_rates([CPU, CPU]))
    loader.decode_by(Decoding("mixed", hw_decoder_load=0.25))
    assert loader._graph_config.decode == "mixed" and loader._graph_config.hw_decoder_load == 0.25


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_sample_is_always_decoded_by_the_same_and_the_share_holds(share):
    config = dataclasses.replace(BASE, decode="split", gpu_share=share, device="gpu")
    (whole,) = fed_graph._by_gpu(np.arange(100_000), config)
    assert whole.dtype == bool and abs(whole.mean() - share) < 0.001
    (part,) = fed_graph._by_gpu(np.array([77, 5, 99_999]), config)
    assert part.tolist() == whole[[77, 5, 99_999]].tolist()
    windows = whole[: 100_000 // 64 * 64].reshape(-1, 64).mean(axis=1)
    assert abs(windows - share).max() < 0.05  # spread evenly, so batches take equally long


def test_split_pictures_come_back_in_their_order(jpeg_dataset, monkeypatch, caplog):
    """On a CPU both halves are decoded by the CPU, and those of the "GPU" become negatives."""
    ids = np.arange(20)
    pictures = ShardReader(jpeg_dataset, "train").read_batch(ids)
    config = dataclasses.replace(BASE, stored_size=32, max_batch_size=20, normalizer="none")
    expected = Decoder(config).decode(ids, pictures)
    decode = graph._decoded_by

    def decoded_by(decoder, content, config):
        pixels = decode("cpu", content, config)
        return fn.cast(255 - pixels, dtype=types.UINT8) if decoder == "mixed" else pixels

    monkeypatch.setattr(graph, "_decoded_by", decoded_by)
    for share, num_by_gpu in ((0.0, 0), (0.3, 7), (1.0, 20)):
        split = dataclasses.replace(config, decode="split", gpu_share=share)
        (by_gpu,) = fed_graph._by_gpu(ids, split)
        assert by_gpu.sum() == num_by_gpu
        found = Decoder(split).decode(ids, pictures)
        assert torch.equal(found, torch.where(torch.from_numpy(by_gpu)[:, None, None, None], 255 - expected, expected))
    assert not caplog.records  # of what DALI could not convert


def test_the_loader_takes_what_was_chosen():
    config = LoaderConfig(device="gpu", decode="split", gpu_share=0.5, hw_decoder_load=0.1)
    assert dataclasses.asdict(Decoding("split", 0.5, 0.1)).items() <= dataclasses.asdict(config).items()
