"""Check of the training loader: images/s beside its peers, from caches, and in many forms."""

import contextlib
import functools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from nvidia.dali import fn

from benchmarks.dali_reader import dali_batches
from benchmarks.gpu.aims import BATCH_SIZE, IMAGES
from benchmarks.gpu.threads import ThreadClock
from benchmarks.gpu.timing import seconds_per_step, synchronize
from benchmarks.gpu.trial import Measure, Trial
from pipeline import bench
from pipeline.loader import TrainLoader
from pipeline.online.batch import Cache, Device, LoaderConfig
from pipeline.online.shard_reader import ShardReader

_MIXED, _FROM_CPU, _SPLIT = ({"decode": decode} for decode in ("mixed", "cpu", "split"))
# name -> encoding, batch size, fields of the loader, flags of DALI's decoder; the most valuable first
_CASES: dict[str, tuple[str, int, dict[str, Any], dict[str, Any]]] = {
    "jpeg decoded by the CPU, 256": ("jpeg", 256, _FROM_CPU, {}),
    "jpeg split in halves, 256": ("jpeg", 256, _SPLIT | {"gpu_share": 0.5}, {}),
    "jpeg split, three quarters by the GPU, 256": ("jpeg", 256, _SPLIT | {"gpu_share": 0.75}, {}),
    "jpeg split, a quarter by the GPU, 256": ("jpeg", 256, _SPLIT | {"gpu_share": 0.25}, {}),
    "jpeg mixed, JPEG engines 0 %, 256": ("jpeg", 256, _MIXED | {"hw_decoder_load": 0.0}, {}),
    "jpeg mixed, JPEG engines 90 %, 256": ("jpeg", 256, _MIXED | {"hw_decoder_load": 0.9}, {}),
    "jpeg mixed, 1024": ("jpeg", 1024, _MIXED, {}),
    "raw, 1024": ("raw", 1024, {}, {}),
    "jpeg mixed, plain upsampling, 1024": ("jpeg", 1024, _MIXED, {"jpeg_fancy_upsampling": False}),
    "original mixed, 256": ("original", 256, _MIXED, {}),
    "original decoded by the CPU, 256": ("original", 256, _FROM_CPU, {}),
    "jpeg mixed, float16, 1024": ("jpeg", 1024, _MIXED | {"output_type": "float16"}, {}),
    "jpeg mixed, 8 threads, 1024": ("jpeg", 1024, _MIXED | {"num_threads": 8}, {}),
}
_OF_A_DRY_RUN = ("jpeg decoded by the CPU, 256", "raw, 1024", "original decoded by the CPU, 256")
_SECONDS_OF_A_CASE = 5
_ENGINES = ["nvidia-smi", "--query-gpu=utilization.jpeg,utilization.gpu", "--format=csv,noheader"]


def check_loader(trial: Trial) -> None:
    """Note images/s of the loader beside its peers, then by decoder and flags, and those of its stages on the CPU."""
    ours, peer = (functools.partial(make, trial) for make in (_loader, _dali_reader))
    trial.note_rounds(
        {
            "loader, JPEG": functools.partial(ours, "jpeg"),
            **{f"loader, JPEG, cache {cache}": functools.partial(ours, "jpeg", cache) for cache in caches(trial)},
            "DALI's own reader, JPEG": functools.partial(peer, "jpeg"),
            **(
                {} if trial.is_dry else {"torchvision's decode_jpeg on the GPU": functools.partial(_torchvision, trial)}
            ),
            "loader, raw": functools.partial(ours, "raw"),
            "DALI's own reader, raw": functools.partial(peer, "raw"),
        }
    )
    names = _OF_A_DRY_RUN if trial.is_dry else tuple(_CASES)
    cases: dict[str, Callable[[], Any]] = {name: functools.partial(_loader_pace, trial, name) for name in names}
    cases |= {
        f"{encoding}: images/s of each stage on the CPU": functools.partial(_stages, trial, encoding)
        for encoding in ("jpeg", "raw")
    }
    trial.note_cases(cases, _SECONDS_OF_A_CASE)


def _batch_size(trial: Trial) -> int:
    return 16 if trial.is_dry else BATCH_SIZE


def _device(trial: Trial) -> Device:
    return "cpu" if trial.is_dry else "gpu"


def caches(trial: Trial) -> tuple[Cache, ...]:
    """Return the places where the loader can keep decoded pictures."""
    return ("host",) if trial.is_dry else ("gpu", "host")


