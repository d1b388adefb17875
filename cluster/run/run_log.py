"""A run's numbers: one JSON line each in `metrics.jsonl`, and the progress that a person follows.

The first worker writes; whoever wants to watch reads the file. Ray carries no metrics (its reports are barriers, and it
keeps none of them). Each line has its `time`, in seconds since 1970.

    {"kind": "start", "step": 500, "world_size": 2}      workers begin, here after a checkpoint of step 500
    {"kind": "step", "step": 120, "samples_seen": 11520, "epoch": 0.2, "loss": .., "top1": .., "learning_rate": ..,
     "images_per_second": .., "data_wait_fraction": .., "eta_seconds": .., "losses": [one a step since the last line]}
    {"kind": "evaluation", "step": 594, "split": "val", "num_samples": 3000, "loss": .., "top1": .., "top5": ..}
      again for the same step where a run was stopped amid an evaluation and then lost before its next checkpoint
    {"kind": "plateau", "step": 1188, "num_reductions": 1, "is_over": false}      the schedule `plateau` met a stall
    {"kind": "warning", "message": ".."}
    {"kind": "resume", "step": 500, "num_rolled_back": 7}      lines of later steps before this one were rolled back
    {"kind": "stop", "step": 620}        the workers were asked to stop, and did, at a checkpoint
"""

import datetime
import json
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

_POLL_SECONDS = 0.2
_LINES_BEFORE_ADVICE = 4  # of steps since a start: by then some ten steps have been made, and the pace is known
_LONG_SECONDS = 600.0


def format_line(entry: dict[str, Any], total_steps: int) -> str | None:
    """Return one line for a person, or None for an entry that needs none."""
    step = f"step {entry.get('step', 0):>{len(str(total_steps))}}/{total_steps}"
    if entry["kind"] == "step":
        eta = datetime.timedelta(seconds=round(entry["eta_seconds"]))
        return (
            f"{step}  epoch {entry['epoch']:.2f}  loss {entry['loss']:.4f}  top-1 {entry['top1']:6.2%}  "
            f"{entry['images_per_second']:,.0f} img/s  data wait {entry['data_wait_fraction']:.0%}  ETA {eta}"
        )
    if entry["kind"] == "evaluation":
        return (
            f"{step}  {entry['split']}: loss {entry['loss']:.4f}  top-1 {entry['top1']:.2%}  "
            f"top-5 {entry['top5']:.2%}  n={entry['num_samples']}"
        )
    if entry["kind"] == "plateau":
        effect = "training ends" if entry["is_over"] else f"learning rate reduced ({entry['num_reductions']})"
        return f"{step}  the error on val no longer falls: {effect}"
    if entry["kind"] == "warning":
        return f"warning: {entry['message']}"
    if entry["kind"] == "resume":
        return f"{step}  resumed from a checkpoint"
    if entry["kind"] == "stop":
        return f"{step}  stopped at a checkpoint"
    return None


class Follower:
    """Prints a growing log's new entries from a thread, while the block runs.

    After the first steps it says how long the run will take, if that is more than ten minutes.

    Args:
        path: Of the log; entries that are there already are not shown.
        total_steps: The run's length.
        advice: What would shorten a run that takes long.
    """

    def __init__(self, path: Path, total_steps: int, advice: str = "") -> None:
        self._path, self._total_steps, self._advice = path, total_steps, advice
        self._num_step_lines = 0
        self._position = path.stat().st_size if path.exists() else 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Follower":
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show what is left and end."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(_POLL_SECONDS)
            self._show_new()

    def _show_new(self) -> None:
        try:
            with open(self._path, "rb") as file:
                file.seek(self._position)
                content = file.read()
        except OSError:  # not there yet, or a shared file system is out of reach for a moment
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # torn by a kill
            for text in (format_line(entry, self._total_steps), self._expected_time(entry)):
                if text:
                    sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def _expected_time(self, entry: dict[str, Any]) -> str | None:
        """Return, once, a line that says how long the run will take, if that is long."""
        self._num_step_lines += entry["kind"] == "step"
        is_time = entry["kind"] == "step" and self._num_step_lines == _LINES_BEFORE_ADVICE
        if not is_time or entry["eta_seconds"] <= _LONG_SECONDS:
            return None
        expected = datetime.timedelta(seconds=round(entry["eta_seconds"]))
        advice = f"; shorter with {self._advice}" if self._advice else ""
        return f"at this pace the run needs another {expected}{advice}"
