"""What feeds the DALI graph: positions -> sample ids -> bytes and parameters; and the thread that runs the graph.

    positions (endless, or one pass) -> ids -> bytes from the mapped shards + parameters -> graph -> queue -> loader

The thread keeps `prefetch_batches` finished batches in a queue, so that the step takes one and goes on. It knows the
feed, not the loader: a loader that nobody holds any more is collected, and its thread ends.
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
_LOOKAHEAD = 4  # batches whose bytes are asked for before they are read
_POLL_SECONDS = 0.1  # of a thread that waits for room, to see whether it shall stop


@dataclass(frozen=True)
class FinishedBatch:
    """What the graph made of a batch: images, and who they are."""

    images: torch.Tensor
    sample_ids: np.ndarray
    positions: np.ndarray


class Feed:
    """Gives the graph its next batch, and remembers whose it is.

    Attributes:
        num_replaced: Samples that were replaced because their bytes have changed or are gone.
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
            reader: Of the split.
            positions: Of this rank, int64 (N,), a batch at a time.
            identify: Positions -> sample ids.
            draw: Positions and sample ids -> augmentation.
            num_alive: Batches that the graph holds at once.
        """
        self._reader, self._identify, self._draw = reader, identify, draw
        self._positions = positions
        self.num_replaced = 0
        self._ahead: deque[tuple[np.ndarray, np.ndarray]] = deque()
        # The graph reads the fed arrays without a copy until the batch is done: keep those of all batches under way.
        self._alive: deque[Any] = deque(maxlen=num_alive)
        self._under_way: deque[tuple[np.ndarray, np.ndarray]] = deque()

    def __call__(self) -> tuple[Any, ...]:
        """Return the next batch as the graph takes it; raises StopIteration after the last."""
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
        """Return sample ids and positions of the oldest batch that the graph has not yet given back."""
        return self._under_way.popleft()

    def _read(self, sample_id: int) -> tuple[np.ndarray, int]:
        """Return a sample's bytes and its id; of a changed one, if that is allowed, those of the next whole one."""
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
        """Start."""
        self._queue: queue.Queue[FinishedBatch | BaseException] = queue.Queue(config.prefetch_batches)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(feed, config), name="loader", daemon=True)
        self._thread.start()

    def next(self) -> FinishedBatch:
        """Return the next batch, waiting for it if need be; raises what the thread raised, StopIteration at the end."""
        result = self._queue.get()
        if isinstance(result, BaseException):
            self._queue.put(result)  # again for whoever asks again
            raise result
        return result

    def stop(self) -> None:
        """End the thread and release the graph."""
        self._stopping.set()
        # The collector may call this in any thread, so in the loader's own too.
        while self._thread.is_alive() and threading.current_thread() is not self._thread:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(_POLL_SECONDS / 10)

    def _run(self, feed: Feed, config: GraphConfig) -> None:
        try:
            if config.device == "gpu":
                torch.cuda.set_device(config.device_id)  # a new thread is on the first GPU, whatever the others are on
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
