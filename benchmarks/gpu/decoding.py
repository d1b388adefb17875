"""Checks of DALI's graph: the GPU decodes, and its pictures equal those of the CPU's graph in every form."""

import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import torch
from nvidia import dali
from nvidia.dali import backend, fn, pipeline_def, types

from benchmarks.gpu.aims import (
    LARGEST_DIFFERENCE,
    MEAN_DIFFERENCE,
    OTHER_DECODER,
    SAME_DECODER,
    SAME_DECODER_FLOAT16,
    bounds,
)
from benchmarks.gpu.datasets import ENCODINGS
from benchmarks.gpu.trial import Failed, Trial, describe
from pipeline.dataset import Dataset
from pipeline.online.augmentation import AugmentationParameters
from pipeline.online.batch import Decode, Device, Layout, OutputType
from pipeline.online.fed_graph import Decoder
from pipeline.online.graph import GraphConfig, build_graph
from pipeline.online.reference import ten_placements
from pipeline.online.shard_reader import ShardReader

_VERSIONS = ("GetCudaVersion", "GetCufftVersion", "GetNppVersion", "GetNvimgcodecVersion", "GetNvjpegVersion")
_LARGEST_DECODING_ERROR = 12  # grey levels, for blocks of equal grey at quality 95
_DIVISOR_3 = np.array([58.4, 57.1, 57.4], np.float32)
_EXACT = {"float32": SAME_DECODER, "float16": SAME_DECODER_FLOAT16}  # if both graphs get the same pixels
_OPERATOR = "operator, decoded by the CPU"
_SECONDS_OF_A_FORM = 3
Make = Callable[[tuple[Any, ...], GraphConfig], torch.Tensor]


def check_dali(trial: Trial) -> None:
    """Decode a JPEG on the GPU; note the versions of DALI and the libraries it found, and its warnings."""
    trial.note("DALI", dali.__version__)
    for name in _VERSIONS:
        if hasattr(backend, name):
            trial.note(name, getattr(backend, name)())
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    pixels_HWC = np.ascontiguousarray(np.kron(grey, np.ones((16, 16, 3), np.uint8)))
    content = np.frombuffer(simplejpeg.encode_jpeg(pixels_HWC, 95, "RGB", "420"), np.uint8)

    @pipeline_def(batch_size=8, num_threads=4, device_id=None if trial.is_dry else 0, exec_dynamic=True)
    def graph() -> Any:
        fed = fn.external_source(source=lambda: [content] * 8, batch=True, dtype=types.UINT8, ndim=1)
        device = "cpu" if trial.is_dry else "mixed"
        return fn.decoders.image(fed, device=device, output_type=types.RGB, jpeg_fancy_upsampling=True)

    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline = graph()
        pipeline.build()
        (output,) = pipeline.run()
        images = torch.from_dlpack(output.as_tensor())
    trial.note("seconds to the first batch", time.perf_counter() - began)
    trial.note("warnings", sorted({str(warning.message)[:160] for warning in caught}))
    trial.note("device", str(images.device))
    apart = int((images[0].cpu().int() - torch.from_numpy(pixels_HWC).int()).abs().max())
    trial.note("largest difference, grey levels", apart)
    if images.device.type != trial.device.type:
        raise Failed(f"the batch lies on {images.device}, not on the GPU")
    if apart > _LARGEST_DECODING_ERROR:
        raise Failed(f"the decoded picture is wrong by {apart} grey levels")


@dataclass(frozen=True)
class _Form:
    """A form of the graph's output."""

    subtracts_image: bool
    ten_crops: bool
    layout: Layout
    output_type: OutputType

    def __str__(self) -> str:
        return (
            f"{self.layout} {self.output_type}{', mean image' * self.subtracts_image}{', ten crops' * self.ten_crops}"
        )


_FORMS = (
    _Form(False, False, "NHWC", "float32"),
    _Form(True, False, "NHWC", "float32"),
    _Form(False, True, "NHWC", "float32"),
    _Form(True, True, "NCHW", "float32"),
    _Form(False, False, "NCHW", "float32"),
    _Form(False, False, "NHWC", "float16"),
)


def check_parity(trial: Trial) -> None:
    """Compare the GPU's pictures with the CPU's in every form and encoding; note the differences in grey levels.

    A GPU's pictures are made by the kernel, or by DALI's operator where the kernel can't run. A dry run compares that
    operator with the kernel of the CPU.
    """
    wrong: list[str] = []
    differences: dict[str, list[dict[str, float]]] = {}
    for encoding, form in itertools.product(ENCODINGS, _FORMS):
        if not trial.has_time(_SECONDS_OF_A_FORM):
            trial.note("not reached", f"{encoding} {form}, and what follows")
            break
        wrong += _compare(trial, encoding, form, differences)
    trial.add_rounds({kind: _largest(figures) for kind, figures in differences.items()})
    if wrong:
        raise Failed("; ".join(wrong))


def _largest(figures: list[dict[str, float]]) -> dict[str, list[float]]:
    """Return the largest differences of several comparisons, as values of a single round."""
    return {
        quantity: [max(figure[quantity] for figure in figures)] for quantity in (LARGEST_DIFFERENCE, MEAN_DIFFERENCE)
    }


