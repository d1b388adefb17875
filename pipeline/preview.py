"""Draw a contact sheet of a dataset, so that a person can see whether the training input is right.

    python -m pipeline.preview DATASET OUT.png
    python -m pipeline.preview DATASET OUT.png --split val --samples 4 --crops 5

Each row is a sample, in the order of training: the stored picture, and its random crops in successive epochs, with
their colour noise. Below them is the centre crop, shifted along each principal component of the colours. The colours
are those of the model's input, turned back into pixels: with the training mean added, and not divided by the deviation.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image

from pipeline.command import InputError, run_command
from pipeline.dataset import Dataset
from pipeline.format.color import ColorBasis, ColorNoiseConvention
from pipeline.online.augmentation import AugmentationConfig, AugmentationParameters, center_parameters, draw_parameters
from pipeline.online.order import SampleOrder
from pipeline.online.reference import augment
from pipeline.online.shard_reader import ShardReader
from pipeline.pictures.contact_sheet import Cell, Row, draw_sheet, fit
from pipeline.pictures.decode import decode_picture
from pipeline.pictures.encode import EncodingConfig, store_picture
from pipeline.system.files import atomic_file

NOISE_SIGMAS = (-3, -2, -1, 0, 1, 2, 3)
_STORED_SIDE, _CROP_SIDE, _NOISE_SIDE = 256, 224, 112  # sides of the cells, in pixels of the sheet
_MAX_SAMPLES, _MAX_CROPS = 100, 12  # picture viewers still open a sheet of this size


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m pipeline.preview`."""

    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Dataset folder."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.png")]
    """Picture to write."""
    split: str = "train"
    """Split of the samples; the colour statistics are always those of `train`."""
    samples: int = 8
    """Number of samples on the sheet: the first ones of the epoch."""
    crops: int = 3
    """Random crops of each sample, one per epoch."""
    noise_samples: int = 2
    """Number of samples that are shown shifted along the principal components."""
    seed: int = 0
    """Seed of order and augmentation."""
    epoch: int = 0
    """First epoch that is shown."""
    color_noise_convention: ColorNoiseConvention = "fb"
    """Factor of the colour noise's coefficients: eigenvalue (fb) or standard deviation (cuda-convnet)."""


@dataclass(frozen=True)
class Sample:
    """One sample of the sheet.

    Attributes:
        sample_id: Row number in the split's manifest.
        row: Columns key, class_index, source and notes of that row.
        whole_HWC: Stored picture, uint8 RGB.
        square_HWC: Square that crops are cut from, uint8 RGB of the stored size; the same picture if squares are
            stored.
    """

    sample_id: int
    row: dict[str, Any]
    whole_HWC: np.ndarray
    square_HWC: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    dataset, out = Dataset.open(arguments.dataset), arguments.out
    _check(arguments, dataset)
    sheet = draw_sheet(sheet_rows(dataset, arguments))
    try:
        with atomic_file(out) as file:
            sheet.save(file, "PNG")
    except OSError as error:
        raise InputError(f"{out} can't be written ({error.strerror or error}); name another OUT.png") from error
    sys.stdout.write(f"contact sheet: {out.absolute()}\n")
    return 0


def sheet_rows(dataset: Dataset, arguments: Arguments) -> Iterator[Row]:
    """Yield the sheet's rows: header, samples, colour noise."""
    config = AugmentationConfig(color_noise_convention=arguments.color_noise_convention)
    basis, samples = dataset.color_basis, list(read_samples(dataset, arguments))
    epochs_N = np.arange(arguments.epoch, arguments.epoch + arguments.crops, dtype=np.int64)
    yield Row(title=f"{dataset.path.name}: the training input", lines=list(_header(dataset, arguments, config)))
    yield Row(title="Stored pictures and their random crops")
    for sample in samples:
        caption = stored_caption(sample, dataset)
        stored = Cell(fit(sample.whole_HWC, _STORED_SIDE), caption, _STORED_SIDE)
        yield Row(cells=[stored, *_crop_cells(sample, config, basis, arguments.seed, epochs_N)])
    noisy = samples[: arguments.noise_samples]
    if noisy:
        yield Row(title="Centre crops, moved along the principal components of the colours")
    for sample in noisy:
        for component in range(3):
            yield Row(
                lines=[f"key {sample.row['key']}, component {component + 1}; red, green, blue in grey levels"],
                cells=_noise_cells(sample, config, basis, component),
            )


