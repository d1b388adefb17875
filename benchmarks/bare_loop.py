"""Floors for sharding: two processes that do only the unavoidable work on each picture.

Run by `benchmarks.sharding` as a separate process:

    python -m benchmarks.bare_loop floor PHOTOS OUT    read, decode, crop, resize, encode; the result is dropped
    python -m benchmarks.bare_loop manual PHOTOS OUT   the same, but with torch's resize as in its manual
    python -m benchmarks.bare_loop copy PHOTOS OUT     read, decode (the audit), append to one file per process
"""

import multiprocessing
import sys
from pathlib import Path

import simplejpeg

from benchmarks.photographs import list_photographs

_NUM_PROCESSES = 2


def _work(task: str, paths: list[Path], out: Path) -> None:
    if task == "copy":
        with open(out, "wb") as file:
            for path in paths:
                content = path.read_bytes()
                simplejpeg.decode_jpeg(content)
                file.write(content)
        return
    # Imported here, so that the parent and the copy start without torch.
    import torch

    from benchmarks.picture_steps import crop_and_resize, crop_and_resize_fast, decode, encode

    torch.set_num_threads(1)
    resize = crop_and_resize_fast if task == "floor" else crop_and_resize
    for path in paths:
        encode(resize(decode(path.read_bytes())))


def _main(task: str, photographs: str, out: str) -> int:
    paths = list_photographs(Path(photographs))
    Path(out).mkdir()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_work, args=(task, paths[first::_NUM_PROCESSES], Path(out) / str(first)))
        for first in range(_NUM_PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return int(any(process.exitcode for process in processes))


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
