"""The DALI graph: bytes and parameters in, normalised images out. One graph for the CPU and the GPU.

    feed (Python, order and parameters) -> decode -> [resize] -> crop + mirror + normalise + transpose

The graph draws nothing by itself: crop, mirror and colour noise arrive as arguments. The colour noise is part of the
per-sample `mean`, so normalisation and colour noise are one kernel. The back ends differ only by `device` and `decode`,
in the four marked lines, and by the kernel that normalises: DALI's own, or on a CPU that of `crop_kernel.py`.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.online.augmentation import PARAMETERS, AugmentationParameters
from pipeline.online.batch import Decode, Device, Layout, OutputType
from pipeline.online.crop_kernel import NO_MEAN_IMAGE, run_function, set_up_function
from pipeline.online.reference import TEN_CROPS, ten_placements

try:
    from nvidia.dali import fn, math, pipeline_def, types
    from nvidia.dali.pipeline import Pipeline

    from pipeline.online.dali_quirks import compiled_function, takes_compiled_functions
except TypeError as error:  # DALI adds to docstrings
    if sys.flags.optimize < 2:
        raise
    from pipeline.command import InputError

    raise InputError("NVIDIA DALI can't be loaded without docstrings: leave out -OO, unset PYTHONOPTIMIZE") from error
except ModuleNotFoundError as error:
    from pipeline.command import InputError

    raise InputError(
        "NVIDIA DALI is not installed: pip install 'alexnet-at-scale[cuda13]' (or [cuda12]; both run without a GPU)"
    ) from error

Normalizer = Literal["kernel", "operator"]
_TYPES = {"float32": types.FLOAT, "float16": types.FLOAT16, "int32": types.INT32}
_EXPECTED_WARNINGS = (
    "The external source node",  # ten crops do not use the placements that are fed
    # Given by the first pipeline on a GPU. Debayering and remapping need NPP; the operators used here do not.
    r"nvidia-dali-cuda\d+ is no longer shipped with CUDA runtime.* NPP is typically",
)
Feed = Callable[[], tuple[Any, ...]] | Iterator[tuple[Any, ...]]
Augmentation = AugmentationParameters[Any]  # nodes of the graph


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """Settings of a graph.

    Attributes:
        raw: The dataset stores pixels, not JPEGs.
        whole: The dataset stores whole pictures, and the graph cuts and resizes them to squares of the stored size.
        stored_size: Side of the square that crops are cut from, in pixels.
        crop_size: Side of the output in pixels.
        divisor_3: Divisor of the mean-free pixels, float32 (3,), in grey levels.
        mean_image_HWC: Mean picture, cropped like each sample and subtracted first; None: none is subtracted. float32
            (stored_size, stored_size, 3), in grey levels.
        ten_crops: Each picture gives `pipeline.online.reference.TEN_CROPS`, and the placements that are fed are
            ignored.
        output_type: Type of the output.
        layout: Layout of the output in memory.
        max_batch_size: Largest number of samples in a batch.
        device: Device that crops, mirrors and normalises: `cpu` or `gpu`.
        decode: Decoder of the JPEGs: `cpu`, or for the device `gpu` also `mixed`, CPU and GPU together.
        normalizer: Implementation of crop, mirror and normalisation: DALI's `operator`, or on a CPU the `kernel` of
            `crop_kernel.py`, which takes a third of the time. The bits are the same.
        device_id: Index of the GPU; ignored for `cpu`.
        num_threads: Number of DALI's worker threads.
        prefetch_batches: Number of batches that are prepared ahead of the one in use.
    """

    raw: bool
    whole: bool
    stored_size: int
    crop_size: int
    divisor_3: np.ndarray
    mean_image_HWC: np.ndarray | None
    ten_crops: bool
    output_type: OutputType
    layout: Layout
    max_batch_size: int
    device: Device
    decode: Decode
    normalizer: Normalizer
    device_id: int
    num_threads: int
    prefetch_batches: int


def build_graph(feed: Feed, config: GraphConfig) -> Pipeline:
    """Define the pipeline and build it, which requires the device; see `define_graph`."""
    return built(define_graph(feed, config))


def built(pipeline: Pipeline) -> Pipeline:
    """Build a pipeline and return it, without the warnings that DALI is expected to give."""
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        pipeline.build()
    return pipeline


def define_graph(feed: Feed, config: GraphConfig) -> Pipeline:
    """Define the pipeline.

    Args:
        feed: Function that is called once per batch and returns the graph's input: a list of N arrays (uint8: the bytes
            of a JPEG, or pixels HWC), then the arrays of `AugmentationParameters`. They are not copied, so they must
            live until the batch is done. It raises StopIteration at the end.
        config: Settings of the graph.

    Returns:
        A pipeline with one output: (N, 3, crop_size, crop_size), or with ten crops (N, 10, ...), of the requested type
        and layout.
    """
    gpu = config.device == "gpu"

    @pipeline_def(
        batch_size=config.max_batch_size,
        num_threads=config.num_threads,
        device_id=config.device_id if gpu else None,  # differs by device
        prefetch_queue_depth=config.prefetch_batches,
        exec_dynamic=True,  # outputs own their memory: a batch lives as long as anyone holds it
    )
    def graph() -> Any:
        content, augmentation = fed(feed, is_decoded=config.raw)
        return normalised(decoded(content, config), augmentation, config)

    return graph()


def fed(feed: Feed, is_decoded: bool) -> tuple[Any, Augmentation]:
    """Define the graph's input: the pictures, and the parameters of their augmentation.

    Args:
        feed: See `define_graph`.
        is_decoded: The pictures are pixels HWC, not the bytes of JPEGs.
    """
    dtypes, ndims = zip(*PARAMETERS.values(), strict=True)
    content, *parameters = fn.external_source(
        source=feed,
        num_outputs=1 + len(PARAMETERS),
        batch=True,
        no_copy=True,
        layout=["HWC" if is_decoded else "", *("" for _ in PARAMETERS)],
        dtype=[types.UINT8, *(_TYPES[dtype] for dtype in dtypes)],
        ndim=[3 if is_decoded else 1, *ndims],
    )
    return content, Augmentation(*parameters)


def decoded(content: Any, config: GraphConfig) -> Any:
    """Define the first half: bytes or raw pixels -> uint8 pixels HWC of the stored size on the graph's device."""
    # All decoder flags that change pixels are pinned. The offline stage has turned rotated files upright.
    pixels = content
    if not config.raw:
        pixels = fn.decoders.image(
            content,
            device=config.decode,  # differs by device
            output_type=types.RGB,
            use_fast_idct=False,
            jpeg_fancy_upsampling=True,
            adjust_orientation=False,
        )
    if config.device == "gpu" and (config.raw or config.decode == "cpu"):
        pixels = pixels.gpu()  # differs by device
    if not config.whole:
        return pixels
    # The offline stage's rule: the centred square of the shorter side, antialiased.
    height_width = fn.cast(fn.peek_image_shape(content, adjust_orientation=False), dtype=types.FLOAT)[0:2]
    short = fn.reductions.min(height_width)
    margins = math.floor((height_width - short) / 2)
    return fn.resize(
        pixels,
        size=(config.stored_size, config.stored_size),
        roi_start=margins,
        roi_end=margins + short,
        interp_type=types.INTERP_CUBIC,
        antialias=True,
    )


