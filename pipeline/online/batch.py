"""Batches and the configuration of the loaders that make them. Loads neither torch nor DALI."""

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
        images: Normalised images, (N, 3, crop, crop), or (N, 10, 3, crop, crop) for ten crops; on the loader's device.
        labels: Class of each sample (class_index), int64 (N,), on the loader's device.
        sample_ids: Row numbers of the split's manifest, int64 (N,), on the CPU.
        positions: Positions in the endless stream (in evaluation the sample ids), int64 (N,), on the CPU.
        device_positions: The same positions on the loader's device; on a CPU, the same tensor.
    """

    images: "torch.Tensor"
    labels: "torch.Tensor"
    sample_ids: "torch.Tensor"
    positions: "torch.Tensor"
    device_positions: "torch.Tensor"


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How batches are made; which samples they hold does not depend on it.

    Attributes:
        device: Device of the augmentation and of the finished batch: `cpu` or `gpu`.
        decode: Decoder of the JPEGs: `cpu`, with the same bits on either device, or `mixed`, CPU and GPU together,
            whose pixels may differ by some grey levels. None: `mixed` if the device is a GPU.
        device_id: Index of the GPU; ignored for `cpu`.
        num_threads: Number of DALI's threads; None: one more than the cores that this process may use, so that no core
            idles while another thread finishes a batch.
        prefetch_batches: Number of finished batches in the queue.
        output_type: Type of the images.
        layout: Layout of the images in memory. Their shape is always (N, 3, H, W): NHWC is torch's channels-last
            format.
        on_bad_sample: What happens if the bytes of a sample have changed since they were written, or are missing
            together with the shard or its end: an `error`, or the next good sample takes its place and is counted
            (`skip-and-count`).
        group_size: Number of consecutive training samples that stay on one rank, for ghost batch normalisation; divides
            the global batch.
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
            ValueError: A field has a bad value; the message names the field, the value and what would be right.
        """
        if self.group_size < 1:
            raise ValueError(f"group_size={self.group_size}: must be at least 1")
        if self.decode == "mixed" and self.device != "gpu":
            raise ValueError("decode='mixed': needs device='gpu'; a CPU decodes alone, decode='cpu'")
