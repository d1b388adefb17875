"""Batches for training and evaluation: order + augmentation + DALI graph, on any number of workers.

    positions -> sample ids -> bytes (memory-mapped) + parameters -> DALI -> Batch
       order.py                shard_reader.py  augmentation.py     graph.py

A thread (`batch_thread.py`) runs the graph some batches ahead. The whole state of a loader is one integer, the number
of samples that it has handed out.
"""

import dataclasses
import functools
import itertools
import os
import time
import weakref
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.format.color import ColorBasis
from pipeline.online.augmentation import (
    AugmentationConfig,
    AugmentationParameters,
    center_parameters,
    divisor,
    draw_parameters,
)
from pipeline.online.batch import Batch, LoaderConfig
from pipeline.online.batch_thread import BatchThread, joined
from pipeline.online.decoding_trial import Decoding, decoding_rates
from pipeline.online.feed import Draw, Feed, Identify
from pipeline.online.graph import GraphConfig
from pipeline.online.image_makers import start_images
from pipeline.online.order import RankShare, SampleOrder
from pipeline.online.reference import TEN_CROPS
from pipeline.online.shard_reader import ShardReader
from pipeline.online.stream_order import StreamConfig, StreamOrder

__all__ = ["Batch", "EvalLoader", "LoaderConfig", "TrainLoader"]


