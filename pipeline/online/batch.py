"""What a loader hands out, and how it is asked to make it. Loads neither torch nor DALI."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Device = Literal["cpu", "gpu"]
Decode = Literal["cpu", "mixed"]
OutputType = Literal["float32", "float16"]
Layout = Literal["NCHW", "NHWC"]
OnBadSample = Literal["error", "skip-and-count"]


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch; it owns its memory.

    Attributes:
        images: (N, 3, crop, crop), or (N, 10, 3, crop, crop) for ten crops; normalised, on the loader's device.
        labels: int64 (N,), class_index, on the loader's device.
        sample_ids: int64 (N,), row numbers of the split's manifest, on the CPU.
        positions: int64 (N,), places in the endless stream (evaluation: the sample ids), on the CPU.
    """

    images: "torch.Tensor"
    labels: "torch.Tensor"
    sample_ids: "torch.Tensor"
    positions: "torch.Tensor"


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How batches are made, which changes no sample of them.

    Attributes:
        device: Where augmentation runs and where the batch lies: `cpu` or `gpu`.
        decode: Where JPEGs are decoded: `cpu`, the same bits on either device, or `mixed`, by a GPU too, whose pixels
            may differ by some grey levels. None: `mixed` where the device is a GPU.
        device_id: Index of the GPU; ignored for `cpu`.
        num_threads: DALI's threads; None: one more than the cores that this process may use, so that none idles while
            another thread ends a batch.
        prefetch_batches: Finished batches that wait in the queue.
        output_type: Type of the images.
        layout: Layout of the images in memory. Their shape is always (N, 3, H, W): NHWC is torch's channels-last
            format.
        on_bad_sample: What happens to a sample whose bytes have changed since they were written, or are gone with the
            shard or its end: it is an `error`, or is replaced by the next whole one and counted (`skip-and-count`).
        group_size: Training samples that stay on one rank, as ghost batch normalisation wants it; divides the global
            batch.
    """

    device: Device = "cpu"
    decode: Decode | None = None
    device_id: int = 0
    num_threads: int | None = None
    prefetch_batches: int = 3
    output_type: OutputType = "float32"
    layout: Layout = "NCHW"
    on_bad_sample: OnBadSample = "error"
    group_size: int = 1

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: Names the field, its value and what would be right.
        """
        if self.group_size < 1:
            raise ValueError(f"group_size={self.group_size}: must be at least 1")
        if self.decode == "mixed" and self.device != "gpu":
            raise ValueError("decode='mixed': needs device='gpu'; a CPU decodes alone, decode='cpu'")
