"""Alternatives that loading is measured against, each in a separate process that prints one line of JSON.

    python -m benchmarks.loading_peers ALTERNATIVE SOURCE BATCH_SIZE SECONDS [NUM_THREADS PREFETCH_BATCHES]

SOURCE is a dataset folder, or for torchvision a folder of class folders. A loader yields an endless stream of
normalised batches with their labels; a ceiling does only one step of the work. Each has two threads or two workers
unless stated otherwise.
"""

import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import simplejpeg
import torch
import torchvision
import webdataset
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms

from benchmarks.dali_reader import dali_batches, shard_paths
from pipeline.dataset import Dataset
from pipeline.loader import LoaderConfig, TrainLoader
from pipeline.online.shard_reader import ShardReader

_NUM_WORKERS = 2
_SHUFFLE_BUFFER = 1000  # samples, for peers that cannot shuffle a whole dataset
_CROP_SIZE = 224
_MAX_HELD = 2000  # pictures that a ceiling holds in memory
_ENDLESS = 10**9


def _ours(source: str, batch_size: int, options: dict[str, int]) -> Iterator[Any]:
    return TrainLoader(Dataset.open(source), global_batch_size=batch_size, seed=0, config=LoaderConfig(**options))


def _dali(source: str, batch_size: int, options: dict[str, int], noise: bool) -> Iterator[Any]:
    prefetch_batches = options.get("prefetch_batches", LoaderConfig.prefetch_batches)
    num_threads = options.get("num_threads", _NUM_WORKERS)
    return dali_batches(Dataset.open(source), batch_size, num_threads, prefetch_batches, noise=noise)


def _torchvision(source: str, batch_size: int, resize: bool) -> Iterator[Any]:
    folder = torchvision.datasets.ImageFolder(source, _transform(resize))
    # One sampler for many epochs, so that the workers never run dry at the end of an epoch.
    sampler = RandomSampler(folder, num_samples=_ENDLESS)
    return iter(DataLoader(folder, batch_size, sampler=sampler, num_workers=_NUM_WORKERS))


def _webdataset(source: str, batch_size: int, resize: bool) -> Iterator[Any]:
    shards = shard_paths(Dataset.open(source))
    samples = (
        webdataset.WebDataset(shards, shardshuffle=len(shards))
        .repeat()
        .shuffle(_SHUFFLE_BUFFER)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(_transform(resize), int)
    )
    return iter(DataLoader(samples, batch_size, num_workers=_NUM_WORKERS))


def _transform(resize: bool) -> Callable[[Any], torch.Tensor]:
    return transforms.Compose(
        [
            *([transforms.Resize(256)] if resize else []),
            transforms.RandomCrop(_CROP_SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def _held(source: str) -> list[np.ndarray]:
    dataset = Dataset.open(source)
    reader = ShardReader(dataset, "train")
    return [reader.read(sample_id) for sample_id in range(min(dataset.num_samples("train"), _MAX_HELD))]


def _library_steps(source: str, batch_size: int) -> list[Callable[[], object]]:
    """Decode the full square, each thread into its own buffer, with the fastest and least exact settings."""

    def step_of(contents: list[np.ndarray]) -> Callable[[], object]:
        upcoming, pixels_HWC = itertools.cycle(contents), np.empty((256, 256, 3), np.uint8)

        def step() -> None:
            for content in itertools.islice(upcoming, batch_size):
                simplejpeg.decode_jpeg(content, fastdct=True, fastupsample=True, buffer=pixels_HWC, strict=False)

        return step

    contents = _held(source)
    return [step_of(contents[first::_NUM_WORKERS]) for first in range(_NUM_WORKERS)]


def _copy_steps(source: str, batch_size: int) -> list[Callable[[], object]]:
    """Copy crops of raw pixels into a float32 batch, one batch per thread, which is reused."""

    def step_of(pictures: list[np.ndarray]) -> Callable[[], object]:
        upcoming = itertools.cycle(pictures)
        images_NHWC = np.empty((batch_size, _CROP_SIZE, _CROP_SIZE, 3), np.float32)

        def step() -> None:
            for image_HWC, pixels_HWC in zip(images_NHWC, upcoming, strict=False):
                np.copyto(image_HWC, pixels_HWC[:_CROP_SIZE, :_CROP_SIZE])

        return step

    pictures = _held(source)
    return [step_of(pictures[first::_NUM_WORKERS]) for first in range(_NUM_WORKERS)]


_CEILINGS = {"libjpeg-turbo": _library_steps, "memory copy": _copy_steps}
_LOADERS: dict[str, Callable[[str, int, dict[str, int]], Iterator[Any]]] = {
    "ours": _ours,
    "DALI's reader": lambda *arguments: _dali(*arguments, noise=False),
    "DALI's reader, colour noise": lambda *arguments: _dali(*arguments, noise=True),
    "torchvision": lambda source, batch_size, _: _torchvision(source, batch_size, resize=False),
    "torchvision, resizing": lambda source, batch_size, _: _torchvision(source, batch_size, resize=True),
    "webdataset": lambda source, batch_size, _: _webdataset(source, batch_size, resize=False),
    "webdataset, resizing": lambda source, batch_size, _: _webdataset(source, batch_size, resize=True),
}


def _measure_loader(batches: Iterator[Any], num_warm_up: int, seconds: float) -> tuple[int, float]:
    """Return the number of batches made in `seconds` after a warm-up, and the exact time."""
    for _ in range(num_warm_up):
        next(batches)
    num_batches, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        next(batches)
        num_batches += 1
    return num_batches, elapsed


def _measure_ceiling(steps: list[Callable[[], object]], seconds: float) -> tuple[int, float]:
    """Return the number of steps made in `seconds`, one thread per step, and the exact time."""
    counts, end = [0] * len(steps), 0.0

    def repeat(index: int) -> None:
        while time.perf_counter() < end:
            steps[index]()
            counts[index] += 1

    for step in steps:
        step()  # warms up
    began = time.perf_counter()
    end = began + seconds
    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts), time.perf_counter() - began


def _main(alternative: str, source: str, batch_size: int, seconds: float, *options: int) -> None:
    figures = {}
    if alternative in _CEILINGS:
        num_batches, elapsed = _measure_ceiling(_CEILINGS[alternative](source, batch_size), seconds)
    else:
        named = dict(zip(("num_threads", "prefetch_batches"), options, strict=False))
        began = time.perf_counter()
        batches = _LOADERS[alternative](source, batch_size, named)
        next(batches)
        figures["start_seconds"] = time.perf_counter() - began
        num_warm_up = 2 * named.get("prefetch_batches", LoaderConfig.prefetch_batches)
        num_batches, elapsed = _measure_loader(batches, num_warm_up, seconds)
    figures["images_per_second"] = num_batches * batch_size / elapsed
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    name, folder, size, duration, *rest = sys.argv[1:]
    _main(name, folder, int(size), float(duration), *map(int, rest))