class _Loader(Iterator[Batch]):
    """Base of both loaders: a DALI graph with its feed, run by a thread that starts with the first batch."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        augmentation: AugmentationConfig,
        color_basis: ColorBasis,
        max_batch_size: int,
        config: LoaderConfig,
        mean_image_HWC: np.ndarray | None = None,
        ten_crops: bool = False,
    ) -> None:
        self._reader = ShardReader(dataset, split, config.on_bad_sample)
        self._dataset = dataset
        self._augmentation, self._basis, self._config = augmentation, color_basis, config
        self._stored_size = dataset.stored_size
        try:
            self.crop_size = augmentation.crop_of(self._stored_size)
        except ValueError as error:
            raise InputError(str(error)) from error
        if augmentation.subtract == "mean_image" and mean_image_HWC is None:
            mean_image_HWC = dataset.mean_image_HWC
        self._device = torch.device("cuda", config.device_id) if config.device == "gpu" else torch.device("cpu")
        self.data_wait_seconds = 0.0
        self._graph_config = GraphConfig(
            raw=dataset.member == "npy",
            whole=dataset.stores_whole_pictures,
            stored_size=self._stored_size,
            crop_size=self.crop_size,
            divisor_3=divisor(augmentation, self._basis),
            mean_image_HWC=mean_image_HWC if augmentation.subtract == "mean_image" else None,
            ten_crops=ten_crops,
            output_type=config.output_type,
            layout=config.layout,
            max_batch_size=max_batch_size,
            device=config.device,
            decode=config.decode or ("mixed" if config.device == "gpu" else "cpu"),
            hw_decoder_load=config.hw_decoder_load,
            gpu_share=config.gpu_share,
            normalizer="kernel",
            device_id=config.device_id,
            num_threads=config.num_threads or len(os.sched_getaffinity(0)) + 1,
            prefetch_batches=_depth(config, max_batch_size, self._stored_size, self.crop_size, ten_crops),
        )
        self._feed: Feed | None = None
        self._thread: BatchThread | None = None
        self._num_replaced = 0

    @abstractmethod
    def _plan(self) -> tuple[Iterator[np.ndarray], Identify, Draw]:
        """Return the positions from the loader's on, and what maps them to ids and parameters (`Feed`).

        None of it may refer to the loader.
        """

    @property
    def num_replaced_samples(self) -> int:
        """Number of samples replaced because their bytes have changed (`skip-and-count`), in batches read ahead too."""
        return self._num_replaced + (self._feed.num_replaced if self._feed else 0)

    def _next(self) -> Batch:
        """Return what the thread makes next, waiting for it if necessary."""
        began = time.perf_counter()
        batch = (self._thread or self._start()).next()
        self.data_wait_seconds += time.perf_counter() - began
        return batch.take(self._config.layout)

    def _start(self) -> BatchThread:
        self._feed = Feed(self._reader, *self._plan())
        start = functools.partial(
            start_images, self._feed, self._reader, self._graph_config, self._device, self._config.cache
        )
        self._thread = BatchThread(start, self._device, self._graph_config.prefetch_batches)
        self._stop_thread = weakref.finalize(self, self._thread.stop)  # also when the interpreter exits
        return self._thread

    def decoding_rates(self, ways: Sequence[Decoding]) -> list[float]:
        """Return the images per second of several ways to decode the training set; see `decoding_trial`."""
        return decoding_rates(self._dataset, ways, self._graph_config)

    def decode_by(self, way: Decoding) -> None:
        """Decode in this way from now on; called before the first batch."""
        self._graph_config = dataclasses.replace(self._graph_config, **dataclasses.asdict(way))

    def close(self) -> None:
        """Stop the thread and DALI, and release their memory."""
        self._num_replaced = self.num_replaced_samples
        self._feed = None
        if self._thread is not None:
            self._stop_thread()
            self._thread = None


class TrainLoader(_Loader):
    """An endless stream of training batches.

    Iterating yields this rank's slice of each global batch. For every world size, the slices of all ranks form the same
    global batches, with the same augmentations.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        samples_seen: int = 0,
        augmentation: AugmentationConfig | None = None,
        streams: StreamConfig | None = None,
        config: LoaderConfig | None = None,
    ) -> None:
        """Open the stream.

        Args:
            dataset: Dataset whose split `train` is read.
            global_batch_size: Samples per step over all ranks.
            rank: Rank of this reader, 0 <= rank < world_size.
            world_size: Number of readers; not larger than the global batch.
            seed: Seed of order and augmentation.
            samples_seen: Position to begin at.
            augmentation: Crop, flip, colour noise and normalisation; those of the paper by default.
            streams: Streams that read one shard after another, for slow disks; by default all samples are permuted.
            config: Device, threads and layout of the batches.

        Raises:
            InputError: The arguments don't fit each other or the dataset.
        """
        config = config or LoaderConfig()
        group_size = config.group_size
        num_groups = global_batch_size // group_size
        if global_batch_size % group_size:
            raise InputError(
                f"a global batch of {global_batch_size} is not a whole number of groups of {group_size}; use "
                f"{max(num_groups, 1) * group_size}"
            )
        if num_groups < world_size:
            raise InputError(
                f"a global batch of {global_batch_size} can't be shared by {world_size} workers; use at most "
                f"{num_groups} workers, or a larger batch"
            )
        if not 0 <= rank < world_size:
            raise InputError(f"rank {rank} is not in a world of {world_size}")
        share = RankShare(global_batch_size, rank, world_size, group_size, config.micro_batch_size)
        super().__init__(
            dataset,
            "train",
            augmentation or AugmentationConfig(),
            dataset.color_basis,
            share.largest_piece,
            config,
        )
        self._share = share
        self._seed = seed
        self._order = SampleOrder(dataset.num_samples("train"), seed)
        if streams is not None and streams.num_streams:
            lengths = self._reader.shard_lengths()
            try:
                self._order = StreamOrder(lengths, seed, streams.num_streams, streams.window_size)
            except ValueError as error:
                raise InputError(str(error)) from error
        self._load(samples_seen)

    def __next__(self) -> Batch:
        """Return this rank's part of the next global batch."""
        return joined(list(self.micro_batches()))

    def micro_batches(self) -> Iterator[Batch]:
        """Yield this rank's part of the next global batch in pieces of at most `LoaderConfig.micro_batch_size` samples.

        All pieces must be taken before the next step.
        """
        for _ in self._share.pieces:
            yield self._next()
        self.samples_seen += self._share.global_batch_size

    def state_dict(self) -> dict[str, int]:
        """Return the state: the number of samples that all ranks together have received."""
        return {"samples_seen": self.samples_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from another loader's state, whatever its world size was."""
        self.close()
        self._load(state["samples_seen"])

    def _load(self, samples_seen: int) -> None:
        if samples_seen < 0:
            raise InputError(f"samples_seen is {samples_seen}; it must not be negative")
        self.samples_seen = samples_seen

    def _plan(self) -> tuple[Iterator[np.ndarray], Identify, Draw]:
        order = self._order
        draw = functools.partial(
            _draw_training, self._augmentation, self._basis, self._stored_size, self._seed, order.num_samples
        )
        return _train_positions(order, self._share, self.samples_seen), order.sample_ids, draw


class EvalLoader(_Loader):
    """One pass over this rank's part of a split: each sample exactly once, centre crop or ten crops, no noise."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        augmentation: AugmentationConfig | None = None,
        color_basis: ColorBasis | None = None,
        mean_image_HWC: np.ndarray | None = None,
        ten_crops: bool = False,
        config: LoaderConfig | None = None,
    ) -> None:
        """Open the pass.

        Args:
            dataset: Dataset to read.
            split: Split of the dataset.
            batch_size: Samples per batch on this rank.
            rank: See `TrainLoader`.
            world_size: See `TrainLoader`.
            augmentation: Crop size and normalisation; flip and colour noise are ignored.
            color_basis: Colour statistics of the evaluated model's training set; by default those of this dataset.
            mean_image_HWC: Mean picture of the evaluated model's training set; by default that of this dataset.
            ten_crops: Return images of (N, 10, 3, H, W): corners and centre, then their mirror images (`TEN_CROPS`).
            config: See `TrainLoader`.
        """
        self._positions = RankShare(dataset.num_samples(split), rank, world_size).range_from(0)
        super().__init__(
            dataset,
            split,
            augmentation or AugmentationConfig(),
            color_basis or dataset.color_basis,
            batch_size,
            config or LoaderConfig(),
            mean_image_HWC,
            ten_crops,
        )

    def __next__(self) -> Batch:
        """Return the next batch of the pass."""
        return self._next()

    def rewind(self) -> None:
        """Begin another pass. After a whole pass the graph, its threads and their memory are used again."""
        if self._thread is None or self._feed is None:
            return
        try:
            self._thread.next()
        except StopIteration:
            self._feed.begin_again(self._plan()[0])
            self._thread.begin_again()
        else:
            self.close()

    def _plan(self) -> tuple[Iterator[np.ndarray], Identify, Draw]:
        first, end = self._positions
        size = self._graph_config.max_batch_size
        positions = (np.arange(start, min(start + size, end), dtype=np.int64) for start in range(first, end, size))
        return (
            positions,
            np.copy,
            functools.partial(_draw_evaluation, self._augmentation, self._basis, self._stored_size),
        )


def _depth(config: LoaderConfig, batch_size: int, stored_size: int, crop_size: int, ten_crops: bool) -> int:
    """Return how many batches are finished, and how many in work, within `prefetch_bytes`."""
    num_values = 3 * crop_size**2 * (len(TEN_CROPS) if ten_crops else 1)
    image_bytes = num_values * (4 if config.output_type == "float32" else 2)
    num_bytes = batch_size * max(image_bytes, 3 * stored_size**2)  # on a GPU, decoded pixels may wait instead
    return max(1, min(config.prefetch_batches, config.prefetch_bytes // (2 * num_bytes)))


def _train_positions(order: SampleOrder, share: RankShare, samples_seen: int) -> Iterator[np.ndarray]:
    pieces = share.pieces
    for first in itertools.count(samples_seen, share.global_batch_size):
        positions = order.rank_positions(first, share)
        yield from (positions[piece] for piece in pieces)


def _draw_training(
    augmentation: AugmentationConfig,
    basis: ColorBasis,
    stored_size: int,
    seed: int,
    num_samples: int,
    positions: np.ndarray,
    sample_ids: np.ndarray,
) -> AugmentationParameters[np.ndarray]:
    return draw_parameters(augmentation, basis, stored_size, seed, positions // num_samples, sample_ids)


def _draw_evaluation(
    augmentation: AugmentationConfig,
    basis: ColorBasis,
    stored_size: int,
    positions: np.ndarray,
    sample_ids: np.ndarray,
) -> AugmentationParameters[np.ndarray]:
    return center_parameters(augmentation, basis, stored_size, len(sample_ids))
