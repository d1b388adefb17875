"""The DALI graph: bytes and parameters in, normalised images out. One graph for the CPU and the GPU.

    feed (Python, order and parameters) -> decode -> [resize] -> crop + mirror + normalise + transpose

The graph draws nothing by itself: crop, mirror and colour noise arrive as arguments. The colour noise is part of the
per-sample `mean`, so normalisation and colour noise are one kernel. The back ends differ by `device` and `decode`, in
the marked lines, and by the kernel that normalises: DALI's own, on a CPU that of `crop_kernel.py`, and on a GPU that of
`crop_triton.py`, which runs after the graph.
"""

import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.online.augmentation import PARAMETERS, AugmentationParameters
from pipeline.online.batch import Decode, Device, Layout, LoaderConfig, OutputType
from pipeline.online.crop_kernel import NO_MEAN_IMAGE, run_function, set_up_function
from pipeline.online.reference import TEN_CROPS, ten_placements

try:
    from nvidia.dali import fn, math, pipeline_def, types
    from nvidia.dali.pipeline import Pipeline, do_not_convert

    from pipeline.online.dali_quirks import compiled_function, takes_compiled_functions, tensor_list
except TypeError as error:  # DALI adds to docstrings
    if sys.flags.optimize < 2:
        raise
    from pipeline.command import InputError

    raise InputError("NVIDIA DALI can't be loaded without docstrings: leave out -OO, unset PYTHONOPTIMIZE") from error
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("nvidia"):  # DALI is there, but not what it needs
        raise
    from pipeline.command import InputError

    raise InputError(
        "NVIDIA DALI is not installed: pip install 'alexnet-at-scale[cuda13]' (or [cuda12]; both run without a GPU)"
    ) from error

Normalizer = Literal["kernel", "operator", "none"]
_TYPES = {"float32": types.FLOAT, "float16": types.FLOAT16, "int32": types.INT32, "bool": types.BOOL}
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
        decode: See `pipeline.online.batch.LoaderConfig`.
        normalizer: Implementation of crop, mirror and normalisation: DALI's `operator`, or on a CPU the `kernel` of
            `crop_kernel.py`, which takes a third of the time and makes the same bits. With `none`, the output is the
            decoded pixels, uint8 (N, stored_size, stored_size, 3).
        device_id: Index of the GPU; ignored for `cpu`.
        num_threads: Number of DALI's worker threads.
        prefetch_batches: Number of batches that are prepared ahead of the one in use.
        hw_decoder_load: See `pipeline.online.batch.LoaderConfig`.
        gpu_share: See `pipeline.online.batch.LoaderConfig`.
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
    hw_decoder_load: float = LoaderConfig.hw_decoder_load
    gpu_share: float = LoaderConfig.gpu_share


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
        feed: Function or iterator that gives the graph's input, a batch at a time, as a tuple: N arrays (uint8: the
            bytes of a JPEG, or pixels HWC), then the arrays of `AugmentationParameters` (not for the normalizer
            `none`), then for the decoder `split` a bool array (N,), true for pictures that the GPU decodes. The arrays
            are not copied, so they must live until the batch is done. It raises StopIteration at the end.
        config: Settings of the graph.

    Returns:
        A pipeline with one output: (N, 3, crop_size, crop_size), or with ten crops (N, 10, ...), of the requested type
        and layout; for the normalizer `none`, see `GraphConfig`.
    """
    gpu = config.device == "gpu"

    @pipeline_def(
        batch_size=config.max_batch_size,
        num_threads=config.num_threads,
        device_id=config.device_id if gpu else None,  # differs by device
        prefetch_queue_depth=config.prefetch_batches,
        exec_dynamic=True,  # outputs own their memory: a batch lives as long as anyone holds it
        enable_conditionals=config.decode == "split",
    )
    def graph() -> Any:
        content, augmentation, by_gpu = fed(feed, config, is_decoded=config.raw)
        return normalised(decoded(content, config, by_gpu), augmentation, config)

    return graph()


def fed(feed: Feed, config: GraphConfig, is_decoded: bool) -> tuple[Any, Augmentation | None, Any]:
    """Define the graph's input: pictures, parameters of their augmentation, and who decodes them.

    Args:
        feed: See `define_graph`.
        config: Settings of the graph.
        is_decoded: The pictures are pixels HWC, not the bytes of JPEGs.
    """
    has_parameters, splits = config.normalizer != "none", config.decode == "split" and not is_decoded
    others = [*(PARAMETERS.values() if has_parameters else ()), *([("bool", 0)] if splits else ())]
    content, *nodes = fn.external_source(
        source=_with_tensor_lists(feed, "HWC" if is_decoded else "", config.prefetch_batches + 2),
        num_outputs=1 + len(others),
        batch=True,
        no_copy=True,
        dtype=[types.UINT8, *(_TYPES[dtype] for dtype, _ in others)],
        ndim=[3 if is_decoded else 1, *(ndim for _, ndim in others)],
    )
    by_gpu = nodes.pop() if splits else None
    return content, Augmentation(*nodes) if has_parameters else None, by_gpu


@do_not_convert
def _with_tensor_lists(feed: Feed, layout: str, num_alive: int) -> Callable[[], tuple[Any, ...]]:
    """Make one list of tensors of the pictures of a batch; DALI itself would hold Python's lock twice as long."""
    take = feed if callable(feed) else feed.__next__
    alive: deque[Any] = deque(maxlen=num_alive)  # DALI reads the pictures until the batch is done

    def take_batch() -> tuple[Any, ...]:
        pictures, *others = take()
        batch = tensor_list(pictures, layout)
        alive.append((pictures, others, batch))
        return batch, *others

    return take_batch


def decoded(content: Any, config: GraphConfig, by_gpu: Any = None) -> Any:
    """Define the first half: bytes or raw pixels -> uint8 pixels HWC of the stored size on the graph's device.

    Args:
        content: Bytes or raw pixels.
        config: Settings of the graph.
        by_gpu: For the decoder `split`, whether the GPU decodes each picture.
    """
    gpu = config.device == "gpu"
    if config.raw:
        pixels = fn.copy(content) if gpu or config.normalizer == "none" else content
        pixels = pixels.gpu() if gpu else pixels  # the copy is in pinned memory, the pictures are not
    elif by_gpu is None:
        pixels = _decoded_by(config.decode, content, config)
    elif by_gpu:  # for each sample, by DALI's conditional execution
        pixels = _decoded_by("mixed", content, config)
    else:
        pixels = _decoded_by("cpu", content, config)
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


def _decoded_by(decoder: str, content: Any, config: GraphConfig) -> Any:
    # All flags that change pixels are pinned. The offline stage has turned rotated files upright.
    options: dict[str, Any] = {}
    if decoder == "mixed":
        options["hw_decoder_load"] = config.hw_decoder_load
        if not config.whole:  # all pictures have this size
            options["preallocate_width_hint"] = options["preallocate_height_hint"] = config.stored_size
    pixels = fn.decoders.image(
        content,
        device=decoder,  # differs by device
        output_type=types.RGB,
        use_fast_idct=False,
        jpeg_fancy_upsampling=True,
        adjust_orientation=False,
        **options,
    )
    return pixels.gpu() if config.device == "gpu" and decoder == "cpu" else pixels  # differs by device


def normalised(pixels: Any, augmentation: Augmentation | None, config: GraphConfig) -> Any:
    """Define the second half: crop, mirror, normalise and lay out in one kernel, for ten crops each of them."""
    if augmentation is None:  # the normalizer `none`
        return pixels
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
