"""Batches of byte ranges are hashed and read ahead without Python's lock."""

import threading
import time

import numpy as np
import pytest
import xxhash

from pipeline.online import memory_ranges
from pipeline.online.memory_ranges import hash_ranges, read_ahead

LENGTHS = [0, 1, 3, 4, 8, 16, 17, 128, 129, 240, 241, 1024, 100_000]


@pytest.mark.parametrize("has_function", [True, False])
def test_the_hashes_are_those_of_xxhash(monkeypatch, has_function):
    if not has_function:
        monkeypatch.setattr(memory_ranges, "_HASH", None)
    content = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8)
    firsts = np.arange(len(LENGTHS)) * 7
    hashes = hash_ranges((content.ctypes.data + firsts).astype(np.uint64), np.array(LENGTHS))
    assert hashes.tolist() == [
        xxhash.xxh3_64_intdigest(content[first : first + length].tobytes())
        for first, length in zip(firsts, LENGTHS, strict=True)
    ]


def test_this_xxhash_hashes_without_the_lock():
    content = np.zeros(100_000_000, dtype=np.uint8)
    ended = threading.Event()

    def hash_long():
        hash_ranges(np.full(40, content.ctypes.data, dtype=np.uint64), np.full(40, len(content)))
        ended.set()

    hash_ranges(np.array([content.ctypes.data], dtype=np.uint64), np.array([1]))  # compiles
    thread = threading.Thread(target=hash_long)
    thread.start()
    turns = 0
    while not ended.is_set():
        turns += 1
        time.sleep(0)
    thread.join()
    assert turns > 100  # with the lock held, this thread would get no turn before the end


def test_reading_ahead_takes_any_range():
    content = np.zeros(10_000, dtype=np.uint8)
    lengths = np.array([0, 1, 9_000])
    read_ahead((content.ctypes.data + np.array([5, 4_097, 3])).astype(np.uint64), lengths)
    assert not content.any()
