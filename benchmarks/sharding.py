"""Measure the offline stage's speed against the floor and against webdataset's ShardWriter.

Each alternative is a separate command with two worker processes, timed as a whole, including start-up, listing and
writing, so many pictures are needed. The statistics are timed separately, in one process, against the work on a
picture.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.photographs import describe, link_photographs, list_photographs
from benchmarks.record import ROOT, Comparison, Values, publish, record_document, run_rounds
from pipeline.command import InputError, run_command

_COMMANDS = {
    "shard": ["pipeline.shard", "PHOTOS", "OUT", "--workers", "2"],
    "floor": ["benchmarks.bare_loop", "floor", "PHOTOS", "OUT"],
    "floor by the manual": ["benchmarks.bare_loop", "manual", "PHOTOS", "OUT"],
    "webdataset": ["benchmarks.webdataset_peer", "writer", "PHOTOS", "OUT"],
    "webdataset, encoded in the workers": ["benchmarks.webdataset_peer", "workers", "PHOTOS", "OUT"],
    "original": ["pipeline.shard", "PHOTOS", "OUT", "--encoding", "original", "--workers", "2"],
    "copy": ["benchmarks.bare_loop", "copy", "PHOTOS", "OUT"],
}
_COMPARISONS = [
    Comparison(of="shard", quantity="images_per_second", to="floor", at_least=0.9),
    Comparison(of="shard", quantity="images_per_second", to="floor by the manual"),
    Comparison(of="shard", quantity="images_per_second", to="webdataset", at_least=2),
    Comparison(of="shard", quantity="images_per_second", to="webdataset, encoded in the workers"),
    Comparison(of="original", quantity="images_per_second", to="copy", at_least=0.7),
    Comparison(of="statistics", quantity="cpu_milliseconds_per_image", to="decode, resize, encode", at_most=0.1),
]
_QUANTITIES = {
    "images_per_second": "pictures of all splits, by the wall clock of the whole command",
    "cpu_milliseconds_per_image": "processor time of a picture in one process; both parts are timed in the same loop",
}
_PACKAGES = ["numpy", "opencv-python-headless", "pillow", "simplejpeg", "torch", "torchvision", "webdataset"]
_NUM_STATISTICS = 500  # pictures


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.sharding`."""

    photos: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS")]
    """Photographs in class folders, train/CLASS/*.JPEG and val/CLASS/*.JPEG."""
    rounds: int = 3
    """Runs of each alternative."""
    pictures: int | None = None
    """Number of pictures: some of the photographs, or all of them repeated by hard links. Default: each one once."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    photographs = list_photographs(arguments.photos.absolute())
    num_pictures = arguments.pictures or len(photographs)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        scratch = Path(name)
        source = link_photographs(photographs, scratch / "photographs", num_pictures)
        values = run_rounds(
            {
                alternative: _whole_command(module_and_options, source, scratch / "out", num_pictures)
                for alternative, module_and_options in _COMMANDS.items()
            },
            arguments.rounds,
        )
    values |= _statistics(photographs[:_NUM_STATISTICS], arguments.rounds)
    publish(
        record_document(
            name="sharding",
            command=f"python -m benchmarks.sharding PHOTOS --rounds {arguments.rounds} --pictures {num_pictures}",
            corpus=f"PHOTOS: {describe(photographs)}, linked until there were {num_pictures:,}",
            quantities=_QUANTITIES,
            values=values,
            comparisons=_COMPARISONS,
            packages=_PACKAGES,
        )
    )
    return 0


def _whole_command(
    module_and_options: Sequence[str], source: Path, out: Path, num_pictures: int
) -> Callable[[], Mapping[str, float]]:
    places = {"PHOTOS": str(source), "OUT": str(out)}
    command = [sys.executable, "-m", *(places.get(word, word) for word in module_and_options)]

    def run() -> dict[str, float]:
        os.sync()  # otherwise, the disk would still be busy with the files of the previous alternative
        start = time.perf_counter()
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        shutil.rmtree(out, ignore_errors=True)
        if answer.returncode != 0:
            sys.stderr.write(answer.stderr)
            raise InputError(f"{module_and_options[0]} failed with status {answer.returncode}; see above")
        return {"images_per_second": num_pictures / seconds}

    return run


def _statistics(photographs: Sequence[Path], rounds: int) -> Values:
    # Imported here, so that --help works without the extra `bench`.
    import torch

    from benchmarks.picture_steps import crop_and_resize_fast, decode, encode
    from pipeline.offline.statistics import PixelSums

    torch.set_num_threads(1)

    def run() -> tuple[float, float]:
        """Return the processor time of the work on all pictures, and of their statistics, which find pixels cached."""
        sums, of_pictures, of_statistics = PixelSums(), 0.0, 0.0
        for path in photographs:
            start = time.process_time()
            pixels_HWC = crop_and_resize_fast(decode(path.read_bytes()))
            encode(pixels_HWC)
            between = time.process_time()
            sums.add_picture(pixels_HWC)
            of_pictures += between - start
            of_statistics += time.process_time() - between
        return of_pictures, of_statistics

    run()  # warms up
    milliseconds = 1000 / len(photographs)
    return run_rounds(
        {
            "decode, resize, encode": lambda: {"cpu_milliseconds_per_image": run()[0] * milliseconds},
            "statistics": lambda: {"cpu_milliseconds_per_image": run()[1] * milliseconds},
        },
        rounds,
    )


if __name__ == "__main__":
    run_command(main)
