"""Measure the stages of the loader on a dataset, each alone and all together, and name the slowest one.

The stages are `read` (bytes, checked against their hash, in the order of training), `parameters` (drawing order and
augmentation), `decode` (JPEG to pixels, and resizing of whole pictures; raw pixels are copied) and `augment` (crop,
mirror and normalisation of decoded pixels). `full` is the training loader. Two upper bounds are measured as well: the
JPEG library alone at its fastest settings, and copying the pixels of the crops into a float32 batch. `read` and
`parameters` use one core, the others as many as there are threads.
"""

import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import simplejpeg
import tyro

from pipeline.command import InputError, run_command
from pipeline.dataset import Dataset
from pipeline.online.augmentation import AugmentationConfig, AugmentationParameters, divisor, draw_parameters
from pipeline.online.order import SampleOrder
from pipeline.online.shard_reader import ShardReader
from pipeline.system.files import write_json
from pipeline.system.processor import this_processor

Step = Callable[[], object]
STAGES = ("read", "parameters", "decode", "augment")
FULL, JPEG_LIBRARY, MEMORY_COPY = "full", "JPEG library", "memory copy"
_OF_ONE_CORE = {"read", "parameters"}
_SEED = 0
_HELD_PICTURES = 512  # at least; more than fit into a processor's cache, so each stage reads its input from memory
_LOOKAHEAD = 4  # batches, as in `pipeline.online.feed`
_WARM_UP_STEPS = 4  # the batches that DALI works on at once, and a few more


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m pipeline.bench`."""

    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Dataset folder; its training pictures are read."""
    batch_size: int = 128
    """Pictures per batch."""
    threads: int = len(os.sched_getaffinity(0))
    """Number of DALI's threads, and of threads that measure the upper bounds."""
    seconds: float = 5.0
    """Duration of one measurement."""
    json: Path | None = None
    """File to write the figures to as well."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    _check(arguments)
    dataset = Dataset.open(arguments.dataset)
    rates = {}
    for stage, step in _Stages(dataset, arguments.batch_size, arguments.threads).steps():
        rates[stage] = _images_per_second(step, arguments.batch_size, arguments.seconds)
        sys.stderr.write(f"{stage}: {rates[stage]:,.0f} images/s\n")
    document = figures(dataset, arguments, rates)
    if arguments.json is not None:
        write_json(arguments.json, document)
    sys.stdout.write(table(document))
    return 0


def binding_stage(rates: Mapping[str, float]) -> str:
    """Return the slowest of the single stages; other measurements do not count."""
    return min(STAGES, key=lambda stage: rates[stage])


def figures(dataset: Dataset, arguments: Arguments, rates: Mapping[str, float]) -> dict[str, Any]:
    """Return all figures, in images per second, as the document that `--json` writes."""
    cores = min(arguments.threads, len(os.sched_getaffinity(0)))
    binding = binding_stage(rates)
    return {
        "processor": str(this_processor()),
        "dataset_sha256": dataset.sha256,
        "encoding": dataset.encoding,
        "batch_size": arguments.batch_size,
        "threads": arguments.threads,
        "stages": {
            stage: {"images_per_second": rate, "cores": 1 if stage in _OF_ONE_CORE else cores}
            for stage, rate in rates.items()
        },
        "binding_stage": binding,
        "full_of_binding_stage": rates[FULL] / rates[binding],
    }


def table(document: Mapping[str, Any]) -> str:
    """Return the processor, the figures as aligned text, and which stage binds."""
    rows = [("", "images/s", "cores", "per core")]
    for stage, measured in document["stages"].items():
        rate, cores = measured["images_per_second"], measured["cores"]
        rows.append((stage, f"{rate:,.0f}", str(cores), f"{rate / cores:,.0f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    binding = document["binding_stage"]
    alone = document["stages"][binding]["images_per_second"]
    lines.append(
        f"{binding} binds: alone it reaches {alone:,.0f} images/s, the full loader "
        f"{document['full_of_binding_stage']:.0%} of that"
    )
    return "\n".join([document["processor"], *lines]) + "\n"


def _check(arguments: Arguments) -> None:
    """Raise InputError for arguments that allow no measurement."""
    for name in ("batch_size", "threads"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be at least 1")
    if not 0 < arguments.seconds < float("inf"):
        raise InputError(f"--seconds is {arguments.seconds}; it must be above 0")
    if arguments.json is not None and arguments.json.is_dir():
        raise InputError(f"--json {arguments.json} is a folder; name a file to write")


def _images_per_second(step: Step, batch_size: int, seconds: float) -> float:
    """Return the speed of a step that makes a batch, by the wall clock after a warm-up."""
    for _ in range(_WARM_UP_STEPS):
        step()
    num_images, elapsed, began = 0, 0.0, time.perf_counter()
    while elapsed < seconds:
        step()
        num_images += batch_size
        elapsed = time.perf_counter() - began
    return num_images / elapsed


class _Stages:
    """The stages to measure, each as a step that makes one batch from input that is ready in memory."""

    def __init__(self, dataset: Dataset, batch_size: int, num_threads: int) -> None:
        self._dataset, self._batch_size, self._num_threads = dataset, batch_size, num_threads
        self._raw = dataset.member == "npy"
        self._reader = ShardReader(dataset, "train")
        self._order = SampleOrder(dataset.num_samples("train"), _SEED)
        self._config = AugmentationConfig()
        self._crop_size = self._config.crop_of(dataset.stored_size)
        self._num_held = -(-_HELD_PICTURES // batch_size)

    def steps(self) -> Iterator[tuple[str, Step]]:
        """Yield name and step of each stage; a stage is prepared when it is yielded, and is used before the next."""
        # Imported here, so that --help works without DALI, and a missing DALI gives an error of one line.
        from pipeline.loader import LoaderConfig, TrainLoader
        from pipeline.online.graph import GraphConfig
        from pipeline.online.stage_graphs import build_augment_graph, build_decode_graph

        reads = self._reads()
        yield "read", reads.__next__
        parameters = map(self._draw, self._positions())
        yield "parameters", parameters.__next__

        dataset = self._dataset
        config = GraphConfig(
            raw=self._raw,
            whole=dataset.stores_whole_pictures,
            stored_size=dataset.stored_size,
            crop_size=self._crop_size,
            divisor_3=divisor(self._config, dataset.color_basis),
            mean_image_HWC=None,
            ten_crops=False,
            output_type="float32",
            layout="NCHW",
            max_batch_size=self._batch_size,
            device="cpu",
            decode="cpu",
            normalizer="kernel",
            device_id=0,
            num_threads=self._num_threads,
            prefetch_batches=LoaderConfig().prefetch_batches,
        )
        contents = itertools.cycle(list(itertools.islice(reads, self._num_held)))
        decode = build_decode_graph(contents, config)
        yield "decode", decode.run
        pixels = [np.array(decode.run()[0].as_array()) for _ in range(self._num_held)]
        fed = itertools.cycle([(pixels_NHWC, *next(parameters).values()) for pixels_NHWC in pixels])
        augment = build_augment_graph(fed, config)
        yield "augment", augment.run
        threads = LoaderConfig(num_threads=self._num_threads)
        loader = TrainLoader(dataset, global_batch_size=self._batch_size, seed=_SEED, config=threads)
        with closing(loader):
            yield FULL, loader.__next__

        with ThreadPoolExecutor(self._num_threads) as pool:
            if not self._raw:
                yield JPEG_LIBRARY, lambda: self._share(pool, _decode, next(contents))
            crops = itertools.cycle([pixels_NHWC[:, : self._crop_size, : self._crop_size] for pixels_NHWC in pixels])
            images_NHWC = np.empty_like(pixels[0], np.float32)[:, : self._crop_size, : self._crop_size]
            yield MEMORY_COPY, lambda: self._share(pool, _copy, list(zip(images_NHWC, next(crops), strict=True)))

    def _positions(self) -> Iterator[np.ndarray]:
        """Yield the positions of the endless stream, one batch at a time."""
        for first in itertools.count(step=self._batch_size):
            yield np.arange(first, first + self._batch_size, dtype=np.int64)

    def _reads(self) -> Iterator[list[np.ndarray]]:
        """Yield batches of bytes, and request those of later batches in advance, as the loader does."""
        ahead: deque[np.ndarray] = deque()
        for sample_ids in map(self._order.sample_ids, self._positions()):
            self._reader.prefetch(sample_ids)
            ahead.append(sample_ids)
            if len(ahead) > _LOOKAHEAD:
                yield [self._reader.read(sample_id) for sample_id in ahead.popleft().tolist()]

    def _draw(self, positions: np.ndarray) -> AugmentationParameters[np.ndarray]:
        epochs, sample_ids = positions // self._order.num_samples, self._order.sample_ids(positions)
        basis, stored_size = self._dataset.color_basis, self._dataset.stored_size
        return draw_parameters(self._config, basis, stored_size, _SEED, epochs, sample_ids)

    def _share(self, pool: ThreadPoolExecutor, work: Callable[[Any], object], items: Sequence[Any]) -> None:
        """Process a batch in threads, an equal part in each."""

        def part(first: int) -> None:
            for item in items[first :: self._num_threads]:
                work(item)

        list(pool.map(part, range(self._num_threads)))


def _decode(content: np.ndarray) -> None:
    simplejpeg.decode_jpeg(content, fastdct=True, fastupsample=True, strict=False)


def _copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    np.copyto(*pair)


if __name__ == "__main__":
    run_command(main)
