"""Batches for training and evaluation: order + augmentation + DALI graph, on any number of workers.

    positions -> sample ids -> bytes (memory-mapped) + parameters -> DALI -> Batch
       order.py                shard_reader.py  augmentation.py     graph.py

DALI prepares `prefetch_batches` ahead in its own threads; the feed only looks up and slices. A loader's whole state is
one integer, the number of samples that were handed out.
"""

import os
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.augmentation import (
    AugmentationConfig,
    AugmentationParameters,
    center_parameters,
    divisor,
    draw_parameters,
)
from pipeline.color import ColorBasis
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.graph import Device, GraphConfig, build_graph
from pipeline.order import SampleOrder, rank_slice
from pipeline.shard_reader import ShardReader


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch; it owns its memory.

    Attributes:
        images: float32 (N, 3, crop, crop), normalised, on the loader's device.
        labels: int64 (N,), class_index, on the loader's device.
        sample_ids: int64 (N,), row numbers of the split's manifest, on the CPU.
        positions: int64 (N,), places in the endless stream (evaluation: the sample ids), on the CPU.
    """

    images: torch.Tensor
    labels: torch.Tensor
    sample_ids: torch.Tensor
    positions: torch.Tensor


class _Loader(Iterator[Batch]):
    """What both loaders share: a fed DALI graph, and the identities of the batches under way."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        augmentation: AugmentationConfig,
        color_basis: ColorBasis,
        max_batch_size: int,
        device: Device,
        device_id: int,
        num_threads: int | None,
        prefetch_batches: int,
    ) -> None:
        self._reader = ShardReader(dataset, split)
        self._augmentation, self._basis = augmentation, color_basis
        self._stored_size = dataset.stored_size
        try:
            self.crop_size = augmentation.crop_of(self._stored_size)
        except ValueError as error:
            raise InputError(str(error)) from error
        self._device = torch.device("cuda", device_id) if device == "gpu" else torch.device("cpu")
        self._max_batch_size = max_batch_size
        self.data_wait_seconds = 0.0
        # The graph reads the fed arrays without a copy until the batch is done: keep those of all batches under way.
        self._alive: deque[Any] = deque(maxlen=prefetch_batches + 2)
        self._under_way: deque[tuple[np.ndarray, np.ndarray]] = deque()
        self._graph_config = GraphConfig(
            raw=dataset.member == "npy",
            whole=dataset.stores_whole_pictures,
            stored_size=self._stored_size,
            crop_size=self.crop_size,
            divisor_3=divisor(augmentation, self._basis),
            max_batch_size=max_batch_size,
            device=device,
            device_id=device_id,
            num_threads=num_threads or len(os.sched_getaffinity(0)),
            prefetch_batches=prefetch_batches,
        )
        self._pipeline: Any = None

    @abstractmethod
    def _next_positions(self) -> np.ndarray:
        """Return the positions of the next batch to feed; raise StopIteration after the last."""

    @abstractmethod
    def _identify(self, positions: np.ndarray) -> tuple[np.ndarray, AugmentationParameters]:
        """Return sample ids and parameters of positions."""

    def _feed(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        positions = self._next_positions()
        sample_ids, parameters = self._identify(positions)
        content = [self._reader.read(sample_id) for sample_id in sample_ids.tolist()]
        free = np.float32(max(1, self._stored_size - self.crop_size))
        fed = (
            content,
            parameters.crop_x_N.astype(np.float32) / free,
            parameters.crop_y_N.astype(np.float32) / free,
            parameters.mirror_N,
            parameters.mean_N3,
        )
        self._alive.append(fed)
        self._under_way.append((sample_ids, positions))
        return fed

    def __next__(self) -> Batch:
        """Return the next batch, waiting for it if need be."""
        began = time.perf_counter()
        if self._pipeline is None:
            self._pipeline = build_graph(self._feed, self._graph_config)
        (output,) = self._pipeline.run()
        images = torch.from_dlpack(output.as_tensor()).clone()
        self.data_wait_seconds += time.perf_counter() - began
        sample_ids, positions = self._under_way.popleft()
        labels = torch.from_numpy(self._reader.class_indices[sample_ids]).to(self._device)
        return Batch(images, labels, torch.from_numpy(sample_ids), torch.from_numpy(positions))

    def close(self) -> None:
        """Stop DALI's threads and release its memory."""
        self._pipeline = None
        self._alive.clear()
        self._under_way.clear()


class TrainLoader(_Loader):
    """An endless stream of training batches.

    Iterating yields this rank's slice of each global batch. Whatever the world size, the slices of all ranks join to
    the same global batches, with the same augmentations.
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
        device: Device = "cpu",
        device_id: int = 0,
        augmentation: AugmentationConfig | None = None,
        num_threads: int | None = None,
        prefetch_batches: int = 2,
    ) -> None:
        """Open the stream.

        Args:
            dataset: To read `train` of.
            global_batch_size: Samples of one step over all ranks.
            rank: Of this reader, 0 <= rank < world_size.
            world_size: Number of readers; not larger than the global batch.
            seed: Of order and augmentation.
            samples_seen: The position to begin at.
            device: Where decoding and augmentation run and where the batch lies.
            device_id: Of the GPU.
            augmentation: The paper's crop, flip and colour noise by default.
            num_threads: DALI's; by default all cores that this process may use.
            prefetch_batches: Prepared ahead.

        Raises:
            InputError: Arguments that don't fit each other or the dataset.
        """
        if global_batch_size < world_size:
            raise InputError(
                f"a global batch of {global_batch_size} can't be shared by {world_size} workers; use at most "
                f"{global_batch_size} workers, or a larger batch"
            )
        if not 0 <= rank < world_size:
            raise InputError(f"rank {rank} is not in a world of {world_size}")
        self._shape = global_batch_size, rank, world_size
        self._seed = seed
        self._order = SampleOrder(dataset.num_samples("train"), seed)
        self._load(samples_seen)
        super().__init__(
            dataset,
            "train",
            augmentation or AugmentationConfig(),
            dataset.color_basis,
            -(-global_batch_size // world_size),
            device,
            device_id,
            num_threads,
            prefetch_batches,
        )

    def __next__(self) -> Batch:
        """Return this rank's part of the next global batch."""
        batch = super().__next__()
        self.samples_seen += self._shape[0]
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return the state: the number of samples that all ranks together were handed."""
        return {"samples_seen": self.samples_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from another loader's state, whatever its world size was."""
        self.close()
        self._load(state["samples_seen"])

    def close(self) -> None:
        """Stop DALI's threads; what it had prepared is forgotten, and iterating again goes on where it was."""
        super().close()
        self._load(self.samples_seen)

    def _load(self, samples_seen: int) -> None:
        if samples_seen < 0:
            raise InputError(f"samples_seen is {samples_seen}; it must not be negative")
        self.samples_seen = self._next_fed = samples_seen

    def _next_positions(self) -> np.ndarray:
        first, end = rank_slice(self._next_fed, *self._shape)
        self._next_fed += self._shape[0]
        return np.arange(first, end, dtype=np.int64)

    def _identify(self, positions: np.ndarray) -> tuple[np.ndarray, AugmentationParameters]:
        sample_ids = self._order.sample_ids(positions)
        epochs = positions // self._order.num_samples
        return sample_ids, draw_parameters(
            self._augmentation, self._basis, self._stored_size, self._seed, epochs, sample_ids
        )


class EvalLoader(_Loader):
    """One pass over this rank's part of a split: each sample exactly once, centre crop, no noise."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: Device = "cpu",
        device_id: int = 0,
        augmentation: AugmentationConfig | None = None,
        color_basis: ColorBasis | None = None,
        num_threads: int | None = None,
        prefetch_batches: int = 2,
    ) -> None:
        """Open the pass; arguments as of `TrainLoader`, and two of its own.

        Args:
            dataset: To read.
            split: Of it.
            batch_size: Of this rank.
            rank: See `TrainLoader`.
            world_size: See `TrainLoader`.
            device: See `TrainLoader`.
            device_id: See `TrainLoader`.
            augmentation: Its crop and normalisation.
            color_basis: Of the training set of the model that is evaluated; by default this dataset's own.
            num_threads: See `TrainLoader`.
            prefetch_batches: See `TrainLoader`.
        """
        self._next, self._end = rank_slice(0, dataset.num_samples(split), rank, world_size)
        augmentation = augmentation or AugmentationConfig()
        basis = color_basis or dataset.color_basis
        super().__init__(
            dataset, split, augmentation, basis, batch_size, device, device_id, num_threads, prefetch_batches
        )

    def _next_positions(self) -> np.ndarray:
        if self._next == self._end:
            raise StopIteration
        first, self._next = self._next, min(self._next + self._max_batch_size, self._end)
        return np.arange(first, self._next, dtype=np.int64)

    def _identify(self, positions: np.ndarray) -> tuple[np.ndarray, AugmentationParameters]:
        return positions, center_parameters(self._augmentation, self._basis, self._stored_size, len(positions))
