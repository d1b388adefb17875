"""The two halves of the DALI graph in `pipeline.online.graph`, each on its own, for `pipeline.bench`."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def
from nvidia.dali.pipeline import Pipeline

from pipeline.online.graph import GraphConfig, build_graph, built, fed, normalised


def build_decode_graph(feed: Iterator[list[np.ndarray]], config: GraphConfig) -> Pipeline:
    """Build a pipeline from bytes to pixels; raw pixels are copied.

    Args:
        feed: Batches of N arrays, uint8: the bytes of JPEGs, or pixels HWC; they must live until the batch is done.
        config: Settings of the whole graph.

    Returns:
        A built pipeline with one output: uint8 (N, stored_size, stored_size, 3).
    """
    return build_graph(((pictures,) for pictures in feed), dataclasses.replace(config, normalizer="none"))


def build_augment_graph(feed: Iterator[tuple[Any, ...]], config: GraphConfig) -> Pipeline:
    """Build a pipeline from pixels to normalised images.

    Args:
        feed: Batches of the form that `pipeline.online.graph.define_graph` takes, with decoded pictures.
        config: Settings of the whole graph.

    Returns:
        A built pipeline with one output, the same as that of the whole graph.
    """
    gpu = config.device == "gpu"

    @pipeline_def(
        batch_size=config.max_batch_size,
        num_threads=config.num_threads,
        device_id=config.device_id if gpu else None,
        prefetch_queue_depth=config.prefetch_batches,
        exec_dynamic=True,
    )
    def graph() -> Any:
        pixels, augmentation, _ = fed(feed, config, is_decoded=True)
        return normalised(fn.copy(pixels).gpu() if gpu else pixels, augmentation, config)

    return built(graph())
