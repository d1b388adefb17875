"""Batches and the configuration of the loaders that make them. Loads neither torch nor DALI."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Device = Literal["cpu", "gpu"]
Decode = Literal["cpu", "mixed", "split"]
Cache = Literal["none", "auto", "gpu", "host"]
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
        device_positions: The positions on the loader's device.
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
        decode: Decoder of the JPEGs: `cpu`, with the same bits on either device; `mixed`, the GPU's engines and
            kernels, whose pixels may differ by some grey levels; or `split`, by sample one of the two. None: `mixed` if
            the device is a GPU.
        gpu_share: Fraction of the samples that the GPU decodes, for `split`; the sample's id decides.
        hw_decoder_load: Fraction of the GPU's pictures that its JPEG engines decode, where it has them; its kernels
            decode the others.
        device_id: Index of the GPU; ignored for `cpu`.
        num_threads: Number of DALI's threads; None: one more than the cores that this process may use, so that no core
            idles while another thread finishes a batch.
        prefetch_batches: Number of finished batches in the queue, and number of batches in work.
        prefetch_bytes: Maximum size of all these batches together; they are fewer if they are large, but at least one
            is finished and one in work.
        micro_batch_size: Maximum number of samples that are made at a time, for `TrainLoader.micro_batches`; at least
            `group_size`. None: this rank's whole part of the global batch.
        cache: Where decoded pictures are kept, so that each is decoded once: in the memory of the `gpu`, of the `host`,
            or nowhere (`none`). `auto`: in the GPU's if they take at most half of its free memory.
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
    gpu_share: float = 1.0
    hw_decoder_load: float = 0.65
    prefetch_batches: int = 3
    prefetch_bytes: int = 8 << 30
    micro_batch_size: int | None = None
    cache: Cache = "none"
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
        if self.micro_batch_size is not None and self.micro_batch_size < self.group_size:
            raise ValueError(f"micro_batch_size={self.micro_batch_size}: must be at least {self.group_size}")
        if self.prefetch_batches < 1 or self.prefetch_bytes < 1:
            raise ValueError("prefetch_batches and prefetch_bytes: must be at least 1")
        for name in ("gpu_share", "hw_decoder_load"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 to 1")
        for name, value in (("decode", "mixed"), ("decode", "split"), ("cache", "gpu")):
            if getattr(self, name) == value and self.device != "gpu":
                raise ValueError(f"{name}={value!r}: needs device='gpu'")
