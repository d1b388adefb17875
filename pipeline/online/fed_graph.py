"""The DALI graph with what it is fed: batches of a feed, or the pictures of one call."""

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.online.feed import FedBatch, Feed
from pipeline.online.graph import GraphConfig, build_graph

_GOLDEN = np.int64(2654435769)  # 2^32 / golden ratio: consecutive ids spread evenly (Knuth, 6.4)


class FedGraph:
    """Runs the batches of a feed through the graph, several at a time.

    Args:
        feed: Batches.
        config: Settings of the graph.
    """

    def __init__(self, feed: Feed, config: GraphConfig) -> None:
        self._feed, self._config = feed, config
        self._under_way: deque[FedBatch] = deque()
        self._pipeline = build_graph(self._take, config)

    def run(self) -> tuple[FedBatch, torch.Tensor]:
        """Return the next batch and the graph's output; raises StopIteration after the last."""
        output = _run(self._pipeline)
        return self._under_way.popleft(), output

    def begin_again(self) -> None:
        """Run the batches that the feed has after the last one."""
        self._pipeline.reset()

    def _take(self) -> tuple[Any, ...]:
        fed = next(self._feed)
        self._under_way.append(fed)
        parameters = () if self._config.normalizer == "none" else fed.parameters.values()
        return fed.pictures, *parameters, *_by_gpu(fed.sample_ids, self._config)


class Decoder:
    """Decodes pictures, one call after another, with the first half of the graph.

    Args:
        config: Settings of the graph.
    """

    def __init__(self, config: GraphConfig) -> None:
        self._config = dataclasses.replace(config, normalizer="none", prefetch_batches=1)
        self._batch: tuple[Any, ...] = ()
        self._pipeline = build_graph(lambda: self._batch, self._config)

    def decode(self, sample_ids: np.ndarray, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Return pixels, uint8 (N, stored_size, stored_size, 3), on the graph's device.

        Args:
            sample_ids: Ids of the pictures, int64 (N,), which decide who decodes them (`split`).
            pictures: Bytes of JPEGs, or pixels HWC, uint8; at most `max_batch_size`.
        """
        self._batch = (pictures, *_by_gpu(sample_ids, self._config))
        return _run(self._pipeline)


def _run(pipeline: Any) -> torch.Tensor:
    (output,) = pipeline.run()
    return torch.from_dlpack(output.as_tensor())


def _by_gpu(sample_ids: np.ndarray, config: GraphConfig) -> tuple[np.ndarray, ...]:
    """Return for the decoder `split` which pictures the GPU decodes: a fixed choice of each sample."""
    if config.decode != "split" or config.raw:
        return ()
    return ((sample_ids * _GOLDEN) % 2**32 < config.gpu_share * 2**32,)
