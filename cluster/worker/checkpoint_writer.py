"""Checkpoints are written while training continues: the state is copied, and a thread writes the copy."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from cluster.run.checkpoint import CheckpointStore
from pipeline.command import InputError
from pipeline.system.os_errors import described, way_out


class CheckpointWriter:
    """Writes to a store from a thread, at most one checkpoint at a time.

    The copy takes as much memory as the weights and the optimiser's state.
    """

    def __init__(self, store: CheckpointStore) -> None:
        """Start a thread for `store`, which nothing else may write to."""
        self._store = store
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None

    def write(self, state: dict[str, Any], step: int, is_best: bool = False) -> None:
        """Begin to write a checkpoint; `state` may change as soon as this returns.

        Waits for the previous checkpoint first, and raises its error, if any.
        """
        self.wait()
        self._under_way = self._executor.submit(self._store.save, _copied(state), step, is_best)

    def wait(self) -> None:
        """Wait until the current checkpoint is complete on disk.

        Raises:
            InputError: It could not be written.
            OSError: It could not be written, for a cause that may be temporary.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return
        try:
            under_way.result()
        except OSError as error:
            if not way_out(error):
                raise
            raise InputError(
                f"a checkpoint can't be written: {described(error)}; those before are whole: {way_out(error)}, and the "
                "same command goes on from there"
            ) from error

    def close(self) -> None:
        """Wait for the current write to end, and release the thread."""
        self._executor.shutdown(wait=True)


def _copied(value: Any) -> Any:
    """Return a state with its tensors copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((name, _copied(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
