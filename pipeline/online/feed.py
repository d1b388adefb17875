"""The feed of the DALI graph (positions -> sample ids -> bytes and parameters), and the thread that runs the graph.

    positions (endless, or one pass) -> ids -> bytes from the mapped shards + parameters -> graph -> queue -> loader

The thread keeps `prefetch_batches` finished batches in a queue, so that a step need not wait for its batch. The thread
refers to the feed, not to the loader: a loader that is no longer referenced is collected, and its thread ends.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.command import InputError
from pipeline.online.augmentation import AugmentationParameters
from pipeline.online.graph import GraphConfig, build_graph
from pipeline.online.shard_reader import ChangedSample, ShardReader

Draw = Callable[[np.ndarray, np.ndarray], AugmentationParameters[np.ndarray]]
_LOOKAHEAD = 4  # batches whose bytes are requested before they are read
_POLL_SECONDS = 0.1  # between the checks of a thread that waits for room, whether it must stop


@dataclass(frozen=True)
class FinishedBatch:
    """Images that the graph has made, with their sample ids and positions."""

    images: torch.Tensor
    sample_ids: np.ndarray
    positions: np.ndarray


class Feed:
    """Gives the graph its next batch, and remembers which samples it holds.

    Attributes:
        num_replaced: Number of samples that were replaced because their bytes have changed or are missing.
    """

    def __init__(
        self,
        reader: ShardReader,
        positions: Iterator[np.ndarray],
        identify: Callable[[np.ndarray], np.ndarray],
        draw: Draw,
        num_alive: int,
    ) -> None:
        """Take what defines the batches.

        Args:
            reader: Reader of the split.
            positions: Positions of this rank, one batch at a time, int64 (N,).
            identify: Maps positions to sample ids.
            draw: Maps positions and sample ids to the parameters of the augmentation.
            num_alive: Number of batches that the graph holds at once.
        """
        self._reader, self._identify, self._draw = reader, identify, draw
        self._positions = positions
        self.num_replaced = 0
        self._ahead: deque[tuple[np.ndarray, np.ndarray]] = deque()
        # The graph reads the arrays without copying them until the batch is done: keep those of all unfinished batches.
        self._alive: deque[Any] = deque(maxlen=num_alive)
        self._under_way: deque[tuple[np.ndarray, np.ndarray]] = deque()

    def __call__(self) -> tuple[Any, ...]:
        """Return the next batch in the graph's form; raises StopIteration after the last."""
        while len(self._ahead) <= _LOOKAHEAD and (positions := next(self._positions, None)) is not None:
            sample_ids = self._identify(positions)
            self._reader.prefetch(sample_ids)
            self._ahead.append((positions, sample_ids))
        if not self._ahead:
            raise StopIteration
        positions, sample_ids = self._ahead.popleft()
        content = []
        for place, sample_id in enumerate(sample_ids.tolist()):
            picture, read_id = self._read(sample_id)
            content.append(picture)
            sample_ids[place] = read_id
        parameters = self._draw(positions, sample_ids)
        fed = (content, *parameters.values())
        self._alive.append(fed)
        self._under_way.append((sample_ids, positions))
        return fed

    def identity(self) -> tuple[np.ndarray, np.ndarray]:
        """Return sample ids and positions of the oldest batch that the graph has not yet returned."""
        return self._under_way.popleft()

    def _read(self, sample_id: int) -> tuple[np.ndarray, int]:
        """Return a sample's bytes and its id; if it has changed and may be skipped, those of the next good sample."""
        num_passed = 0
        while num_passed < self._reader.num_samples:
            candidate = (sample_id + num_passed) % self._reader.num_samples
            try:
                picture = self._reader.read(candidate)
            except ChangedSample:
                if self._reader.on_bad_sample == "error":
                    raise
                num_passed += self._reader.num_samples_gone(candidate)
                continue
            self.num_replaced += num_passed > 0
            return picture, candidate
        raise InputError("no sample is as it was written; restore the dataset, or shard again")


class BatchThread:
    """Runs a fed graph in a thread, a few batches ahead."""

    def __init__(self, feed: Feed, config: GraphConfig) -> None:
        """Start the thread."""
        self._queue: queue.Queue[FinishedBatch | BaseException] = queue.Queue(config.prefetch_batches)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(feed, config), name="loader", daemon=True)
        self._thread.start()

    def next(self) -> FinishedBatch:
        """Return the next batch, waiting for it if necessary.

        Raises:
            StopIteration: There are no more batches.
            Exception: The thread raised it.
        """
        result = self._queue.get()
        if isinstance(result, BaseException):
            self._queue.put(result)  # for the next call, too
            raise result
        return result

    def stop(self) -> None:
        """End the thread and release the graph."""
        self._stopping.set()
        # The garbage collector may call this in any thread, even in the one to be stopped.
        while self._thread.is_alive() and threading.current_thread() is not self._thread:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(_POLL_SECONDS / 10)

    def _run(self, feed: Feed, config: GraphConfig) -> None:
        try:
            if config.device == "gpu":
                torch.cuda.set_device(config.device_id)  # a new thread begins on the first GPU, whichever others use
            pipeline = build_graph(feed, config)
            while not self._stopping.is_set():
                (output,) = pipeline.run()
                images = torch.from_dlpack(output.as_tensor())
                self._put(FinishedBatch(images, *feed.identity()))
        except BaseException as error:
            self._put(error)

    def _put(self, result: FinishedBatch | BaseException) -> None:
        while not self._stopping.is_set():
            try:
                self._queue.put(result, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue
