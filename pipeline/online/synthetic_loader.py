"""A loader without data: batches of the same shapes, labels in range and the same positions, at no cost.

In place of `TrainLoader` it shows whether data or computation is slow: a step then takes only the time to compute.
"""

from collections.abc import Iterator

import torch

from pipeline.online.batch import Batch, LoaderConfig
from pipeline.online.batch_thread import joined
from pipeline.online.order import RankShare


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
            num_samples: Number of samples in the imagined dataset.
            num_classes: Number of classes; labels are 0 to num_classes - 1.
            crop_size: Side of the images, in pixels.
            global_batch_size: Samples per step over all ranks.
            rank: Rank of this reader.
            world_size: Number of readers.
            seed: Seed of the noise.
            samples_seen: Position to begin at.
            config: Device, type and layout of the images, sizes of groups and micro-batches; the other fields have no
                effect.
        """
        config = config or LoaderConfig()
        device = torch.device("cuda", config.device_id) if config.device == "gpu" else torch.device("cpu")
        self._share = RankShare(global_batch_size, rank, world_size, config.group_size, config.micro_batch_size)
        generator = torch.Generator().manual_seed(seed)
        largest = self._share.largest_piece
        images = torch.randn(largest, 3, crop_size, crop_size, generator=generator)
        memory_format = torch.channels_last if config.layout == "NHWC" else torch.contiguous_format
        self._images = images.to(device, getattr(torch, config.output_type), memory_format=memory_format)
        self._num_samples, self._num_classes = num_samples, num_classes
        self._device = device
        self.crop_size, self.samples_seen, self.data_wait_seconds = crop_size, samples_seen, 0.0
        self.num_replaced_samples = 0

    def __next__(self) -> Batch:
        """Return the next batch."""
        return joined(list(self.micro_batches()))

    def micro_batches(self) -> Iterator[Batch]:
        """Yield the next batch in pieces; see `TrainLoader.micro_batches`."""
        first, end = self._share.range_from(self.samples_seen)
        positions_N = torch.arange(first, end)
        # Made on the device: a copy of the CPU's would make the process wait.
        on_device_N = positions_N if self._device.type == "cpu" else torch.arange(first, end, device=self._device)
        for piece in self._share.pieces:
            positions, on_device = positions_N[piece], on_device_N[piece]
            labels, sample_ids = on_device % self._num_samples % self._num_classes, positions % self._num_samples
            yield Batch(self._images[: len(positions)], labels, sample_ids, positions, on_device)
        self.samples_seen += self._share.global_batch_size

    def state_dict(self) -> dict[str, int]:
        """Return the state: the number of samples that all ranks together have received."""
        return {"samples_seen": self.samples_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from another loader's state."""
        self.samples_seen = state["samples_seen"]

    def close(self) -> None:
        """Do nothing; it exists because loaders are closed."""
