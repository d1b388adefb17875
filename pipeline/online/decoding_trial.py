"""A short trial of who decodes a dataset's JPEGs fastest on a machine with a GPU: its cores, the GPU, or both together.

Sixteen cores decode more small pictures per second than the JPEG engines and kernels of many a GPU, and both work at
the same time. The shares that fit depend on cores, card and pictures, so they are measured.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.online.batch import Decode, LoaderConfig
from pipeline.online.fed_graph import Decoder
from pipeline.online.graph import GraphConfig
from pipeline.online.shard_reader import ShardReader

ENGINE_LOADS = (0.0, LoaderConfig.hw_decoder_load, 1.0)
_SHARE_STEPS = 16  # a share is a multiple of 1 / 16
_BATCH_SIZE, _NUM_HELD, _SECONDS = 256, 1024, 0.4


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Who decodes the JPEGs; the fields are those of `LoaderConfig`."""

    decode: Decode
    gpu_share: float = 1.0
    hw_decoder_load: float = LoaderConfig.hw_decoder_load


def choose_decoding(measure: Callable[[Sequence[Decoding]], Sequence[float]]) -> Decoding:
    """Return the fastest way to decode.

    Args:
        measure: Function that returns the images per second of several ways; of all workers together, so that all of
            them choose the same.
    """
    by_gpu = [Decoding("mixed", hw_decoder_load=load) for load in ENGINE_LOADS]
    rates = dict(zip([Decoding("cpu"), *by_gpu], measure([Decoding("cpu"), *by_gpu]), strict=True))
    best = max(by_gpu, key=lambda way: rates[way])
    share = round(_SHARE_STEPS * rates[best] / (rates[best] + rates[Decoding("cpu")])) / _SHARE_STEPS
    if 0 < share < 1:
        split = Decoding("split", share, best.hw_decoder_load)
        (rates[split],) = measure([split])
    return max(rates, key=lambda way: rates[way])


def decoding_rates(dataset: Dataset, ways: Sequence[Decoding], config: GraphConfig) -> list[float]:
    """Return the images per second of several ways to decode, each measured for a moment.

    Args:
        dataset: Dataset whose training pictures are decoded.
        ways: Ways to decode.
        config: Settings of the graph; its decoder is replaced.

    Raises:
        InputError: All samples have changed since they were written.
    """
    reader, good = ShardReader(dataset, "train", "skip-and-count"), dict[int, np.ndarray]()
    for first in range(0, reader.num_samples, _NUM_HELD):
        ids = np.arange(first, min(first + _NUM_HELD, reader.num_samples))
        pictures = zip(ids.tolist(), reader.read_batch(ids), strict=True)
        good |= {sample_id: picture for sample_id, picture in pictures if picture is not None}
        if len(good) >= _NUM_HELD:
            break
    if not good:
        raise InputError("no sample is as it was written; restore the dataset, or shard again")
    return [_rate(good, way, config) for way in ways]


def _rate(pictures: Mapping[int, np.ndarray], way: Decoding, config: GraphConfig) -> float:
    size = min(_BATCH_SIZE, len(pictures))
    decoder = Decoder(dataclasses.replace(config, max_batch_size=size, **dataclasses.asdict(way)))
    ids = np.fromiter(pictures, dtype=np.int64)
    batches = [ids[first : first + size] for first in range(0, len(ids) - size + 1, size)]
    contents = [[pictures[int(sample_id)] for sample_id in batch] for batch in batches]
    decoder.decode(batches[0], contents[0])  # reserves the memory
    began, num_decoded = time.perf_counter(), 0
    while time.perf_counter() - began < _SECONDS:
        for batch, content in zip(batches, contents, strict=True):
            decoder.decode(batch, content)
            num_decoded += len(batch)
    return num_decoded / (time.perf_counter() - began)
