"""The pictures of a report, as data inside the page: the network's first filters, and what training reads."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cluster.run.run_folder import RunFolder
from pipeline.dataset import Dataset
from pipeline.online.augmentation import draw_parameters
from pipeline.online.order import SampleOrder
from pipeline.preview import Sample, displayable_crops, samples_of

if TYPE_CHECKING:
    import torch
    from torch import nn

_MAX_SIDE = 256  # pixels of a picture on the page, twice its width there
_SMALL = 64  # pictures up to this side are shown pixel by pixel
_JPEG_QUALITY = 88
_FILTERS_PER_STRIP = 8
_FILTER_SIDE, _GAP = 60, 8  # pixels of a strip: of a filter, and between two of them
_SHEET_SAMPLES, SHEET_EPOCHS = 6, 3


@dataclass(frozen=True)
class Shown:
    """A picture of the page.

    Attributes:
        uri: The picture as a data URI.
        width: Width in pixels.
        height: Height in pixels.
        is_small: Whether it is enlarged by whole pixels.
    """

    uri: str
    width: int
    height: int
    is_small: bool = False


@dataclass(frozen=True)
class Filters:
    """The first layer's filters.

    Attributes:
        strips: The filters, each scaled to its own range, eight side by side: a phone has room for one strip in a row,
            a wide window for two.
        num_filters: Number of filters.
        side: Height and width of a filter.
        step: Step of the weights.
    """

    strips: Sequence[Shown]
    num_filters: int
    side: str
    step: int


@dataclass(frozen=True)
class SheetRow:
    """A training sample: its stored picture and its crops in the first epochs.

    Attributes:
        name: Name of its class.
        source: Name of the picture in its source.
        stored: Stored picture.
        crops: Crops in successive epochs.
    """

    name: str
    source: str
    stored: Shown
    crops: Sequence[Shown]


def shown(pixels_HWC: np.ndarray) -> Shown:
    """Return a picture as the page holds it: small ones exactly, larger ones scaled down, as JPEG."""
    picture = Image.fromarray(pixels_HWC)
    longest = max(picture.size)
    content = io.BytesIO()
    if longest <= _SMALL:
        picture.save(content, "PNG", optimize=True)
    else:
        picture.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.BICUBIC)
        picture.save(content, "JPEG", quality=_JPEG_QUALITY)
    kind = "png" if longest <= _SMALL else "jpeg"
    return Shown(_uri(content, kind), *picture.size, is_small=longest <= _SMALL)


def draw_filters(model: "nn.Module", run: RunFolder, step: int) -> Filters | None:
    """Return the filters of the first convolution that takes three channels, or None if there is none.

    Args:
        model: Network of the run.
        run: The run.
        step: Step of the weights.
    """
    name = first_convolution(model)
    if name is None:
        return None
    weights = model.get_parameter(f"{name}.weight")
    pixels_NHWC = filter_pixels(weights, run)
    num_filters, _, height, width = weights.shape
    factor = max(1, _FILTER_SIDE // max(height, width))
    pixels_NHWC = pixels_NHWC.repeat(factor, axis=1).repeat(factor, axis=2)
    strips = [
        _strip(pixels_NHWC[first : first + _FILTERS_PER_STRIP]) for first in range(0, num_filters, _FILTERS_PER_STRIP)
    ]
    return Filters(strips, num_filters, f"{height}x{width}", step)


def first_convolution(model: "nn.Module") -> str | None:
    """Return the name of the first convolution that takes three channels, or None if there is none."""
    from torch import nn

    convolutions = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return next((name for name, module in convolutions if module.in_channels == 3 and module.groups == 1), None)


def filter_pixels(weights: "torch.Tensor", run: RunFolder) -> np.ndarray:
    """Return a convolution's filters as pictures, uint8 (N, H, W, 3).

    Each filter is scaled to its own range, as in figure 3 of the 2012 paper, and shown in red, green and blue whatever
    the order of the weights' channels.
    """
    weights_NHWC = weights.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    if run.config.model.channel_order == "bgr":
        weights_NHWC = weights_NHWC[..., ::-1]
    least, most = (bound(weights_NHWC, axis=(1, 2, 3), keepdims=True) for bound in (np.min, np.max))
    pixels_NHWC: np.ndarray = np.rint((weights_NHWC - least) / np.maximum(most - least, 1e-12) * 255).astype(np.uint8)
    return pixels_NHWC


def _strip(pixels_NHWC: np.ndarray) -> Shown:
    """Return filters side by side, with transparent gaps."""
    _, height, width, _ = pixels_NHWC.shape
    strip = np.zeros((height, _FILTERS_PER_STRIP * (width + _GAP) - _GAP, 4), dtype=np.uint8)
    for index, pixels_HWC in enumerate(pixels_NHWC):
        cell = strip[:, index * (width + _GAP) :][:, :width]
        cell[..., :3], cell[..., 3] = pixels_HWC, 255
    content = io.BytesIO()
    picture = Image.fromarray(strip)
    picture.save(content, "PNG", optimize=True)
    return Shown(_uri(content, "png"), *picture.size)


def first_samples(
    dataset: Dataset, run: RunFolder, num_samples: int, num_epochs: int
) -> Iterator[tuple[Sample, np.ndarray]]:
    """Yield the first training samples of the run's seed, each with its crops in the first epochs.

    Yields:
        The sample, and uint8 (num_epochs, H, W, 3): its crops with their colour noise, as pixels.

    Raises:
        InputError: A picture is missing or has changed.
    """
    all_samples, seed = dataset.num_samples("train"), run.config.seed
    first = np.arange(min(num_samples, all_samples), dtype=np.int64)
    # Turned back into pixels by the mean colour, whatever the recipe subtracts.
    augmentation, basis = replace(run.config.augmentation, subtract="mean"), run.color_basis
    epochs_N = np.arange(num_epochs, dtype=np.int64)
    for sample in samples_of(dataset, "train", SampleOrder(all_samples, seed).sample_ids(first)):
        size = len(sample.square_HWC)
        sample_ids_N = np.full(num_epochs, sample.sample_id, dtype=np.int64)
        parameters = draw_parameters(augmentation, basis, size, seed, epochs_N, sample_ids_N)
        yield sample, displayable_crops(sample.square_HWC, parameters, augmentation.crop_of(size), basis)


def sheet_rows(dataset: Dataset, run: RunFolder) -> Iterator[SheetRow]:
    """Yield the first training samples of the run's seed, with their crops and colour noise in the first epochs.

    Raises:
        InputError: A picture is missing or has changed.
    """
    for sample, crops_NHWC in first_samples(dataset, run, _SHEET_SAMPLES, SHEET_EPOCHS):
        yield SheetRow(
            name=dataset.class_names[sample.row["class_index"]],
            source=sample.row["source"],
            stored=shown(sample.square_HWC),
            crops=[shown(crop_HWC) for crop_HWC in crops_NHWC],
        )


def _uri(content: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