def normalised(pixels: Any, augmentation: Augmentation, config: GraphConfig) -> Any:
    """Define the second half: crop, mirror, normalise and lay out in one kernel, for ten crops each of them."""
    if config.normalizer == "kernel" and takes_compiled_functions():
        return _by_kernel(pixels, augmentation, config)
    if config.mean_image_HWC is not None:
        mean_image = types.Constant(
            config.mean_image_HWC,
            layout="HWC",
            device=config.device,  # differs by device
        )
        pixels = fn.cast(pixels, dtype=types.FLOAT) - mean_image
    if not config.ten_crops:
        return _by_operator(pixels, augmentation, config)
    placements = ten_placements(config.stored_size, config.crop_size)
    return fn.stack(*(_by_operator(pixels, Augmentation(crop, augmentation.mean_N3), config) for crop in placements))


def _by_operator(pixels: Any, augmentation: Augmentation, config: GraphConfig) -> Any:
    free = max(1, config.stored_size - config.crop_size)

    def relative(offset: Any) -> Any:
        """Turn pixels into a fraction of the free range, as DALI expects; DALI rounds it to the same pixel."""
        return offset / free if isinstance(offset, int) else fn.cast(offset, dtype=types.FLOAT) / float(free)

    return fn.crop_mirror_normalize(
        pixels,
        crop=(config.crop_size, config.crop_size),
        crop_pos_x=relative(augmentation.placement_N3[0]),
        crop_pos_y=relative(augmentation.placement_N3[1]),
        mirror=augmentation.placement_N3[2],
        mean=augmentation.mean_N3,
        std=config.divisor_3.tolist(),
        dtype=_TYPES[config.output_type],
        output_layout=config.layout[1:],
    )


def _by_kernel(pixels: Any, augmentation: Augmentation, config: GraphConfig) -> Any:
    side, channels_last = config.crop_size, config.layout == "NHWC"
    output_shape: tuple[int, ...] = (side, side, 3) if channels_last else (3, side, side)
    if config.ten_crops:
        output_shape = (len(TEN_CROPS), *output_shape)
        placements = types.Constant(np.array(ten_placements(config.stored_size, side), dtype=np.int32).ravel())
    else:
        placements = augmentation.placement_N3
    mean_image = NO_MEAN_IMAGE if config.mean_image_HWC is None else config.mean_image_HWC.ravel()
    normalise = compiled_function(
        run_fn=run_function(),
        setup_fn=set_up_function(*output_shape),
        in_types=[types.UINT8, types.INT32, types.FLOAT, types.FLOAT, types.FLOAT, types.INT32],
        ins_ndim=[3, 1, 1, 1, 1, 1],
        out_types=[types.FLOAT],
        outs_ndim=[len(output_shape)],
    )
    images = normalise(
        pixels,
        placements,
        augmentation.mean_N3,
        types.Constant(np.float32(1) / config.divisor_3),
        types.Constant(mean_image),
        types.Constant(np.array([channels_last], dtype=np.int32)),
    )
    return images if config.output_type == "float32" else fn.cast(images, dtype=_TYPES[config.output_type])
