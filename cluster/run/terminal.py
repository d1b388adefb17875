"""What a person sees of a run while it trains: a status line, and what happens to the run.

On a terminal the status is one line, which is renewed. Elsewhere, as in the log of a job, it is a new line every ten
seconds, later every minute. Evaluations, resumes, warnings and the like are lines of their own.
"""

import datetime
import shutil
import sys
import threading
from collections import deque
from types import TracebackType
from typing import Any, TextIO

from cluster.run.run_log import (
    Aligned,
    Evaluated,
    ExchangeChosen,
    Line,
    Resumed,
    Stalled,
    Started,
    Steps,
    Stopped,
    Warned,
)
from cluster.run.verdict import BINDING_WAIT, data_wait_share

_FIRST_LINES = 4  # lines of steps after a start: by then about ten steps have been made and the pace is known
_LONG_SECONDS = 600.0
_LEAST_SECONDS, _MOST_SECONDS, _SHARE = 10.0, 60.0, 1 / 60  # between two lines of steps: a share of the time so far
_WINDOW_SECONDS = 30.0  # of the log's latest lines, by which the verdict is found
_CLEAR = "\r\x1b[K"


def format_line(line: Line, total_steps: int) -> str | None:
    """Return a line of the log in words, or None if there is nothing to show."""
    step = f"step {getattr(line, 'step', 0):>{len(str(total_steps))}}/{total_steps}"
    match line:
        case Steps():
            return _status(line, total_steps)
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


def _status(line: Steps, total_steps: int, verdict: str = "", width: int | None = None) -> str:
    """Return the state of a run in words; what matters least is left out where the line would be too wide."""
    eta = datetime.timedelta(seconds=round(line.eta_seconds))
    fields = {
        "step": f"step {line.step:>{len(str(total_steps))}}/{total_steps}",
        "epoch": f"epoch {line.epoch:.2f}",
        "loss": f"loss {line.loss:.4f}",
        "top1": f"top-1 {line.top1:6.2%}",
        "rate": f"{line.images_per_second:,.0f} img/s",
        "eta": f"ETA {eta}",
        "verdict": verdict,
    }
    for dropped in (None, "epoch", "top1", "loss"):
        fields.pop(dropped or "", None)
        text = "  ".join(filter(None, fields.values()))
        if width is None or len(text) <= width:
            return text
    return text[:width]


class Terminal:
    """Shows the lines of a run's log on standard output while the block runs.

    After the first steps, it says how long the run will take if that is more than ten minutes. It says that the loader
    holds up the run, once after each start of the workers, and again only if that had passed.

    Args:
        total_steps: Length of the run in steps.
        advice: What would shorten a long run, for the message.
        bench: Command that measures the stages of the loader.
    """

    def __init__(self, total_steps: int, advice: str = "", bench: str = "python -m pipeline.bench") -> None:
        self._total_steps, self._advice, self._bench = total_steps, advice, bench
        self._out: TextIO = sys.stdout
        self._is_renewed, self._is_drawn = sys.stdout.isatty(), False
        self._streams = sys.stdout, sys.stderr
        self._lock = threading.RLock()
        self._num_lines = self._num_since_start = 0
        self._began: float | None = None
        self._shown = 0.0
        self._pending: Steps | None = None  # not shown, or in the line that is renewed
        self._recent: deque[Steps] = deque()
        self._is_input_bound = False

    def __enter__(self) -> "Terminal":
        """Let what others write to a terminal begin on a line of its own."""
        if self._is_renewed:
            sys.stdout = _Beside(self, sys.stdout)
            if sys.stderr.isatty():
                sys.stderr = _Beside(self, sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show the latest steps, if they were not."""
        if self._is_renewed:
            sys.stdout, sys.stderr = self._streams
        with self._lock:
            self._show_pending()
            self._out.flush()

    def see(self, line: Line) -> None:
        """Show a line of the log, if it is due."""
        with self._lock:
            if isinstance(line, Started):
                self._num_since_start, self._is_input_bound = 0, False
                self._recent.clear()
            if isinstance(line, Started | Resumed):
                self.clear()
                self._pending = None  # steps that are rolled back
            if isinstance(line, Steps):
                self._see_steps(line)
            elif text := format_line(line, self._total_steps):
                self._show_pending()
                self._write_line(text)
            self._out.flush()

    def clear(self) -> None:
        """Remove the line that is renewed, for others to write; the next steps bring it back."""
        with self._lock:
            if self._is_drawn:
                self._out.write(_CLEAR)
                self._out.flush()
                self._is_drawn = False

    def _see_steps(self, line: Steps) -> None:
        self._num_lines += 1
        self._num_since_start += 1
        self._began = line.time if self._began is None else self._began
        if self._num_since_start > _FIRST_LINES:  # the first ones wait for a loader that has only begun
            self._recent.append(line)
            while len(self._recent) > _FIRST_LINES and self._recent[0].time < line.time - _WINDOW_SECONDS:
                self._recent.popleft()
        self._judge()
        self._pending = line
        if self._is_renewed:
            width = shutil.get_terminal_size().columns - 1
            self.clear()
            self._out.write(_status(line, self._total_steps, self._verdict(), width))
            self._is_drawn = True
        elif self._is_due(line):
            self._show_pending()
        if self._num_lines == _FIRST_LINES and line.eta_seconds > _LONG_SECONDS:
            expected = datetime.timedelta(seconds=round(line.eta_seconds))
            advice = f"; shorter with {self._advice}" if self._advice else ""
            self._write_line(f"at this pace the run needs another {expected}{advice}")

    def _is_due(self, line: Steps) -> bool:
        assert self._began is not None
        pause = min(_MOST_SECONDS, max(_LEAST_SECONDS, _SHARE * (line.time - self._began)))
        is_first, is_last = self._num_since_start <= _FIRST_LINES, line.step == self._total_steps
        return is_first or is_last or line.time - self._shown >= pause

    def _judge(self) -> None:
        """Find out whether the run waits for its loader, and say so if that is new."""
        share = data_wait_share(self._recent)
        if self._is_input_bound:
            self._is_input_bound = share > BINDING_WAIT / 2  # a share about the limit is not announced again and again
        elif len(self._recent) >= _FIRST_LINES and share > BINDING_WAIT:
            self._is_input_bound = True
            self._write_line(
                f"input-bound: {share:.0%} of the step waits for data; `{self._bench}` says which stage holds it up"
            )

    def _verdict(self) -> str:
        return f"input-bound: data wait {data_wait_share(self._recent):.0%}" if self._is_input_bound else ""

    def _show_pending(self) -> None:
        """Write the latest steps as a line that stays, unless they were."""
        if self._pending is not None:
            self._write_line(_status(self._pending, self._total_steps, self._verdict()))
            self._shown, self._pending = self._pending.time, None

    def _write_line(self, text: str) -> None:
        self.clear()
        self._out.write(text + "\n")


class _Beside:
    """A stream to the terminal on which a line is renewed: it makes way for what is written."""

    def __init__(self, terminal: Terminal, stream: TextIO) -> None:
        self._terminal, self._stream = terminal, stream

    def write(self, text: str) -> int:
        self._terminal.clear()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
