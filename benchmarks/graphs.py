"""Measure the DALI graph's operators on the CPU: each alone, both together, and in variants that might be faster.

Everything runs in one process, on two cores and with two or three threads, fed from memory with the 256x256 JPEGs that
`pipeline.shard` makes of the photographs; outputs are dropped. For comparison: the JPEG library, a memory copy, and
another library's fastest version of the second half (crop, normalise, lay out).
"""

import itertools
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import simplejpeg
import tyro
from nvidia.dali import OperatorConcurrency, fn, pipeline_def, types

from benchmarks.photographs import describe, list_photographs
from benchmarks.record import Comparison, publish, record_document, run_rounds
from pipeline.command import run_command
from pipeline.dataset import Dataset
from pipeline.online.augmentation import AugmentationParameters
from pipeline.online.graph import GraphConfig, normalised
from pipeline.online.shard_reader import ShardReader
from pipeline.shard import main as shard

_NUM_CORES, _SIZE, _CROP, _MAX_HELD = 2, 256, 224, 2048
_WARM_UP_BATCHES, _MEAN = 8, [120.0, 115.0, 104.0]
_QUANTITIES = {
    "images_per_second": "by the wall clock",
    "cpu_milliseconds_per_image": "processor time of the process",
}
Form = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.graphs`."""

    photos: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS")]
    """Photographs in class folders, train/CLASS/*.JPEG and val/CLASS/*.JPEG."""
    rounds: int = 3
    """Runs of each alternative."""
    batch_size: int = 256
    """Pictures per batch."""
    seconds: float = 2
    """Duration of one measurement, in seconds."""


def _decode(content: Any, **flags: Any) -> Any:
    flags = {"use_fast_idct": False, "jpeg_fancy_upsampling": True, "output_type": types.RGB} | flags
    return fn.decoders.image(content, device="cpu", adjust_orientation=False, **flags)


def _decode_crop(content: Any, x: Any, y: Any) -> Any:
    return fn.decoders.image_crop(
        content,
        device="cpu",
        crop=(_CROP, _CROP),
        crop_pos_x=x,
        crop_pos_y=y,
        use_fast_idct=False,
        jpeg_fancy_upsampling=True,
    )


def _normalise(pixels: Any, x: Any, y: Any, mirror: Any, mean: Any, **form: Any) -> Any:
    form = {"dtype": types.FLOAT, "output_layout": "CHW", "crop": (_CROP, _CROP)} | form
    return fn.crop_mirror_normalize(
        pixels, crop_pos_x=x, crop_pos_y=y, mirror=mirror, mean=mean, std=[58.0, 57.0, 57.0], **form
    )


def _kernel(pixels: Any, x: Any, y: Any, mirror: Any, mean: Any) -> Any:
    """Define the second half as in the loader on a CPU."""
    left, top = (fn.cast(offset * float(_SIZE - _CROP), dtype=types.INT32) for offset in (x, y))
    config = GraphConfig(
        raw=False,
        whole=False,
        stored_size=_SIZE,
        crop_size=_CROP,
        divisor_3=np.float32([58, 57, 57]),
        mean_image_HWC=None,
        ten_crops=False,
        output_type="float32",
        layout="NCHW",
        max_batch_size=1,
        device="cpu",
        decode="cpu",
        normalizer="kernel",
        device_id=0,
        num_threads=1,
        prefetch_batches=1,
    )
    return normalised(pixels, AugmentationParameters(fn.stack(left, top, mirror), mean), config)


_OF_JPEG: dict[str, Form] = {
    "decode": lambda jpeg, *_: _decode(jpeg),
    "decode, use_fast_idct": lambda jpeg, *_: _decode(jpeg, use_fast_idct=True),
    "decode, plain upsampling": lambda jpeg, *_: _decode(jpeg, jpeg_fancy_upsampling=False),
    "decode the crop alone": lambda jpeg, x, y, *_: _decode_crop(jpeg, x, y),
    "both": lambda jpeg, *rest: _normalise(_decode(jpeg), *rest),
    "both, our kernel": lambda jpeg, *rest: _kernel(_decode(jpeg), *rest),
    "both, constant mean": lambda jpeg, x, y, mirror, _: _normalise(_decode(jpeg), x, y, mirror, _MEAN),
    "both, decode the crop alone": lambda jpeg, x, y, *rest: _normalise(_decode_crop(jpeg, x, y), 0.5, 0.5, *rest),
    "both, float16": lambda jpeg, *rest: _normalise(_decode(jpeg), *rest, dtype=types.FLOAT16),
    "both, NHWC": lambda jpeg, *rest: _normalise(_decode(jpeg), *rest, output_layout="HWC"),
    "both, uint8 NHWC": lambda jpeg, *rest: _normalise(
        _decode(jpeg), *rest[:3], [0.0] * 3, dtype=types.UINT8, output_layout="HWC"
    ),
}
_OF_PIXELS: dict[str, Form] = {
    "normalise": _normalise,
    "normalise, our kernel": _kernel,
    "normalise, never mirrored": lambda pixels, x, y, _, mean: _normalise(pixels, x, y, 0, mean),
    "normalise, slice then flip": lambda pixels, x, y, mirror, mean: _normalise(
        fn.flip(fn.crop(pixels, crop=(_CROP, _CROP), crop_pos_x=x, crop_pos_y=y), horizontal=mirror), 0.5, 0.5, 0, mean
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    photographs = list_photographs(arguments.photos.absolute())
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        shard([str(arguments.photos.absolute()), str(Path(name) / "jpeg"), "--size", str(_SIZE)])
        dataset = Dataset.open(Path(name) / "jpeg")
        reader = ShardReader(dataset, "train")
        jpegs = [np.array(reader.read(sample_id)) for sample_id in range(min(reader.num_samples, _MAX_HELD))]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_NUM_CORES])
    pixels = [simplejpeg.decode_jpeg(jpeg) for jpeg in jpegs]
    measure_form = partial(_measure_form, arguments)
    alternatives: dict[str, Callable[[], Mapping[str, float]]] = {
        **{name: partial(measure_form, form, jpegs, "", 3) for name, form in _OF_JPEG.items()},
        "decode, two threads": partial(measure_form, _OF_JPEG["decode"], jpegs, "", 2),
        "both, two threads": partial(measure_form, _OF_JPEG["both"], jpegs, "", 2),
        "both, operators side by side": partial(
            measure_form, _OF_JPEG["both"], jpegs, "", 3, concurrency=OperatorConcurrency.FULL
        ),
        **{name: partial(measure_form, form, pixels, "HWC", 3) for name, form in _OF_PIXELS.items()},
        "libjpeg-turbo": partial(_measure_threads, arguments, jpegs, _library(exact=True)),
        "libjpeg-turbo, fastest flags": partial(_measure_threads, arguments, jpegs, _library(exact=False)),
        "normalise by OpenCV": partial(_measure_threads, arguments, pixels, _opencv),
        "memory copy to float32": partial(_measure_threads, arguments, pixels, _copy),
    }
    quantity = "images_per_second"
    publish(
        record_document(
            name="graphs",
            command=f"python -m benchmarks.graphs PHOTOS --rounds {arguments.rounds} --batch-size "
            f"{arguments.batch_size} --seconds {arguments.seconds:g}",
            corpus=f"PHOTOS: {describe(photographs)}, {len(jpegs):,} of `train`, {_SIZE}x{_SIZE}, quality 95",
            quantities=_QUANTITIES,
            values=run_rounds(alternatives, arguments.rounds),
            comparisons=[
                *(Comparison(of=f, quantity=quantity, to="decode") for f in _OF_JPEG if f.startswith("decode,")),
                *(Comparison(of=form, quantity=quantity, to="both") for form in _OF_JPEG if form.startswith("both,")),
                Comparison(of="both, operators side by side", quantity=quantity, to="both"),
                Comparison(of="decode", quantity=quantity, to="libjpeg-turbo"),
                Comparison(of="both", quantity=quantity, to="libjpeg-turbo, fastest flags"),
                Comparison(of="normalise, our kernel", quantity=quantity, to="normalise"),
                Comparison(of="both, our kernel", quantity=quantity, to="libjpeg-turbo, fastest flags"),
                Comparison(of="normalise, never mirrored", quantity=quantity, to="normalise"),
                Comparison(of="normalise", quantity=quantity, to="normalise by OpenCV"),
            ],
            packages=["nvidia-dali-cuda120", "nvidia-dali-cuda130", "opencv-python-headless", "simplejpeg"],
        )
    )
    return 0


def _measure_form(
    arguments: Arguments, form: Form, contents: Sequence[np.ndarray], layout: str, num_threads: int, **options: Any
) -> Mapping[str, float]:
    size, generator = arguments.batch_size, np.random.default_rng(0)
    upcoming = itertools.cycle(contents)
    x, y = generator.random((2, size), dtype=np.float32)
    fed = x, y, generator.integers(0, 2, size, dtype=np.int32), np.tile(np.float32(_MEAN), (size, 1))

    @pipeline_def(batch_size=size, num_threads=num_threads, device_id=None, exec_dynamic=True, **options)
    def graph() -> Any:
        return form(
            *fn.external_source(
                source=lambda: (list(itertools.islice(upcoming, size)), *fed),
                num_outputs=5,
                batch=True,
                no_copy=True,
                layout=[layout, "", "", "", ""],
            )
        )

    pipeline = graph(prefetch_queue_depth=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not every variant uses all inputs
        pipeline.build()
    for _ in range(_WARM_UP_BATCHES):
        pipeline.run()
    num_images, began, began_cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < arguments.seconds:
        pipeline.run()
        num_images += size
    return _figures(num_images, time.perf_counter() - began, time.process_time() - began_cpu)


def _measure_threads(
    arguments: Arguments, contents: Sequence[np.ndarray], worker: Callable[[], Callable[[np.ndarray], object]]
) -> Mapping[str, float]:
    """Let two threads share the pictures, each with its own buffers."""
    counts = [0] * _NUM_CORES
    began, began_cpu = time.perf_counter(), time.process_time()

    def run(number: int) -> None:
        step = worker()
        for content in itertools.cycle(contents[number::_NUM_CORES]):
            step(content)
            counts[number] += 1
            if time.perf_counter() - began > arguments.seconds:
                return

    threads = [threading.Thread(target=run, args=(number,)) for number in range(_NUM_CORES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _figures(sum(counts), time.perf_counter() - began, time.process_time() - began_cpu)


def _figures(num_images: int, seconds: float, cpu_seconds: float) -> Mapping[str, float]:
    return {
        "images_per_second": num_images / seconds,
        "cpu_milliseconds_per_image": 1000 * cpu_seconds / num_images,
    }


def _library(exact: bool) -> Callable[[], Callable[[np.ndarray], object]]:
    def worker() -> Callable[[np.ndarray], object]:
        pixels_HWC = np.empty((_SIZE, _SIZE, 3), np.uint8)
        flags = {"fastdct": not exact, "fastupsample": not exact, "strict": False}
        return lambda content: simplejpeg.decode_jpeg(content, buffer=pixels_HWC, **flags)

    return worker


def _opencv() -> Callable[[np.ndarray], object]:
    cv2.setNumThreads(0)
    planes = [np.empty((_CROP, _CROP), np.uint8) for _ in range(3)]
    images_CHW = itertools.cycle(np.empty((64, 3, _CROP, _CROP), np.float32))  # larger than the cache, like a batch

    def step(pixels_HWC: np.ndarray) -> None:
        cv2.split(pixels_HWC[:_CROP, :_CROP], planes)
        for plane, image in zip(planes, next(images_CHW), strict=True):
            cv2.addWeighted(plane, 1 / 58, plane, 0.0, -2.0, dst=image, dtype=cv2.CV_32F)

    return step


def _copy() -> Callable[[np.ndarray], object]:
    images_HWC = itertools.cycle(np.empty((64, _CROP, _CROP, 3), np.float32))
    return lambda pixels_HWC: np.copyto(next(images_HWC), pixels_HWC[:_CROP, :_CROP])


if __name__ == "__main__":
    run_command(main)
