"""The two halves of the DALI graph in `pipeline.online.graph`, each on its own, for `pipeline.bench`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline

from pipeline.online.graph import GraphConfig, built, decoded, fed, normalised


def build_decode_graph(feed: Iterator[list[np.ndarray]], config: GraphConfig) -> Pipeline:
    """Build a pipeline from bytes to pixels; raw pixels are copied.

    Args:
        feed: Batches of N arrays, uint8: the bytes of JPEGs, or pixels HWC; they must live until the batch is done.
        config: Settings of the whole graph.

    Returns:
        A built pipeline with one output: uint8 (N, stored_size, stored_size, 3).
    """

    @_of(config)
    def graph() -> Any:
        content = fn.external_source(
            feed,
            no_copy=True,
            layout="HWC" if config.raw else "",
            dtype=types.UINT8,
            ndim=3 if config.raw else 1,
        )
        return fn.copy(content) if config.raw else decoded(content, config)

    return built(graph())


def build_augment_graph(feed: Iterator[tuple[Any, ...]], config: GraphConfig) -> Pipeline:
    """Build a pipeline from pixels to normalised images.

    Args:
        feed: Batches of the form that `pipeline.online.graph.define_graph` takes, with decoded pictures.
        config: Settings of the whole graph.

    Returns:
        A built pipeline with one output, the same as that of the whole graph.
    """

    @_of(config)
    def graph() -> Any:
        pixels, augmentation = fed(feed, is_decoded=True)
        return normalised(pixels, augmentation, config)

    return built(graph())


def _of(config: GraphConfig) -> Any:
    return pipeline_def(
        batch_size=config.max_batch_size,
        num_threads=config.num_threads,
        device_id=None,
        prefetch_queue_depth=config.prefetch_batches,
        exec_dynamic=True,
    )