def _compare(trial: Trial, encoding: str, form: _Form, differences: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """Compare the GPU's graphs with the CPU's in one form, and yield the differences that are too large.

    All are noted, and added to `differences` under the name of their aims.
    """
    dataset = trial.dataset(encoding)
    fed, mean_image_HWC = _draw(dataset, 8 if trial.is_dry else 32)
    subtracted_HWC = mean_image_HWC if form.subtracts_image else None
    expected = _run(fed, _config(dataset, form, subtracted_HWC))
    for label, (device, decode, make) in _backends(trial, dataset).items():
        name = f"{encoding} {form}, {label}"
        try:
            found = make(fed, _config(dataset, form, subtracted_HWC, device, decode))
        except Exception as error:
            trial.note(name, describe(error))
            yield f"{name}: {describe(error)}"
            continue
        if found.shape != expected.shape:
            yield f"{name}: its shape is {tuple(found.shape)}, not {tuple(expected.shape)}"
            continue
        apart = (found - expected).abs() * float(_DIVISOR_3.mean())
        figures = {
            LARGEST_DIFFERENCE: apart.max().item(),
            MEAN_DIFFERENCE: apart.mean().item(),
            "over 1": (apart > 1.01).float().mean().item(),
            "over 4": (apart > 4.01).float().mean().item(),
        }
        trial.note(name, figures)
        gets_same_pixels = decode == "cpu" and not dataset.stores_whole_pictures
        kind = _EXACT[form.output_type] if gets_same_pixels else OTHER_DECODER
        differences.setdefault(kind, []).append(figures)
        if any(not figures[quantity] <= largest for quantity, largest in bounds(kind).items()):
            yield f"{name}: {figures}, in grey levels"


def _backends(trial: Trial, dataset: Dataset) -> dict[str, tuple[Device, Decode, Make]]:
    """Return what is compared with the CPU: the device, the decoder, and the function that makes the pictures."""
    if trial.is_dry:
        return {_OPERATOR: ("cpu", "cpu", _run)}
    backends: dict[str, tuple[Device, Decode, Make]] = {
        "kernel, decoded by the CPU": ("gpu", "cpu", _run_kernel),
        "kernel, mixed": ("gpu", "mixed", _run_kernel),
        _OPERATOR: ("gpu", "cpu", _run),
    }
    if dataset.member == "npy":
        del backends["kernel, mixed"]
    return backends


def _draw(dataset: Dataset, num_samples: int) -> tuple[tuple[Any, ...], np.ndarray]:
    """Return the graph's input and a mean image."""
    generator, size = np.random.default_rng(0), dataset.stored_size
    reader, num_offsets = ShardReader(dataset, "train"), size - _crop_size(size) + 1
    placement_N3 = generator.integers(0, [num_offsets, num_offsets, 2], (num_samples, 3), dtype=np.int32)
    mean_N3 = generator.normal(120, 9, (num_samples, 3)).astype(np.float32)
    parameters = AugmentationParameters(placement_N3, mean_N3)
    fed = [reader.read(sample_id) for sample_id in range(num_samples)], *parameters.values()
    return fed, generator.uniform(90, 140, (size, size, 3)).astype(np.float32)


def _run(fed: tuple[Any, ...], config: GraphConfig) -> torch.Tensor:
    pipeline = build_graph(lambda: fed, config)
    (output,) = pipeline.run()
    return torch.from_dlpack(output.as_tensor()).float().cpu()


def _run_kernel(fed: tuple[Any, ...], config: GraphConfig) -> torch.Tensor:
    """Make pictures as the loader does on a GPU: DALI decodes, and the kernel does the rest."""
    from pipeline.online.crop_triton import CropKernel  # here: only GPUs need it

    (pictures, placement_N3, mean_N3), device = fed, torch.device("cuda", config.device_id)
    pixels = Decoder(config).decode(np.arange(len(pictures)), pictures)
    placement_NK3 = placement_N3[:, None]
    if config.ten_crops:
        ten = np.array(ten_placements(config.stored_size, config.crop_size), dtype=np.int32)
        placement_NK3 = np.tile(ten, (len(pictures), 1, 1))
    crop = CropKernel(
        config.crop_size, config.divisor_3, config.mean_image_HWC, config.output_type, config.layout, device
    )
    images = crop(pixels, None, torch.from_numpy(placement_NK3).to(device), torch.from_numpy(mean_N3).to(device))
    return (images if config.ten_crops else images[:, 0]).float().cpu()


def _crop_size(stored_size: int) -> int:
    """Return the crop size: 224 for 256, and in proportion for other sizes."""
    return stored_size * 7 // 8 // 2 * 2


def _config(
    dataset: Dataset,
    form: _Form,
    mean_image_HWC: np.ndarray | None,
    device: Device = "cpu",
    decode: Decode | None = None,
) -> GraphConfig:
    """Return the graph of a form; without `decode`, the CPU's graph with its own kernel."""
    return GraphConfig(
        raw=dataset.member == "npy",
        whole=dataset.stores_whole_pictures,
        stored_size=dataset.stored_size,
        crop_size=_crop_size(dataset.stored_size),
        divisor_3=_DIVISOR_3,
        mean_image_HWC=mean_image_HWC,
        ten_crops=form.ten_crops,
        output_type=form.output_type,
        layout=form.layout,
        max_batch_size=32,
        device=device,
        decode=decode or "cpu",
        normalizer="operator" if decode else "kernel",
        device_id=0,
        num_threads=len(os.sched_getaffinity(0)),
        prefetch_batches=2,
    )
