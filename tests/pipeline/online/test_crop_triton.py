"""The kernel that makes images on a GPU: in Triton's interpreter, and compiled for cards that are not there."""

import json
import subprocess
import sys

# Triton reads the variable when it is imported, so the interpreter needs a process of its own.
INTERPRETED = """
import itertools, os
os.environ["TRITON_INTERPRET"] = "1"
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
    answer = subprocess.run([sys.executable, "-W", "error", "-c", INTERPRETED], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) == 96


COMPILED = """
import json
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pipeline.online.crop_triton import _crop

pointers = {"pixels": "*u8", "placements": "*i32", "means": "*fp32", "reciprocals": "*fp32"}
sizes = dict.fromkeys(("num_crops", "height", "width"), "i32")
found = {}
for capability in (80, 90, 100):
    for channels_last in (False, True):
        for cached in (False, True):
            optional = {"rows": "*i64", "mean_image": "*fp32"} if cached else {}
            constants = {"SIZE": 224, "BLOCK": 1024, "CHANNELS_LAST": channels_last}
            constants |= {} if cached else {"rows": None, "mean_image": None}
            signature = {"images": "*fp32"} | pointers | optional | sizes | dict.fromkeys(constants, "constexpr")
            signature = {name: signature[name] for name in _crop.arg_names}
            places = {(place,): constants[name] for place, name in enumerate(_crop.arg_names) if name in constants}
            source = ASTSource(fn=_crop, signature=signature, constexprs=places)
            binary = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            ptx = binary.asm["ptx"]
            counts = {"fused": "fma.rn.f32", "local": ".local", "divisions": "div."}
            name = f"sm_{capability} {channels_last} {cached}"
            found[name] = {kind: ptx.count(word) for kind, word in counts.items()}
print(json.dumps(found))
"""


def test_the_kernel_is_compiled_for_cards_without_fusing_what_the_reference_rounds():
    answer = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert len(found) == 12
    assert all(counts == {"fused": 0, "local": 0, "divisions": 1} for counts in found.values()), found
