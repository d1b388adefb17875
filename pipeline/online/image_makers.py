"""What makes images of the batches that a feed gives: the DALI graph alone, or pixels and then a kernel on the GPU.

GraphImages    feed -> DALI: decode, crop, mirror, normalise -> images
KernelImages   feed -> DALI: decode -> pixels -> kernel (`crop_triton.py`) -> images
CachedImages   feed -> cache of decoded pixels (`pixel_cache.py`) -> kernel -> images
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from pipeline.command import InputError
from pipeline.online.batch import Cache
from pipeline.online.batch_thread import FinishedBatch, Upload
from pipeline.online.fed_graph import FedGraph
from pipeline.online.feed import FedBatch, Feed
from pipeline.online.graph import GraphConfig
from pipeline.online.pixel_cache import PixelCache, cache_device
from pipeline.online.reference import ten_placements
from pipeline.online.shard_reader import ShardReader

MakeImages = Callable[[], torch.Tensor]
Crop = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor], torch.Tensor]
"""Function (pixels, rows, placements, means) -> images; see `pipeline.online.crop_triton.CropKernel`."""


class Images(Protocol):
    """Makes the images of one batch after another."""

    def next(self, upload: Upload) -> tuple[FedBatch, MakeImages]:
        """Return the next batch with a function that makes its images; raises StopIteration after the last.

        Args:
            upload: Copies what the function needs to the device.
        """

    def begin_again(self) -> None:
        """Continue with the batches that the feed has after the last one."""


class GraphImages:
    """DALI does all the work.

    Args:
        feed: Batches.
        config: Settings of the graph.
    """

    def __init__(self, feed: Feed, config: GraphConfig) -> None:
        self._graph = FedGraph(feed, config)

    def next(self, upload: Upload) -> tuple[FedBatch, MakeImages]:
        """See `Images`."""
        fed, images = self._graph.run()
        return fed, lambda: images

    def begin_again(self) -> None:
        """See `Images`."""
        self._graph.begin_again()


class KernelImages:
    """DALI decodes, and the kernel makes the images when they are taken.

    Args:
        feed: Batches.
        config: Settings of the graph, with the normalizer `none`.
        crop: The kernel.
    """

    def __init__(self, feed: Feed, config: GraphConfig, crop: Crop) -> None:
        self._graph, self._config, self._crop = FedGraph(feed, config), config, crop

    def next(self, upload: Upload) -> tuple[FedBatch, MakeImages]:
        """See `Images`."""
        fed, pixels = self._graph.run()
        return fed, _by_kernel(self._crop, pixels, None, fed, self._config, upload)

    def begin_again(self) -> None:
        """See `Images`."""
        self._graph.begin_again()


class CachedImages:
    """The kernel reads pictures from a cache, which decodes each of them once.

    Args:
        feed: Batches whose source is the cache.
        cache: The cache.
        config: Settings of the graph.
        crop: The kernel.
    """

    def __init__(self, feed: Feed, cache: PixelCache, config: GraphConfig, crop: Crop) -> None:
        self._feed, self._cache, self._config, self._crop = feed, cache, config, crop

    def next(self, upload: Upload) -> tuple[FedBatch, MakeImages]:
        """See `Images`."""
        fed = next(self._feed)
        if self._cache.device.type == "cpu":
            pixels, rows = upload(self._cache.gather(fed.sample_ids)), None
        else:
            pixels, rows = self._cache.pixels_MHWC, upload(fed.sample_ids)
        return fed, _by_kernel(self._crop, pixels, rows, fed, self._config, upload)

    def begin_again(self) -> None:
        """See `Images`; nothing else is at its end."""


def _by_kernel(
    crop: Crop, pixels: torch.Tensor, rows: torch.Tensor | None, fed: FedBatch, config: GraphConfig, upload: Upload
) -> MakeImages:
    """Copy the parameters to the device; return the call of the kernel."""
    placement_NK3, mean_N3 = fed.parameters.placement_N3[:, None], upload(fed.parameters.mean_N3)
    if config.ten_crops:
        ten = np.array(ten_placements(config.stored_size, config.crop_size), dtype=np.int32)
        return functools.partial(crop, pixels, rows, upload(np.tile(ten, (len(fed.sample_ids), 1, 1))), mean_N3)
    placement = upload(placement_NK3)
    return lambda: crop(pixels, rows, placement, mean_N3)[:, 0]


class FinishedBatches:
    """The batches of a thread with their labels on the device.

    Args:
        images: Maker of the images.
        class_indices: Class of each sample, by sample id; int64.
        device: Device of the loader.
    """

    def __init__(self, images: Images, class_indices: np.ndarray, device: torch.device) -> None:
        self._images, self._class_indices, self._device = images, class_indices, device

    def __next__(self) -> FinishedBatch:
        """Return the next batch; raises StopIteration after the last."""
        upload = Upload(self._device)
        fed, make_images = self._images.next(upload)
        labels, positions = upload(self._class_indices[fed.sample_ids]), upload(fed.positions)
        return FinishedBatch(make_images, labels, positions, fed.sample_ids, fed.positions, upload.arrival())

    def begin_again(self) -> None:
        """Continue with the batches that the feed has after the last one."""
        self._images.begin_again()


def start_images(
    feed: Feed, reader: ShardReader, config: GraphConfig, device: torch.device, cache: Cache
) -> FinishedBatches:
    """Build what makes the images of a feed, and return its batches; the loader's thread calls this.

    Args:
        feed: Batches; if there is a cache, it becomes their source.
        reader: Reader of the split.
        config: Settings of the graph; for a GPU, the normalizer is chosen here.
        device: Device of the loader.
        cache: Where decoded pictures are kept; see `LoaderConfig`.

    Raises:
        InputError: The cache does not fit, or it needs Triton, which can't be used.
    """
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))  # of this thread
    return FinishedBatches(_image_maker(feed, reader, config, device, cache), reader.class_indices, device)


def _image_maker(feed: Feed, reader: ShardReader, config: GraphConfig, device: torch.device, cache: Cache) -> Images:
    crop = None
    if device.type == "cuda":
        crop = _crop_kernel(config, device)
        config = dataclasses.replace(config, normalizer="operator" if crop is None else "none")
        if crop is None and cache == "gpu":
            raise InputError("--cache gpu needs Triton, see the warning; use --cache host or none")
        if crop is None and cache == "auto":
            cache = "none"
    kept_on = cache_device(cache, reader.num_samples * config.stored_size**2 * 3, device)
    if kept_on is None:
        return GraphImages(feed, config) if crop is None else KernelImages(feed, config, crop)
    feed.source = kept = PixelCache(reader, config, kept_on)
    if crop is not None:
        return CachedImages(feed, kept, config, crop)
    return GraphImages(feed, dataclasses.replace(config, raw=True, whole=False))


def _crop_kernel(config: GraphConfig, device: torch.device) -> Crop | None:
    try:
        from pipeline.online import crop_triton  # imported here: it takes a second, and only GPUs need it
    except ModuleNotFoundError:
        warnings.warn("Triton is not installed, so DALI normalises: install triton as torch needs it", stacklevel=2)
        return None
    if not crop_triton.works_on(config.device_id):
        return None
    return crop_triton.CropKernel(
        config.crop_size, config.divisor_3, config.mean_image_HWC, config.output_type, config.layout, device
    )
