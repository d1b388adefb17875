"""The kernel that makes images on a GPU: in Triton's interpreter, and compiled for cards that are not there."""

import pytest
import triton_process
from triton_process import CARDS, compile_for

INTERPRETED = """
import itertools
import numpy as np, torch
from pipeline.online.augmentation import AugmentationParameters
from pipeline.online.crop_triton import CropKernel
from pipeline.online.reference import augment

generator = np.random.default_rng(0)
num_cases = 0
sizes = [(9, 9, 7), (11, 13, 11), (20, 20, 20)]
forms = itertools.product([False, True], ["NCHW", "NHWC"], ["float32", "float16"], [1, 3], [False, True])
for (height, width, crop), (subtracts, layout, output_type, num_crops, cached) in itertools.product(sizes, forms):
    pixels = generator.integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    rows = np.array([3, 0, 3], dtype=np.int64) if cached else None
    shape = (3, num_crops)
    placement = np.stack(
        [
            generator.integers(0, width - crop + 1, shape),
            generator.integers(0, height - crop + 1, shape),
            generator.integers(0, 2, shape),
        ],
        axis=-1,
    ).astype(np.int32)
    mean = generator.normal(120, 9, (3, 3)).astype(np.float32)
    divisor = generator.uniform(50, 60, 3).astype(np.float32)
    mean_image = generator.uniform(90, 140, (height, width, 3)).astype(np.float32) if subtracts else None
    kernel = CropKernel(crop, divisor, mean_image, output_type, layout, torch.device("cpu"))
    images = kernel(
        torch.from_numpy(pixels),
        None if rows is None else torch.from_numpy(rows),
        torch.from_numpy(placement),
        torch.from_numpy(mean),
    )
    images = images.movedim(-1, -3) if layout == "NHWC" else images
    taken = pixels[:3] if rows is None else pixels[rows]
    for place in range(num_crops):
        parameters = AugmentationParameters(placement[:, place], mean)
        expected = augment(taken, parameters, crop, divisor, mean_image).astype(output_type)
        assert expected.std() > 0.5
        np.testing.assert_array_equal(images[:, place].numpy(), expected)
    num_cases += 1

kernel = CropKernel(7, divisor, None, "float32", "NCHW", torch.device("cpu"))
misplaced = torch.tensor([[[3, 0, 0]], [[0, -1, 0]], [[2, 2, 0]]], dtype=torch.int32)
images = kernel(torch.from_numpy(pixels[:, :9, :9].copy()), None, misplaced, torch.from_numpy(mean))
assert images[:2].isnan().all() and not images[2].isnan().any()
print(num_cases)
"""


def test_the_kernel_makes_the_references_bits_in_every_form():
    assert int(triton_process.run("-c", INTERPRETED)) == 96


TYPES = {
    "images": "*fp32", "pixels": "*u8", "rows": "*i64", "placements": "*i32", "means": "*fp32", "reciprocals": "*fp32",
    "mean_image": "*fp32", "num_crops": "i32", "height": "i32", "width": "i32",
}  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
def test_the_kernel_is_compiled_without_fusing_what_the_reference_rounds(card):
    from pipeline.online.crop_triton import _crop

    for channels_last in (False, True):
        for cached in (False, True):
            constants = {"SIZE": 224, "BLOCK": 1024, "CHANNELS_LAST": channels_last}
            constants |= {} if cached else {"rows": None, "mean_image": None}
            found = compile_for(card, _crop, TYPES, constants)
            assert found["fused"] == found["spilled bytes"] == found["shared"] == 0, found
            assert found["divisions"] == 1, found  # that of the number of crops: the others are multiplications