def _loader(trial: Trial, encoding: str, cache: Cache = "none") -> Measure:
    config = LoaderConfig(layout="NHWC", device=_device(trial), cache=cache)
    dataset = trial.dataset(encoding)
    loader = TrainLoader(dataset, global_batch_size=_batch_size(trial), config=config)
    if cache != "none":
        while loader.samples_seen < 2 * dataset.num_samples("train"):  # in the second epoch, every picture is there
            next(loader)
    return _batches_pace(trial, loader)


def _dali_reader(trial: Trial, encoding: str) -> Measure:
    config, num_threads = LoaderConfig(), len(os.sched_getaffinity(0)) + 1  # as many as the loader has
    batches = dali_batches(
        trial.dataset(encoding),
        _batch_size(trial),
        num_threads,
        config.prefetch_batches,
        device=_device(trial),
        layout="NHWC",
    )
    return _batches_pace(trial, batches)


def _batches_pace(trial: Trial, batches: Iterator[Any]) -> Measure:
    def measure() -> dict[str, float]:
        # What was made while the others were measured is used up first.
        num_before = 2 * LoaderConfig().prefetch_batches + 2
        seconds = seconds_per_step(functools.partial(next, batches), trial.seconds, num_before)
        return {IMAGES: _batch_size(trial) / seconds}

    return measure


def _torchvision(trial: Trial) -> Measure:
    """Prepare torchvision's decoder of JPEGs, which neither crops nor normalises."""
    from torchvision.io import ImageReadMode, decode_jpeg  # here: the project itself does not need it

    reader = ShardReader(trial.dataset("jpeg"), "train")
    contents = [torch.from_numpy(np.array(reader.read(sample_id))) for sample_id in range(_batch_size(trial))]
    decode = functools.partial(decode_jpeg, contents, mode=ImageReadMode.RGB, device=trial.device)
    return lambda: {IMAGES: len(contents) / seconds_per_step(decode, trial.seconds)}


def _loader_pace(trial: Trial, name: str) -> dict[str, Any]:
    """Return images/s of a loader, the number of busy cores, and the load of the GPU."""
    encoding, batch_size, fields, flags = _CASES[name]
    batch_size = 16 if trial.is_dry else batch_size
    config = LoaderConfig(layout="NHWC", device=_device(trial), **fields)
    engines = None
    with (
        _decoding(**flags),
        contextlib.closing(TrainLoader(trial.dataset(encoding), global_batch_size=batch_size, config=config)) as loader,
    ):
        began = time.perf_counter()
        next(loader)
        synchronize()
        first_batch_seconds = time.perf_counter() - began
        for _ in range(2 * config.prefetch_batches):  # batches made while the first one was measured
            next(loader)
        synchronize()
        began, clock, num_images, elapsed = time.perf_counter(), ThreadClock(), 0, 0.0
        while not num_images or elapsed <= trial.seconds:
            next(loader)
            num_images += batch_size
            elapsed = time.perf_counter() - began
            if not trial.is_dry and engines is None and elapsed > trial.seconds / 2:
                engines = subprocess.Popen(_ENGINES, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        synchronize()
        elapsed, cores = time.perf_counter() - began, clock.usage().cores
    figures: dict[str, Any] = {
        "images/s": num_images / elapsed,
        "cores by thread": cores,
        "seconds to the first batch": first_batch_seconds,
    }
    if engines is not None:
        figures["JPEG engines, GPU busy"] = engines.communicate()[0].strip()[:80]
    return figures


@contextlib.contextmanager
def _decoding(**flags: Any) -> Iterator[None]:
    """Let the graph decode with other flags."""
    decoder = fn.decoders.image

    def decode(*arguments: Any, **options: Any) -> Any:
        return decoder(*arguments, **(options | flags))

    with mock.patch.object(fn.decoders, "image", decode):
        yield


def _stages(trial: Trial, encoding: str) -> dict[str, float]:
    """Return images/s of each stage, as `python -m pipeline.bench` measures them on the CPU."""
    path = trial.scratch / f"{encoding}.json"
    seconds = 0.01 if trial.is_dry else trial.seconds / 4
    options = ["--batch-size", "16"] if trial.is_dry else []
    bench.main([str(trial.data / encoding), "--seconds", str(seconds), "--json", str(path), *options])
    return {stage: measured["images_per_second"] for stage, measured in json.loads(path.read_text())["stages"].items()}