def read_samples(dataset: Dataset, arguments: Arguments) -> Iterator[Sample]:
    """Yield the samples in the order in which the training stream reads them.

    Raises:
        InputError: A picture is missing or has changed.
    """
    num_samples = dataset.num_samples(arguments.split)
    first = arguments.epoch * num_samples
    positions = np.arange(first, first + arguments.samples, dtype=np.int64)
    yield from samples_of(dataset, arguments.split, SampleOrder(num_samples, arguments.seed).sample_ids(positions))


def samples_of(dataset: Dataset, split: str, sample_ids_N: np.ndarray) -> Iterator[Sample]:
    """Yield samples of a split by their ids.

    Raises:
        InputError: A picture is missing or has changed.
    """
    rows = dataset.manifest(split, ["key", "class_index", "source", "notes"]).take(sample_ids_N).to_pylist()
    reader = ShardReader(dataset, split)
    square = EncodingConfig(encoding="raw", size=dataset.stored_size)
    for sample_id, row in zip(sample_ids_N.tolist(), rows, strict=True):
        content = reader.read(sample_id)
        whole_HWC = content if dataset.member == "npy" else decode_picture(content.tobytes(), "note").pixels_HWC
        square_HWC = store_picture(whole_HWC, square).pixels_HWC if dataset.stores_whole_pictures else whole_HWC
        yield Sample(sample_id, row, whole_HWC, square_HWC)


def noise_parameters(
    config: AugmentationConfig, basis: ColorBasis, stored_size: int, component: int
) -> AugmentationParameters[np.ndarray]:
    """Return centre crops with the noise of each of `NOISE_SIGMAS` along one principal component (0, 1 or 2)."""
    alpha_N3 = np.zeros((len(NOISE_SIGMAS), 3))
    alpha_N3[:, component] = np.multiply(NOISE_SIGMAS, config.color_noise_sigma)
    noise_N3 = basis.noise(alpha_N3, config.color_noise_convention)
    center = center_parameters(config, basis, stored_size, len(NOISE_SIGMAS))
    return replace(center, mean_N3=(center.mean_N3 - noise_N3).astype(np.float32))


def displayable_crops(
    square_HWC: np.ndarray, parameters: AugmentationParameters[np.ndarray], crop_size: int, basis: ColorBasis
) -> np.ndarray:
    """Return one picture augmented by `reference.augment` with each row of parameters, as pixels again.

    Returns:
        uint8 (N, crop_size, crop_size, 3): the undivided images plus the training mean, rounded, clipped to 0..255.
    """
    pixels_NHWC = np.broadcast_to(square_HWC, (len(parameters.mean_N3), *square_HWC.shape))
    images_NCHW = augment(pixels_NHWC, parameters, crop_size, np.ones(3, dtype=np.float32))
    images_NHWC = images_NCHW.transpose(0, 2, 3, 1) + basis.mean_3 * basis.pixel_scale
    return np.rint(images_NHWC).clip(0, 255).astype(np.uint8)


def _crop_cells(
    sample: Sample, config: AugmentationConfig, basis: ColorBasis, seed: int, epochs_N: np.ndarray
) -> Iterator[Cell]:
    stored_size = len(sample.square_HWC)
    sample_ids_N = np.full_like(epochs_N, sample.sample_id)
    parameters = draw_parameters(config, basis, stored_size, seed, epochs_N, sample_ids_N)
    crops_NHWC = displayable_crops(sample.square_HWC, parameters, config.crop_of(stored_size), basis)
    for index, (epoch, noise) in enumerate(zip(epochs_N.tolist(), _noise_texts(parameters, basis), strict=True)):
        left, top, mirror = parameters.placement_N3[index]
        mirrored = "mirrored" if mirror else "not mirrored"
        caption = [
            f"epoch {epoch}: x {left}, y {top}, {mirrored}",
            f"noise {noise} grey levels",
        ]
        yield Cell(_drawn(crops_NHWC[index], stored_size), caption, _CROP_SIDE)


