"""Measure which library decodes, resizes (shorter side 256, antialiased) and encodes photographs fastest.

One process on one core, one thread per library. Also measured: how far the resized pixels are from Pillow's bicubic
ones, and whether the decoder refuses truncated files, which an audit requires.
"""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from benchmarks.photographs import describe, list_photographs
from benchmarks.record import Comparison, publish, record_document, run_rounds
from pipeline.command import run_command

if TYPE_CHECKING:
    from benchmarks.picture_libraries import Way

_QUANTITIES = {
    "cpu_milliseconds_per_image": "processor time of the process, all of its threads, without reading the file",
    "images_per_second": "by the wall clock, the process bound to one core",
    "largest_difference": "of a channel to Pillow's bicubic in any picture, in grey levels",
    "mean_difference": "absolute, of all channels of all pictures, in grey levels",
    "truncated_refused": "fraction of pictures, cut to 70 % of their bytes, that raise an error",
}
_NUM_TRUNCATED = 20
_REMAINING = 0.7  # fraction of its bytes that a truncated picture keeps


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.decoders`."""

    photos: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS")]
    """Photographs in class folders, train/CLASS/*.JPEG and val/CLASS/*.JPEG."""
    rounds: int = 3
    """Runs of each library."""
    pictures: int = 1000
    """Number of photographs to use, held in memory."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    from benchmarks.picture_libraries import EXACT, PACKAGES, WAYS  # imported here, so that --help works without them

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    photographs = list_photographs(arguments.photos)[: arguments.pictures]
    contents = [path.read_bytes() for path in photographs]
    for way in WAYS.values():
        _consume(way, contents[:2])  # warms up
    values = run_rounds({name: partial(_speed, way, contents) for name, way in WAYS.items()}, arguments.rounds)
    for name, way in WAYS.items():
        once = _differences(way, WAYS[EXACT], contents) | {"truncated_refused": _refused(way, contents)}
        values[name] |= {quantity: [value] for quantity, value in once.items()}
    comparisons = [
        Comparison(of=name, quantity="cpu_milliseconds_per_image", to=EXACT) for name in WAYS if name != EXACT
    ]
    publish(
        record_document(
            name="decoders",
            command=f"python -m benchmarks.decoders PHOTOS --rounds {arguments.rounds} --pictures {len(contents)}",
            corpus=f"PHOTOS: {describe(photographs)}",
            quantities=_QUANTITIES,
            values=values,
            comparisons=comparisons,
            packages=PACKAGES,
        )
    )
    return 0


def _consume(way: "Way", contents: Sequence[bytes]) -> int:
    return sum(len(encoded) for _, encoded in way(contents))


def _speed(way: "Way", contents: Sequence[bytes]) -> Mapping[str, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    _consume(way, contents)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_milliseconds_per_image": 1000 * cpu / len(contents), "images_per_second": len(contents) / wall}


def _differences(way: "Way", exact: "Way", contents: Sequence[bytes]) -> dict[str, float]:
    largest, means = 0, []
    for (picture, _), (expected, _) in zip(way(contents), exact(contents), strict=True):
        difference_HWC = np.abs(np.asarray(picture).astype(int) - np.asarray(expected))
        largest = max(largest, int(difference_HWC.max()))
        means.append(float(difference_HWC.mean()))
    return {"largest_difference": largest, "mean_difference": statistics.fmean(means)}


def _refused(way: "Way", contents: Sequence[bytes]) -> float:
    num_refused, truncated = 0, [content[: int(len(content) * _REMAINING)] for content in contents[:_NUM_TRUNCATED]]
    for content in truncated:
        try:
            _consume(way, [content])
        except Exception:  # each library has its own exception
            num_refused += 1
    return num_refused / len(truncated)


if __name__ == "__main__":
    run_command(main)
