"""Which shards stay mapped, within the limits of a process on open files and memory maps.

Python keeps a file open for as long as its map lives, and a dataset may have more shards than the system allows open
files (`ulimit -n`, often 1,024), maps, or address space. All readers of a process share these limits. If their shards
fit, each stays mapped once it has been used. Otherwise the shard that was mapped first makes room for the next: in a
random order it is no likelier than others to be read again, and in a sequential order it has been read. A map lives as
long as any view of it, so in this case readers return copies.
"""

import contextlib
import errno
import mmap
import os
import resource
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_RESERVE = 256  # files and maps for the rest of the process: checkpoints, logs, sockets, libraries; at most a quarter
_USUALLY_OPEN = 128  # upper bound of the files that a worker on Ray has open; 60 to 110 were seen
_LEAST = 16  # shards that are kept mapped whatever the limits are
_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class MappedShard(NamedTuple):
    """Bytes of a shard, and the address of the first one; `mapped` is None if there are none."""

    mapped: mmap.mmap | None
    content: np.ndarray
    address: int


class ShardMaps:
    """The mapped shards of all readers in a process.

    Attributes:
        gives_way: True if the readers have more shards than can stay mapped.
    """

    def __init__(self) -> None:
        """Begin without any mapped shard."""
        self.gives_way = False
        self._lock = threading.RLock()  # the garbage collector may call `leave` at any moment
        self._kept: dict[tuple[int, int], dict[int, MappedShard]] = {}  # in the order in which they were mapped
        self._wanted: dict[int, int] = {}
        self._limit = _LEAST
        self._for_others = 0  # open files of the rest of the process

    def join(self, maps: dict[int, MappedShard], shard_bytes: Sequence[int]) -> None:
        """Register the shards of a new reader, and raise the soft limit on open files for them.

        Args:
            maps: The reader's mapped shards, which `keep` fills and empties.
            shard_bytes: Length of each shard in bytes.
        """
        with self._lock:
            self._wanted[id(maps)] = len(shard_bytes)
            self._allow_open_files()
            self._limit = max(_LEAST, num_mappable(shard_bytes, num_mapped=len(self._kept)))
            self._compare()

    def leave(self, maps: dict[int, MappedShard]) -> None:
        """Forget a reader that is gone."""
        with self._lock:
            for shard in list(maps):
                self._kept.pop((id(maps), shard), None)
            self._wanted.pop(id(maps), None)
            self._compare()

    def keep(self, maps: dict[int, MappedShard], shard: int, map_shard: Callable[[], MappedShard]) -> MappedShard:
        """Map a shard into a reader's `maps`, and unmap others if there is no room for it.

        Raises:
            OSError: The shard can't be mapped, even with all others unmapped.
        """
        with self._lock:
            self._let_go(self._limit - 1)
            while True:
                try:
                    mapped = map_shard()
                    break
                except OSError as error:  # the rest of the process uses more than its reserve
                    if error.errno not in _LIMITS or not self._kept:
                        raise
                    self._limit = max(1, len(self._kept) // 2)
                    self._compare()
                    self._let_go(self._limit - 1)
            maps[shard] = mapped
            self._kept[id(maps), shard] = maps
            return mapped

    def renew_lock(self) -> None:
        """Make a new lock in a forked child, where the thread that held the old one does not exist."""
        self._lock = threading.RLock()

    def _compare(self) -> None:
        self.gives_way = sum(self._wanted.values()) > self._limit

    def _allow_open_files(self) -> None:
        """Raise the soft limit on open files by the number of shards, as far as the hard limit allows."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return
        self._for_others = self._for_others or max(soft, len(os.listdir("/proc/self/fd")) + _RESERVE)
        raised = self._for_others + sum(self._wanted.values())
        if hard != resource.RLIM_INFINITY:
            raised = min(raised, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))

    def _let_go(self, num_kept: int) -> None:
        while len(self._kept) > num_kept and (oldest := next(iter(self._kept), None)) is not None:
            maps = self._kept.pop(oldest, None)
            if maps is not None:
                maps.pop(oldest[1], None)


SHARD_MAPS = ShardMaps()
os.register_at_fork(after_in_child=SHARD_MAPS.renew_lock)


def open_files_for(num_shards: int) -> int:
    """Return how many files a process must be allowed to open for all shards of a dataset to stay mapped."""
    others = num_shards + _USUALLY_OPEN
    return others + min(_RESERVE, (others - 1) // 3) if num_shards else 0  # a third of the others is a quarter of all


def max_open_files() -> int | None:
    """Return how far this process may raise its limit on open files; None: without bound."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if hard == resource.RLIM_INFINITY else hard


def num_mappable(shard_bytes: Sequence[int], num_mapped: int = 0) -> int:
    """Return how many shards this process can keep mapped and still do everything else.

    Args:
        shard_bytes: Length of each shard of a dataset in bytes.
        num_mapped: Number of shards that are mapped already.
    """
    num_files = len(os.listdir("/proc/self/fd"))
    room = [_left(resource.getrlimit(resource.RLIMIT_NOFILE)[0], num_files - num_mapped)]
    with contextlib.suppress(OSError, ValueError):  # the system does not tell
        num_maps = Path("/proc/self/maps").read_bytes().count(b"\n")
        room.append(_left(int(Path("/proc/sys/vm/max_map_count").read_text()), num_maps - num_mapped))
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        mean = max(1, sum(shard_bytes) // max(1, len(shard_bytes)))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        room.append((address_space - used) // 2 // mean + num_mapped)
    return max(0, min(room))


def _left(limit: int, num_used: int) -> int:
    if limit == resource.RLIM_INFINITY:
        limit = 2**62
    return limit - num_used - min(_RESERVE, limit // 4)
