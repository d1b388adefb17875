"""The kernel that makes images on a GPU, on one or in Triton's interpreter (`triton_device`)."""

import itertools

import numpy as np
import pytest
import torch
from triton_device import DEVICE

from pipeline.online.augmentation import AugmentationParameters
from pipeline.online.reference import augment

crop_triton = pytest.importorskip("pipeline.online.crop_triton", exc_type=ModuleNotFoundError)  # Triton is missing
pytestmark = pytest.mark.gpu

SIZES = [(9, 9, 7), (11, 13, 11), (20, 20, 20)]
FORMS = list(itertools.product([False, True], ["NCHW", "NHWC"], ["float32", "float16"], [1, 3], [False, True]))


def _on_device(values: np.ndarray | None) -> torch.Tensor | None:
    return None if values is None else torch.from_numpy(values).to(DEVICE)


@pytest.mark.parametrize(("subtracts", "layout", "output_type", "num_crops", "cached"), FORMS)
@pytest.mark.parametrize(("height", "width", "crop"), SIZES)
def test_the_bits_are_the_references(height, width, crop, subtracts, layout, output_type, num_crops, cached):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    rows = np.array([3, 0, 3], dtype=np.int64) if cached else None
    highest = (width - crop, height - crop, 1)
    placement = np.stack([generator.integers(0, most + 1, (3, num_crops)) for most in highest], axis=-1).astype(
        np.int32
    )
    mean = generator.normal(120, 9, (3, 3)).astype(np.float32)
    divisor = generator.uniform(50, 60, 3).astype(np.float32)
    mean_image = generator.uniform(90, 140, (height, width, 3)).astype(np.float32) if subtracts else None
    kernel = crop_triton.CropKernel(crop, divisor, mean_image, output_type, layout, DEVICE)
    images = kernel(_on_device(pixels), _on_device(rows), _on_device(placement), _on_device(mean)).cpu()
    images = images.movedim(-1, -3) if layout == "NHWC" else images
    taken = pixels[:3] if rows is None else pixels[rows]
    for place in range(num_crops):
        parameters = AugmentationParameters(placement[:, place], mean)
        expected = augment(taken, parameters, crop, divisor, mean_image).astype(output_type)
        assert expected.std() > 0.5
        np.testing.assert_array_equal(images[:, place].numpy(), expected)


def test_a_crop_that_does_not_fit_is_nan():
    kernel = crop_triton.CropKernel(7, np.ones(3, dtype=np.float32), None, "float32", "NCHW", DEVICE)
    pixels = torch.zeros(3, 9, 9, 3, dtype=torch.uint8, device=DEVICE)
    placement = torch.tensor([[[3, 0, 0]], [[0, -1, 0]], [[2, 2, 0]]], dtype=torch.int32, device=DEVICE)
    images = kernel(pixels, None, placement, torch.zeros(3, 3, device=DEVICE))
    assert images[:2].isnan().all() and not images[2].isnan().any()
