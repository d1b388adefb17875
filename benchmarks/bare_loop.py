"""The floors of sharding: two processes that do the inevitable with each picture, and nothing else.

Run by `benchmarks.sharding` as a process of its own:

    python -m benchmarks.bare_loop floor PHOTOS OUT   read, decode, resize, crop, encode; the result is dropped
    python -m benchmarks.bare_loop copy PHOTOS OUT    read, decode (the audit), append the bytes to a file a process
"""

import multiprocessing
import sys
from pathlib import Path

from benchmarks.photographs import list_photographs

_NUM_PROCESSES = 2


def _work(task: str, paths: list[Path], out: Path) -> None:
    # Here, so that the parent starts without torch.
    import torch

    from benchmarks.picture_steps import decode, encode, resize_and_crop

    torch.set_num_threads(1)
    if task == "floor":
        for path in paths:
            encode(resize_and_crop(decode(path.read_bytes())))
        return
    with open(out, "wb") as file:
        for path in paths:
            content = path.read_bytes()
            decode(content)
            file.write(content)


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
