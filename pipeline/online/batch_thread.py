"""The thread that makes batches ahead of the training, and what it hands over.

The thread keeps finished batches in a queue, so that a step need not wait for its batch. It refers to the maker of the
batches, not to the loader: a loader that is no longer referenced is collected, and its thread ends.

For a GPU, the thread copies labels, positions and parameters from pinned memory on a stream of its own, and an event
marks their arrival. Whoever takes the batch lets its own stream wait for the event, so no processor waits.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pipeline.online.batch import Batch, Layout

_POLL_SECONDS = 0.1  # between the checks of a thread that waits for room, whether it must stop


class Upload:
    """Copies arrays to the loader's device, from pinned memory and without waiting if it is a GPU.

    Args:
        device: Device of the loader.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._tensors = device, list[torch.Tensor]()

    def __call__(self, values: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return the values on the device; they may not be read before `Arrival.wait`."""
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        if self._device.type == "cpu":
            return tensor
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        self._tensors.append(pinned.to(self._device, non_blocking=True))
        return self._tensors[-1]

    def arrival(self) -> "Arrival":
        """Return the arrival of all copies and kernels that this thread has begun."""
        if self._device.type == "cpu":
            return Arrival(None, ())
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return Arrival(event, tuple(self._tensors))


@dataclass(frozen=True)
class Arrival:
    """Event after which tensors of another stream can be read; on a CPU there is none."""

    event: torch.cuda.Event | None
    tensors: tuple[torch.Tensor, ...]

    def wait(self) -> None:
        """Let the current stream wait, and keep the tensors' memory until it has used them."""
        if self.event is None:
            return
        stream = torch.cuda.current_stream(self.tensors[0].device)
        stream.wait_event(self.event)
        for tensor in self.tensors:
            tensor.record_stream(stream)


@dataclass(frozen=True)
class FinishedBatch:
    """A batch in the queue.

    Attributes:
        make_images: Function that returns the images; for a GPU it starts the kernel that makes them.
        labels: Classes, on the loader's device.
        device_positions: Positions on the loader's device.
        sample_ids: See `Batch`.
        positions: See `Batch`.
        arrival: Arrival of the tensors on the device.
    """

    make_images: Callable[[], torch.Tensor]
    labels: torch.Tensor
    device_positions: torch.Tensor
    sample_ids: np.ndarray
    positions: np.ndarray
    arrival: Arrival

    def take(self, layout: Layout) -> Batch:
        """Return the batch as whoever trains sees it."""
        self.arrival.wait()
        images = self.make_images()
        if layout == "NHWC":
            images = images.movedim(-1, -3)
        ids, positions = torch.from_numpy(self.sample_ids), torch.from_numpy(self.positions)
        return Batch(images, self.labels, ids, positions, self.device_positions)


def joined(batches: Sequence[Batch]) -> Batch:
    """Return several batches as one."""
    if len(batches) == 1:
        return batches[0]
    return Batch(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in vars(batches[0])})


class Batches(Protocol):
    """Makes batches."""

    def __next__(self) -> FinishedBatch:
        """Return the next batch; raises StopIteration after the last."""

    def begin_again(self) -> None:
        """Continue with the batches that there are after the last one."""


class BatchThread:
    """Makes batches in a thread, a few ahead.

    Args:
        start: Function that the thread calls first; it returns what makes the batches.
        device: Device of the batches.
        num_ahead: Number of finished batches in the queue.
    """

    def __init__(self, start: Callable[[], Batches], device: torch.device, num_ahead: int) -> None:
        self._queue: queue.Queue[FinishedBatch | BaseException] = queue.Queue(num_ahead)
        self._stopping, self._begins_again = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(start, device), name="loader", daemon=True)
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

    def begin_again(self) -> None:
        """Continue with the batches that there are after the last one, which `next` has found."""
        self._queue.get()
        self._begins_again.set()

    def stop(self) -> None:
        """End the thread and release what makes the batches."""
        self._stopping.set()
        # The garbage collector may call this in any thread, even in the one to be stopped.
        while self._thread.is_alive() and threading.current_thread() is not self._thread:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(_POLL_SECONDS / 10)

    def _run(self, start: Callable[[], Batches], device: torch.device) -> None:
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # a new thread begins on the first GPU, whichever others use
            batches = start()
            while not self._stopping.is_set():
                try:
                    self._put(next(batches))
                except StopIteration as end:
                    self._put(end)
                    while not self._begins_again.wait(_POLL_SECONDS) and not self._stopping.is_set():
                        pass
                    self._begins_again.clear()
                    batches.begin_again()
        except BaseException as error:
            self._put(error)

    def _put(self, result: FinishedBatch | BaseException) -> None:
        while not self._stopping.is_set():
            try:
                self._queue.put(result, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue
