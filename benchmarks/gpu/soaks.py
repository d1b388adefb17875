"""Checks that batches hold the right pictures: none is overwritten or taken too early, and caches change no bit."""

import contextlib
import itertools
from dataclasses import replace

import torch

from benchmarks.gpu.loaders import caches
from benchmarks.gpu.timing import synchronize
from benchmarks.gpu.trial import Failed, Trial
from pipeline.loader import TrainLoader
from pipeline.online.batch import LoaderConfig

_BATCH_SIZE, _DRY_BATCH_SIZE = 96, 16
_NUM_BATCHES, _NUM_DRY_BATCHES = 200, 4
_NUM_EPOCHS = 2  # in the first one a cache is filled
_TOLERANCE = 0.5
_NUM_PRODUCTS = 6  # matrix products queued before the use of a batch: some milliseconds


def check_soak(trial: Trial) -> None:
    """Use batches late, while the GPU has other work; none may be overwritten or handed out too early."""
    num_batches = _NUM_DRY_BATCHES if trial.is_dry else _NUM_BATCHES
    busy = LoaderConfig(layout="NHWC", device="cpu" if trial.is_dry else "gpu")
    expected = _weighted_sums(trial, "raw", LoaderConfig(layout="NHWC"), num_batches, num_products=0)
    found = _weighted_sums(trial, "raw", busy, num_batches, num_products=_NUM_PRODUCTS)
    apart = [(f - e).abs().max().item() for f, e in zip(found, expected, strict=True)]
    trial.note("batches", len(apart))
    trial.note("largest difference of a weighted sum", max(apart))
    wrong = [number for number, difference in enumerate(apart) if not difference < _TOLERANCE]
    if wrong:
        raise Failed(f"{len(wrong)} of {len(apart)} batches not equal to the CPU's, beginning with batch {wrong[0]}")


def check_cache(trial: Trial) -> None:
    """Compare cached pictures with uncached ones over two epochs, while the device has other work; bits must agree."""
    wrong = []
    for encoding, cache in itertools.product(("raw", "jpeg"), caches(trial)):
        uncached = LoaderConfig(layout="NHWC", device="cpu" if trial.is_dry else "gpu", decode="cpu")
        num_batches = _NUM_EPOCHS * -(-trial.dataset(encoding).num_samples("train") // _batch_size(trial))
        expected = _weighted_sums(trial, encoding, uncached, num_batches, num_products=0)
        cached = replace(uncached, cache=cache)
        found = _weighted_sums(trial, encoding, cached, num_batches, num_products=_NUM_PRODUCTS)
        different = [number for number, pair in enumerate(zip(found, expected, strict=True)) if not torch.equal(*pair)]
        trial.note(f"{encoding}, cache {cache}", {"batches": num_batches, "different": len(different)})
        if different:
            wrong.append(
                f"{encoding}, cache {cache}: {len(different)} of {num_batches} batches not equal to the uncached ones, "
                f"beginning with batch {different[0]}"
            )
    if wrong:
        raise Failed("; ".join(wrong))


def _batch_size(trial: Trial) -> int:
    return _DRY_BATCH_SIZE if trial.is_dry else _BATCH_SIZE


def _weighted_sums(
    trial: Trial, encoding: str, config: LoaderConfig, num_batches: int, *, num_products: int
) -> list[torch.Tensor]:
    """Return a weighted sum of each picture of each batch, computed after some matrix products."""
    dataset, sums = trial.dataset(encoding), []
    with contextlib.closing(TrainLoader(dataset, global_batch_size=_batch_size(trial), config=config)) as loader:
        place = trial.device if config.device == "gpu" else torch.device("cpu")
        generator = torch.Generator().manual_seed(1)
        weights = torch.randn(3, loader.crop_size, loader.crop_size, generator=generator).to(place)
        side = 64 if trial.is_dry else 4096
        matrix = torch.randn(side, side, device=place) if num_products else weights
        for _ in range(num_batches):
            images = next(loader).images
            for _ in range(num_products):
                matrix = (matrix @ matrix).clamp_(-1, 1)
            sums.append((images * weights).sum(dim=(1, 2, 3)))
            del images  # its memory may be used again, although its use is only queued
        synchronize()
    return [values.cpu() for values in sums]
