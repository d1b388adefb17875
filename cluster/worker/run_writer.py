"""What the first worker writes beside its log, while training continues: the sample ledger and the checkpoints."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from cluster.run.checkpoint import CheckpointStore
from cluster.run.ledger_files import Ledger
from cluster.worker.device_clock import DeviceClock
from pipeline.command import InputError
from pipeline.system.os_errors import described, way_out

_LEDGER, _CHECKPOINT = "the sample ledger", "a checkpoint"


class RunWriter:
    """Writes the ledger and the checkpoints of a run from one thread, in the order in which they are handed over.

    So the ledger of a checkpoint's steps is on disk before the checkpoint. After a failure nothing more is written.

    A checkpoint is a copy of the state, which takes as much memory as the weights and the optimiser's state. A GPU
    copies between two steps, into pinned memory: 488 MB for `alexnet_2012`, about 20 ms over PCIe 4, at most twice in
    `checkpoint_seconds`. The process does not wait for it; the thread does, before it writes.

    Args:
        checkpoints: Store of the checkpoints.
        ledger: Ledger of the run.
        clock: Clock of the device that has the state.
    """

    def __init__(self, checkpoints: CheckpointStore, ledger: Ledger, clock: DeviceClock) -> None:
        self._checkpoints, self._ledger, self._clock = checkpoints, ledger, clock
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="run-writer")
        self._checkpoint: Future[None] | None = None  # the latest one
        self._latest: Future[None] | None = None  # of all that was handed over
        self._failure: tuple[str, Exception] | None = None

    def append(self, first_step: int, sample_ids_SG: np.ndarray, world_size: int) -> None:
        """Begin to record steps in the ledger; for the arguments, see `Ledger.append`.

        Raises:
            InputError: Something that was handed over earlier could not be written.
            OSError: It could not be written, for a cause that may be temporary.
        """
        self._raise_failure()
        self._begin(_LEDGER, lambda: self._ledger.append(first_step, sample_ids_SG, world_size))

    def save(self, state: dict[str, Any], step: int, is_best: bool = False, is_copy: bool = False) -> None:
        """Begin to write a checkpoint; `state` may change as soon as this returns.

        Waits for the previous checkpoint first.

        Args:
            state: State to write.
            step: Step of the state.
            is_best: See `CheckpointStore.save`.
            is_copy: Whether the tensors in `state`, except scalars, will not change, so that they need no copy.

        Raises:
            InputError, OSError: See `append`.
        """
        if self._checkpoint is not None:
            self._checkpoint.result()
        self._raise_failure()
        # Later steps come after the copies in the GPU's order of work.
        copy = _copied(state, is_copy)
        copied = self._clock.mark()

        def save() -> None:
            self._clock.wait(copied)
            self._checkpoints.save(copy, step, is_best)

        self._checkpoint = self._begin(_CHECKPOINT, save)
        self._begin(_LEDGER, self._ledger.consolidate)

    def wait(self) -> None:
        """Wait until all that was handed over is on disk.

        Raises:
            InputError, OSError: See `append`.
        """
        if self._latest is not None:
            self._latest.result()
        self._raise_failure()

    def close(self) -> None:
        """Wait for the writes to end, and release the thread."""
        self._executor.shutdown(wait=True)

    def _begin(self, what: str, write: Callable[[], None]) -> Future[None]:
        def run() -> None:
            if self._failure is None:
                try:
                    write()
                except Exception as error:
                    self._failure = what, error

        self._latest = self._executor.submit(run)
        return self._latest

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        what, error = self._failure
        if not isinstance(error, OSError) or not way_out(error):
            raise error
        raise InputError(
            f"{what} can't be written: {described(error)}; the checkpoints before are whole: {way_out(error)}, and the "
            "same command goes on from there"
        ) from error


def _copied(value: Any, is_copy: bool) -> Any:
    """Return a state with its tensors copied to the CPU; a GPU makes the copies after the work given to it before."""
    if isinstance(value, torch.Tensor):
        if is_copy and value.ndim:
            return value
        return value.detach().to("cpu", copy=True, non_blocking=True)  # from a GPU: into pinned memory, which is reused
    if isinstance(value, dict):
        return type(value)((name, _copied(item, is_copy)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_copied(item, is_copy) for item in value)
    return value
