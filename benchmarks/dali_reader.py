"""DALI's own WebDataset reader with the operators of this project's graph, as a peer, on the CPU or the GPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, math, pipeline_def, types

from pipeline.dataset import Dataset
from pipeline.online.augmentation import AugmentationConfig, divisor
from pipeline.online.batch import Device, Layout

_SHUFFLE_BUFFER = 1000  # samples: the reader cannot shuffle a whole dataset


def dali_batches(
    dataset: Dataset,
    batch_size: int,
    num_threads: int,
    prefetch_batches: int,
    *,
    device: Device = "cpu",
    layout: Layout = "NCHW",
    noise: bool = False,
) -> Iterator[tuple[torch.Tensor, Any]]:
    """Yield normalised images, uncopied, with DALI's labels, without end.

    Args:
        dataset: Dataset whose shards of `train` are read.
        batch_size: Pictures per batch.
        num_threads: Number of DALI's threads.
        prefetch_batches: Depth of DALI's queue.
        device: Device of the images; on a GPU, the CPU and the GPU decode together (`mixed`).
        layout: Layout of the images in memory and of their shape.
        noise: True to draw the colour noise too, as operators of the graph.
    """
    shards = shard_paths(dataset)
    config, basis, size = AugmentationConfig(), dataset.color_basis, dataset.stored_size
    mean_3 = (basis.mean_3 * basis.pixel_scale).astype(np.float32)
    # One row per colour: the shift per unit of each coefficient, in grey levels.
    shift_33 = (basis.eigenvectors_33 * basis.eigenvalues_3 * basis.pixel_scale).astype(np.float32)

    @pipeline_def(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=0 if device == "gpu" else None,
        prefetch_queue_depth=prefetch_batches,
        seed=0,
    )
    def graph() -> Any:
        content, label = fn.readers.webdataset(
            paths=shards,
            index_paths=[str(Path(shard).with_suffix(".idx")) for shard in shards],
            ext=[dataset.member, "cls"],
            random_shuffle=True,
            initial_fill=_SHUFFLE_BUFFER,
        )
        if dataset.member == "npy":
            pixels = fn.reshape(fn.decoders.numpy(content), layout="HWC")
            if device == "gpu":
                pixels = pixels.gpu()
        else:
            pixels = fn.decoders.image(
                content,
                device="mixed" if device == "gpu" else "cpu",
                output_type=types.RGB,
                use_fast_idct=False,
                jpeg_fancy_upsampling=True,
                adjust_orientation=False,
            )
        if dataset.stores_whole_pictures:
            height_width = fn.cast(fn.peek_image_shape(content, adjust_orientation=False), dtype=types.FLOAT)[0:2]
            short = fn.reductions.min(height_width)
            margins = math.floor((height_width - short) / 2)
            pixels = fn.resize(
                pixels,
                size=(size, size),
                roi_start=margins,
                roi_end=margins + short,
                interp_type=types.INTERP_CUBIC,
                antialias=True,
            )
        mean: Any = mean_3.tolist()
        if noise:
            alpha_3 = fn.random.normal(stddev=config.color_noise_sigma, shape=[3])
            shift_3 = fn.reductions.sum(types.Constant(shift_33) * alpha_3, axes=[1])
            mean = types.Constant(mean_3) - shift_3
        images = fn.crop_mirror_normalize(
            pixels,
            crop=(config.crop_of(size),) * 2,
            crop_pos_x=fn.random.uniform(range=(0.0, 1.0)),
            crop_pos_y=fn.random.uniform(range=(0.0, 1.0)),
            mirror=fn.random.coin_flip(),
            mean=mean,
            std=divisor(config, basis).tolist(),
            dtype=types.FLOAT,
            output_layout=layout[1:],
        )
        return images, label

    pipeline = graph()
    pipeline.build()
    while True:
        images, labels = pipeline.run()
        yield torch.from_dlpack(images.as_tensor()), labels


def shard_paths(dataset: Dataset) -> list[str]:
    """Return the paths of the shards of `train`."""
    return [str(dataset.path / name) for name in dataset.manifest("train", ["shard"])["shard"].unique().to_pylist()]
