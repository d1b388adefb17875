"""What a person sees of a run while it trains: a status line, and what happens to the run.

On a terminal the status is one line, which is renewed. Elsewhere, as in the log of a job, it is a new line every ten
seconds, later every minute. Evaluations, resumes, warnings and the like are lines of their own.
"""

import datetime
import shutil
import sys
from collections import deque

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
            eta = datetime.timedelta(seconds=round(line.eta_seconds))
            return (
                f"{step}  epoch {line.epoch:.2f}  loss {line.loss:.4f}  top-1 {line.top1:6.2%}  "
                f"{line.images_per_second:,.0f} img/s  ETA {eta}"
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


class Terminal:
    """Shows the lines of a run's log on standard output.

    After the first steps, it says how long the run will take if that is more than ten minutes. It says once that the
    loader holds up the run, and again only if that had passed.

    Args:
        total_steps: Length of the run in steps.
        advice: What would shorten a long run, for the message.
        bench: Command that measures the stages of the loader.
    """

    def __init__(self, total_steps: int, advice: str = "", bench: str = "python -m pipeline.bench") -> None:
        self._total_steps, self._advice, self._bench = total_steps, advice, bench
        self._out, self._is_renewed = sys.stdout, sys.stdout.isatty()
        self._num_lines = self._num_since_start = 0
        self._began: float | None = None
        self._shown = 0.0
        self._pending: Steps | None = None
        self._recent: deque[Steps] = deque()
        self._is_input_bound = False

    def see(self, line: Line) -> None:
        """Show a line of the log, if it is due."""
        if isinstance(line, Started):
            self._num_since_start, self._is_input_bound = 0, False
            self._recent.clear()
        if isinstance(line, Steps):
            self._see_steps(line)
        elif text := format_line(line, self._total_steps):
            self._write_line(text)
        self._out.flush()

    def close(self) -> None:
        """Show the latest steps, if they were not."""
        if self._pending is not None:
            self._write_line(self._status(self._pending))
            self._pending = None
        self._out.flush()

    def _see_steps(self, line: Steps) -> None:
        self._num_lines += 1
        self._num_since_start += 1
        self._began = line.time if self._began is None else self._began
        if self._num_since_start > _FIRST_LINES:  # the first ones wait for a loader that has only begun
            self._recent.append(line)
            while self._recent[0].time < line.time - _WINDOW_SECONDS:
                self._recent.popleft()
        self._judge()
        self._pending = line
        if self._is_renewed:
            width = shutil.get_terminal_size().columns
            self._out.write(_CLEAR + self._status(line)[: width - 1])
        elif self._is_due(line):
            self._write_line(self._status(line))
            self._shown, self._pending = line.time, None
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

    def _status(self, line: Steps) -> str:
        verdict = f"  input-bound: data wait {data_wait_share(self._recent):.0%}" if self._is_input_bound else ""
        return f"{format_line(line, self._total_steps)}{verdict}"

    def _write_line(self, text: str) -> None:
        self._out.write(f"{_CLEAR * self._is_renewed}{text}\n")
