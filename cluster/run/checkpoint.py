"""Checkpoints: atomic, hashed, verified when loaded. Ours are the truth; a launcher's own are not used.

`step-00000120.pt` holds weights, optimiser and counters; `step-00000120.json`, written after it, its SHA-256: a
checkpoint without it, or whose bytes differ, counts as torn, and the one before is used. `best-*` is the best by
`val`.
"""

import hashlib
import io
import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from pipeline.system.files import atomic_file, names_in, remove_temporary_files, write_json
from pipeline.system.os_errors import is_out_of_reach

Kind = Literal["step", "best"]


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: Where they lie.
        num_kept: How many of the latest are kept beside the best.
    """

    def __init__(self, folder: Path, num_kept: int) -> None:
        self._folder, self._num_kept = folder, num_kept

    def save(self, state: dict[str, Any], step: int, is_best: bool = False) -> None:
        """Write a checkpoint, and remove those that are too old.

        One of this step that is there already stays as it is: a kill while it is replaced could cost the only one.

        Args:
            state: To write.
            step: Of it.
            is_best: It replaces the best one too; that goes when the new one is whole.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        digest = hashlib.sha256(content).hexdigest()
        # The best one first, and all old ones last: a kill in between leaves the best of the step that is restored.
        kinds: tuple[Kind, ...] = ("best", "step") if is_best else ("step",)
        for kind in kinds:
            name = _name(kind, step)
            if kind == "step" and name in self._names("step"):
                continue
            with atomic_file(self._folder / f"{name}.pt") as file:
                file.write(content)
            write_json(self._folder / f"{name}.json", {"step": step, "num_bytes": len(content), "sha256": digest})
        for old in (*self._names("step")[: -self._num_kept], *self._names("best")[:-1]):
            self._remove(old)

    def load_latest(self) -> dict[str, Any] | None:
        """Return the newest whole checkpoint's state on the CPU, or None if there is none.

        Warns of every torn or tampered checkpoint that it passes over.
        """
        return self._newest_whole("step")

    def load_best(self) -> dict[str, Any] | None:
        """Return the best checkpoint's state on the CPU, or None if there is none; warns as `load_latest` does."""
        return self._newest_whole("best")

    def load(self, step: int) -> dict[str, Any] | None:
        """Return the state of a step's checkpoint on the CPU; None, with a warning, if it is not there or not whole."""
        return self._read(_name("step", step))

    def latest_step(self) -> int:
        """Return the step of the newest whole checkpoint, or 0 if there is none; warns as `load_latest` does."""
        whole = (name for name in reversed(self._names("step")) if self._read_content(name) is not None)
        return int(next(whole, _name("step", 0)).removeprefix("step-"))

    def remove_leftovers(self, step: int) -> None:
        """Remove what a killed run left half-written, and all that is newer than the checkpoint it goes on from.

        That is torn, or it is of steps that are rolled back. Only for the one process that writes here.
        """
        remove_temporary_files(self._folder)
        for kind in get_args(Kind):
            hashed = self._names(kind)
            for name in {*hashed, *self._names(kind, "pt")}:
                if name > _name(kind, step) or name not in hashed:
                    self._remove(name)

    def _names(self, kind: Kind, extension: str = "json") -> list[str]:
        """Return the names that `_name` has made, of files with an extension; others in the folder are somebody's."""
        pattern = re.compile(rf"({kind}-\d{{8,}})\.{extension}")
        matches = (pattern.fullmatch(name) for name in names_in(self._folder))
        return [match[1] for match in matches if match]

    def _newest_whole(self, kind: Kind) -> dict[str, Any] | None:
        for name in reversed(self._names(kind)):
            state = self._read(name)
            if state is not None:
                return state
        return None

    def _read(self, name: str) -> dict[str, Any] | None:
        """Return a checkpoint's state, or None, with a warning, if it is not whole."""
        content = self._read_content(name)
        if content is None:
            return None
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch refuses what could run code
            warnings.warn(
                f"checkpoint {self._folder / name} was not written by this program and is passed over: {error}",
                stacklevel=4,
            )
            return None
        return state

    def _read_content(self, name: str) -> bytes | None:
        """Return the bytes of a checkpoint, or None, with a warning, if they are not those that were written."""
        try:
            expected = json.loads((self._folder / f"{name}.json").read_text())["sha256"]
            content = (self._folder / f"{name}.pt").read_bytes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            if is_out_of_reach(error):
                raise  # it may be whole, and those that are passed over are removed
            warnings.warn(f"checkpoint {self._folder / name} can't be read and is passed over: {error}", stacklevel=4)
            return None
        if hashlib.sha256(content).hexdigest() != expected:
            warnings.warn(f"checkpoint {self._folder / name} is torn or was changed; it is passed over", stacklevel=4)
            return None
        return content

    def _remove(self, name: str) -> None:
        # The hash first: a weights file without it counts for nothing.
        (self._folder / f"{name}.json").unlink(missing_ok=True)
        (self._folder / f"{name}.pt").unlink(missing_ok=True)


def _name(kind: Kind, step: int) -> str:
    return f"{kind}-{step:08d}"
