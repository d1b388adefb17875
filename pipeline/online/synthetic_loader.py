"""A loader without data: the same batches' shapes, labels in range and positions, at no cost.

In `TrainLoader`'s place it tells whether data or computation is slow: what a step takes with it is computation alone.
"""

from collections.abc import Iterator

import numpy as np
import torch

from pipeline.online.batch import Batch, LoaderConfig
from pipeline.online.order import RankShare

_TYPES = {"float32": torch.float32, "float16": torch.float16}


class SyntheticLoader(Iterator[Batch]):
    """An endless stream of batches that share one tensor of noise; otherwise it follows `TrainLoader`."""

    def __init__(
        self,
        *,
        num_samples: int,
        num_classes: int,
        crop_size: int,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        samples_seen: int = 0,
        config: LoaderConfig | None = None,
    ) -> None:
        """Make the noise.

        Args:
            num_samples: Of the data set that there might be.
            num_classes: Labels are 0 to num_classes - 1.
            crop_size: Side of the images, in pixels.
            global_batch_size: Samples of one step over all ranks.
            rank: Of this reader.
            world_size: Number of readers.
            seed: Of the noise.
            samples_seen: The position to begin at.
            config: Device, type and layout of the images; the rest has no meaning here.
        """
        config = config or LoaderConfig()
        device = torch.device("cuda", config.device_id) if config.device == "gpu" else torch.device("cpu")
        self._share = RankShare(global_batch_size, rank, world_size, config.group_size)
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(self._share.largest, 3, crop_size, crop_size, generator=generator)
        memory_format = torch.channels_last if config.layout == "NHWC" else torch.contiguous_format
        self._images = images.to(device, _TYPES[config.output_type], memory_format=memory_format)
        self._num_samples, self._num_classes = num_samples, num_classes
        self._device = device
        self.crop_size, self.samples_seen, self.data_wait_seconds = crop_size, samples_seen, 0.0
        self.num_replaced_samples = 0

    def __next__(self) -> Batch:
        """Return the next batch."""
        first, end = self._share.range_from(self.samples_seen)
        self.samples_seen += self._share.global_batch_size
        positions = np.arange(first, end, dtype=np.int64)
        sample_ids = torch.from_numpy(positions % self._num_samples)
        labels = (sample_ids % self._num_classes).to(self._device)
        return Batch(self._images[: end - first], labels, sample_ids, torch.from_numpy(positions))

    def state_dict(self) -> dict[str, int]:
        """Return the state: the number of samples that all ranks together were handed."""
        return {"samples_seen": self.samples_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from another loader's state."""
        self.samples_seen = state["samples_seen"]

    def close(self) -> None:
        """Do nothing; a loader can be closed."""
