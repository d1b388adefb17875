"""A cache of a split's decoded pictures, in the memory of the GPU or of the host: each picture is decoded once.

A picture is decoded when it is first needed and stays. So nothing is made ahead, the order is the same as without the
cache, and so are the bits. Each worker keeps the pictures it has met, in the end all of them, since the order leads
every sample to every worker.
"""

from typing import Any

import numpy as np
import torch

from pipeline.command import InputError
from pipeline.online.batch import Cache
from pipeline.online.batch_thread import Upload
from pipeline.online.fed_graph import Decoder
from pipeline.online.graph import GraphConfig
from pipeline.online.shard_reader import ShardReader
from pipeline.system.memory import available_memory_bytes

# Of the free memory: what `auto` may take of a GPU's, since activations and batches made ahead come on top, and what a
# person may ask for.
_AUTO_SHARE, _LARGEST_SHARE = 0.5, 0.9
_CHANNELS = 3


class PixelCache:
    """Decoded pictures by sample id.

    Attributes:
        device: Device of the pixels.
        pixels_MHWC: Pixels of all samples of the split, uint8; those of samples not yet met are undefined.
    """

    def __init__(self, reader: ShardReader, config: GraphConfig, device: torch.device) -> None:
        """Reserve the memory.

        Args:
            reader: Reader of the split.
            config: Settings of the graph whose first half decodes.
            device: Device of the pixels.
        """
        self._reader, self.device = reader, device
        side = config.stored_size
        self.pixels_MHWC = torch.empty((reader.num_samples, side, side, _CHANNELS), dtype=torch.uint8, device=device)
        self._is_there = np.zeros(reader.num_samples, dtype=bool)
        self._num_missing = reader.num_samples
        self._decoder: Decoder | None = Decoder(config)

    def read_batch(self, sample_ids_N: np.ndarray) -> list[Any]:
        """Return the pictures: arrays HWC if they are on the CPU, else only True; None if a sample has changed."""
        self._fill(sample_ids_N)
        is_there_N = self._is_there[sample_ids_N].tolist()
        if self.device.type != "cpu":
            return [is_there or None for is_there in is_there_N]
        pixels = self.pixels_MHWC.numpy()
        return [
            pixels[sample_id] if is_there else None
            for sample_id, is_there in zip(sample_ids_N.tolist(), is_there_N, strict=True)
        ]

    def prefetch(self, sample_ids_N: np.ndarray) -> None:
        """Ask the kernel to read the bytes of samples that are not there yet; returns at once."""
        if self._decoder is not None:
            self._reader.prefetch(sample_ids_N[~self._is_there[sample_ids_N]])

    def gather(self, sample_ids_N: np.ndarray) -> torch.Tensor:
        """Return a copy of pictures that are there, uint8 (N, H, W, 3), in pinned memory; for a cache on the CPU."""
        shape = (len(sample_ids_N), *self.pixels_MHWC.shape[1:])
        gathered = torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        # NumPy copies with this thread alone: torch's threads would wait for cores that DALI uses.
        np.take(self.pixels_MHWC.numpy(), sample_ids_N, axis=0, out=gathered.numpy(), mode="clip")
        return gathered

    def _fill(self, sample_ids_N: np.ndarray) -> None:
        """Decode the samples that are not there; those that have changed stay missing."""
        if self._decoder is None:
            return
        missing = np.unique(sample_ids_N[~self._is_there[sample_ids_N]])
        if not len(missing):
            return
        pictures = self._reader.read_batch(missing)
        found = missing[[picture is not None for picture in pictures]]
        if not len(found):
            return
        pixels = self._decoder.decode(found, [picture for picture in pictures if picture is not None])
        if self.pixels_MHWC.device.type == "cpu":
            self.pixels_MHWC.numpy()[found] = pixels.cpu().numpy()
        else:
            self.pixels_MHWC[Upload(self.device)(found)] = pixels
        self._is_there[found] = True
        self._num_missing -= len(found)
        if not self._num_missing:
            self._decoder = None  # releases DALI's threads and memory


def cache_device(cache: Cache, num_bytes: int, device: torch.device) -> torch.device | None:
    """Return where a split's pixels are kept, or None.

    Args:
        cache: Choice of the user; see `LoaderConfig`.
        num_bytes: Size of the pixels.
        device: Device of the loader.

    Raises:
        InputError: The pixels don't fit there.
    """
    if cache == "none" or (cache == "auto" and device.type == "cpu"):
        return None
    if cache == "host":
        free, place, device = available_memory_bytes(), "this machine", torch.device("cpu")
    else:
        free, place = torch.cuda.mem_get_info(device)[0], "the GPU"
        if cache == "auto":
            return device if num_bytes <= _AUTO_SHARE * free else None
    if num_bytes > _LARGEST_SHARE * free:
        raise InputError(
            f"--cache {cache} keeps {num_bytes / 1e9:.1f} GB of pixels per worker, and {place} has {free / 1e9:.1f} GB "
            f"free, of which {_LARGEST_SHARE:.0%} may be used; use --cache none"
        )
    return device