def _noise_cells(sample: Sample, config: AugmentationConfig, basis: ColorBasis, component: int) -> list[Cell]:
    stored_size = len(sample.square_HWC)
    parameters = noise_parameters(config, basis, stored_size, component)
    crops_NHWC = displayable_crops(sample.square_HWC, parameters, config.crop_of(stored_size), basis)
    return [
        Cell(fit(crop_HWC, _NOISE_SIDE), [f"{sigmas:+d} sigma" if sigmas else "0", noise], _NOISE_SIDE)
        for crop_HWC, sigmas, noise in zip(crops_NHWC, NOISE_SIGMAS, _noise_texts(parameters, basis), strict=True)
    ]


def _drawn(crop_HWC: np.ndarray, stored_size: int) -> Image.Image:
    """Return a crop at the scale of the stored square that is drawn beside it."""
    enlarged = _STORED_SIDE // stored_size * len(crop_HWC)
    return fit(crop_HWC, enlarged or round(_STORED_SIDE * len(crop_HWC) / stored_size))


def _noise_texts(parameters: AugmentationParameters[np.ndarray], basis: ColorBasis) -> list[str]:
    """Return the colour noise contained in each row's mean, in grey levels."""
    noise_N3 = basis.mean_3 * basis.pixel_scale - parameters.mean_N3
    # Adding zero turns negative zeros into positive ones.
    return [" ".join(f"{round(level, 1) + 0.0:+.1f}" for level in noise_3) for noise_3 in noise_N3.tolist()]


def _header(dataset: Dataset, arguments: Arguments, config: AugmentationConfig) -> Iterator[str]:
    basis, size = dataset.color_basis, dataset.stored_size
    crop_size = config.crop_of(size)
    form = "whole pictures, read as" if dataset.stores_whole_pictures else "stored at"
    yield (
        f"encoding {dataset.encoding}, {form} {size}x{size}, crops of {crop_size}x{crop_size}; "
        f"{dataset.num_samples(arguments.split)} samples in {arguments.split}, {dataset.num_classes} classes"
    )
    yield (
        f"seed {arguments.seed}, from epoch {arguments.epoch}; colour noise of sigma {config.color_noise_sigma}, "
        f"convention {config.color_noise_convention}"
    )
    mean, std = (
        " ".join(f"{value * basis.pixel_scale:.2f}" for value in values_3) for values_3 in (basis.mean_3, basis.std_3)
    )
    yield f"red, green, blue: mean {mean}, std {std} grey levels"
    for index, eigenvalue in enumerate(basis.eigenvalues_3):
        vector = "red {:+.4f}, green {:+.4f}, blue {:+.4f}".format(*basis.eigenvectors_33[:, index])
        yield f"component {index + 1}: eigenvalue {eigenvalue:.5f} (pixels in [0, 1]), eigenvector {vector}"


def stored_caption(sample: Sample, dataset: Dataset) -> list[str]:
    """Return the caption of a stored picture."""
    row, (height, width, _) = sample.row, sample.whole_HWC.shape
    class_index = row["class_index"]
    caption = [
        f"key {row['key']}, {width}x{height}",
        f"class {class_index}: {dataset.class_names[class_index]}",
        row["source"],
    ]
    return [*caption, f"notes: {row['notes']}"] if row["notes"] else caption


def _check(arguments: Arguments, dataset: Dataset) -> None:
    """Raise InputError for arguments from which no sheet can be drawn."""
    ranges = {
        "samples": (1, min(_MAX_SAMPLES, dataset.num_samples(arguments.split))),
        "crops": (1, _MAX_CROPS),
        "noise_samples": (0, _MAX_SAMPLES),
        "seed": (0, 2**64 - 1),
        "epoch": (0, 2**31 - 1),
    }
    for name, (least, most) in ranges.items():
        value = getattr(arguments, name)
        if not least <= value <= most:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be {least} to {most}")
    if arguments.out.suffix != ".png":
        raise InputError(f"{arguments.out} does not end in .png; name the picture to write OUT.png")
    if dataset.path.resolve() in arguments.out.resolve().parents:
        raise InputError(f"{arguments.out} lies in the dataset, which holds only its own files; name another OUT.png")


if __name__ == "__main__":
    run_command(main)
