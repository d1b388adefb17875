"""Checkpoints: atomic, hashed, and verified when loaded. A launcher's own checkpoints are not used.

`step-00000120.pt` holds weights, optimiser and counters. `step-00000120.json`, written after it, holds its SHA-256. A
checkpoint with no hash, or whose bytes differ, counts as torn, and the one before is used. `best-*` is the best
checkpoint by its error on `val`.
"""

import hashlib
import io
import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.system.files import atomic_file, names_in, remove_temporary_files, write_json
from pipeline.system.os_errors import is_out_of_reach

Kind = Literal["step", "best"]


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: Folder of the checkpoints.
        num_kept: Number of latest checkpoints to keep, in addition to the best.
    """

    def __init__(self, folder: Path, num_kept: int) -> None:
        self._folder, self._num_kept = folder, num_kept

    def save(self, state: dict[str, Any], step: int, is_best: bool = False) -> None:
        """Write a checkpoint, and remove those that are too old.

        An existing checkpoint of this step is left as it is, since a kill during its replacement could destroy the only
        one.

        Args:
            state: State to write.
            step: Step of the state.
            is_best: True if it also replaces the best one, which is removed once the new one is complete.
        """
        import torch  # here, and in `_read`: whoever only looks at a run does without

        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        digest = hashlib.sha256(content).hexdigest()
        # The best one is written first, and old ones are removed last: after a kill in between, the best checkpoint as
        # of the restored step is still there.
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
        """Return the state of the newest intact checkpoint, on the CPU, or None if there is none.

        Warns of every torn or modified checkpoint that is skipped.
        """
        return self._newest_whole("step")

    def load_best(self) -> dict[str, Any] | None:
        """Return the best checkpoint's state, on the CPU, or None if there is none; warns like `load_latest`."""
        return self._newest_whole("best")

    def load(self, step: int) -> dict[str, Any] | None:
        """Return the state of a step's checkpoint, on the CPU, or None, with a warning, if it is missing or torn."""
        return self._read(_name("step", step))

    def is_empty(self) -> bool:
        """Return whether there is no checkpoint, intact or not."""
        return not any(self._names(kind) for kind in get_args(Kind))

    def latest_step(self) -> int:
        """Return the step of the newest intact checkpoint, or 0 if there is none; warns like `load_latest`."""
        whole = (name for name in reversed(self._names("step")) if self._read_content(name) is not None)
        return int(next(whole, _name("step", 0)).removeprefix("step-"))

    def remove_leftovers(self, step: int) -> None:
        """Remove unfinished files of a killed run, and all checkpoints newer than the one it resumes from.

        Newer ones are torn, or belong to steps that are rolled back. Call this only in the process that writes here.

        Args:
            step: Step of the checkpoint that the run resumes from.
        """
        remove_temporary_files(self._folder)
        for kind in get_args(Kind):
            hashed = self._names(kind)
            for name in {*hashed, *self._names(kind, "pt")}:
                if name > _name(kind, step) or name not in hashed:
                    self._remove(name)

    def _names(self, kind: Kind, extension: str = "json") -> list[str]:
        """Return the names made by `_name` of the files with an extension; other files in the folder are not ours."""
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
        """Return a checkpoint's state, or None, with a warning, if it is not intact."""
        import torch

        content = self._read_content(name)
        if content is None:
            return None
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch refuses content that could run code
            warnings.warn(
                f"checkpoint {self._folder / name} was not written by this program and is skipped: {error}",
                stacklevel=4,
            )
            return None
        return state

    def _read_content(self, name: str) -> bytes | None:
        """Return the bytes of a checkpoint, or None, with a warning, if they differ from what was written."""
        try:
            expected = json.loads((self._folder / f"{name}.json").read_text())["sha256"]
            content = (self._folder / f"{name}.pt").read_bytes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            if is_out_of_reach(error):
                raise  # it may be intact, and skipped checkpoints are removed later
            warnings.warn(f"checkpoint {self._folder / name} can't be read and is skipped: {error}", stacklevel=4)
            return None
        if hashlib.sha256(content).hexdigest() != expected:
            warnings.warn(f"checkpoint {self._folder / name} is torn or was modified; it is skipped", stacklevel=4)
            return None
        return content

    def _remove(self, name: str) -> None:
        # The hash first: without it, the weights file no longer counts.
        (self._folder / f"{name}.json").unlink(missing_ok=True)
        (self._folder / f"{name}.pt").unlink(missing_ok=True)


def _name(kind: Kind, step: int) -> str:
    return f"{kind}-{step:08d}"
