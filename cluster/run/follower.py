"""Progress for a person to follow: the lines of a run's `metrics.jsonl`, in words, as they are written."""

import datetime
import sys
import threading
from pathlib import Path
from types import TracebackType

from cluster.run.run_log import (
    Aligned,
    Evaluated,
    ExchangeChosen,
    Line,
    Resumed,
    Stalled,
    Steps,
    Stopped,
    Warned,
    parse_metrics_line,
)

_POLL_SECONDS = 0.2
_LINES_BEFORE_ADVICE = 4  # lines of steps since a start: by then about ten steps have been made and the pace is known
_LONG_SECONDS = 600.0


def format_line(line: Line, total_steps: int) -> str | None:
    """Return a line of the log in words, or None if there is nothing to show."""
    step = f"step {getattr(line, 'step', 0):>{len(str(total_steps))}}/{total_steps}"
    match line:
        case Steps():
            eta = datetime.timedelta(seconds=round(line.eta_seconds))
            return (
                f"{step}  epoch {line.epoch:.2f}  loss {line.loss:.4f}  top-1 {line.top1:6.2%}  "
                f"{line.images_per_second:,.0f} img/s  data wait {line.data_wait_fraction:.0%}  ETA {eta}"
            )
        case ExchangeChosen():
            others = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in line.step_seconds.items())
            return (
                f"gradients by {line.exchange}: predicted step {others}, on a link of "
                f"{line.bytes_per_second * 8e-9:.3g} Gbit/s and {line.latency_seconds * 1e3:.2g} ms"
            )
        case Evaluated():
            return (
                f"{step}  {line.split}: loss {line.loss:.4f}  top-1 {line.top1:.2%}  top-5 {line.top5:.2%}  "
                f"n={line.num_samples}"
            )
        case Stalled():
            effect = "training ends" if line.is_over else f"learning rate reduced ({line.num_reductions})"
            return f"{step}  the error on val no longer falls: {effect}"
        case Warned():
            return f"warning: {line.message}"
        case Aligned():
            return (
                f"{step}  the workers' weights had drifted apart by rounding ({line.num_tensors} tensors, by up to "
                f"{line.largest:.1e}): all took the first worker's"
            )
        case Resumed():
            return f"{step}  resumed from a checkpoint"
        case Stopped():
            return f"{step}  stopped at a checkpoint"
    return None


class Follower:
    """Prints new lines of a growing log from a thread while the block runs.

    After the first steps, it says how long the run will take if that is more than ten minutes.

    Args:
        path: Path of the log; lines that exist already are not shown.
        total_steps: Length of the run in steps.
        advice: What would shorten a long run, for the message.
    """

    def __init__(self, path: Path, total_steps: int, advice: str = "") -> None:
        self._path, self._total_steps, self._advice = path, total_steps, advice
        self._num_step_lines = 0
        self._position = path.stat().st_size if path.exists() else 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Follower":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the remaining lines and end the thread."""
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
        except OSError:  # the file does not exist yet, or a shared file system is out of reach for a moment
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        for text in whole.splitlines():
            line = parse_metrics_line(text)
            if line is None:  # torn by a kill
                continue
            for shown in (format_line(line, self._total_steps), self._expected_time(line)):
                if shown:
                    sys.stdout.write(shown + "\n")
        sys.stdout.flush()

    def _expected_time(self, line: Line) -> str | None:
        """Return a line that says how long the run will take, once, if that is long."""
        if not isinstance(line, Steps):
            return None
        self._num_step_lines += 1
        if self._num_step_lines != _LINES_BEFORE_ADVICE or line.eta_seconds <= _LONG_SECONDS:
            return None
        expected = datetime.timedelta(seconds=round(line.eta_seconds))
        advice = f"; shorter with {self._advice}" if self._advice else ""
        return f"at this pace the run needs another {expected}{advice}"
