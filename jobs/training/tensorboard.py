"""Writes a run's log as TensorBoard events, for `--tensorboard`.

The log is the truth: each launch writes the events of the whole run anew, so that nothing is missing or doubled after a
kill, and steps that are rolled back vanish here too.
"""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Evaluated, Line, Started, Steps
from pipeline.command import InputError
from pipeline.dataset import Dataset

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_EVENTS = "events.out.tfevents.*"
_FLUSH_SECONDS = 5
_NUM_SAMPLES = 8  # whose pictures are shown


class TensorBoard:
    """Events of a run. Steps are the x-axis; times are those of the log.

    Pictures are the first training samples as the network sees them and, after each evaluation, the filters of the
    first convolution in the newest checkpoint. If something can't be written, one warning says so, and the run goes on.

    Args:
        run: The run; events of its earlier launches are removed.
        dataset: Dataset of the run.
    """

    def __init__(self, run: RunFolder, dataset: Dataset) -> None:
        self._run, self._folder = run, run.tensorboard_path
        self._drawn_step: int | None = None  # of the filters
        self._writer: SummaryWriter | None = None
        self._last_step = 0
        with self._guarded():
            self._writer = _open(self._folder)
            self._draw_samples(self._writer, dataset)

    @property
    def command(self) -> str:
        """Command that shows the events."""
        return shlex.join(["tensorboard", "--logdir", str(self._folder)])

    def see(self, line: Line) -> None:
        """Write the numbers of a line."""
        with self._guarded():
            if self._writer is not None:
                self._write(self._writer, line)

    def close(self) -> None:
        """Write what is left."""
        with self._guarded():
            if self._writer is not None:
                self._draw_filters(self._writer)
                self._writer.close()

    def _write(self, writer: "SummaryWriter", line: Line) -> None:
        match line:
            case Steps():
                scalars = {
                    "train/loss": line.loss,
                    "train/top1": line.top1,
                    "train/learning_rate": line.learning_rate,
                    "speed/images_per_second": line.images_per_second,
                    "speed/data_wait_fraction": line.data_wait_fraction,
                }
            case Evaluated():
                scalars = {f"{line.split}/{name}": getattr(line, name) for name in ("loss", "top1", "top5")}
            case Started():
                if self._last_step > line.step:
                    _forget_from(writer, line.step + 1)
                scalars = {"speed/workers": float(line.world_size)}
            case _:
                return
        self._last_step = line.step
        if isinstance(line, Evaluated):
            self._draw_filters(writer)
        for name, value in scalars.items():
            writer.add_scalar(name, value, line.step, walltime=line.time)

    def _draw_samples(self, writer: "SummaryWriter", dataset: Dataset) -> None:
        from jobs.reporting.pictures import first_samples

        crops_NHWC = np.concatenate([crops for _, crops in first_samples(dataset, self._run, _NUM_SAMPLES, 1)])
        writer.add_images("train/first_samples", crops_NHWC, 0, dataformats="NHWC")

    def _draw_filters(self, writer: "SummaryWriter") -> None:
        """Draw the filters of the newest checkpoint, unless they were."""
        from jobs.reporting.pictures import filter_pixels, first_convolution
        from model.registry import outline_network

        step = self._run.checkpoints.latest_step()
        if step is None or step == self._drawn_step:
            return
        self._drawn_step = step
        name = first_convolution(outline_network(self._run.config.model, num_classes=len(self._run.wnids)))
        state = self._run.checkpoints.load_latest()
        if name is not None and state is not None:
            pixels_NHWC = filter_pixels(state["model"][f"{name}.weight"], self._run)
            writer.add_images("model/first_filters", pixels_NHWC, state["step"], dataformats="NHWC")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn any error into a warning, once: file systems have errors of their own, through TensorFlow too."""
        try:
            yield
        except Exception as error:
            self._writer = None
            sys.stderr.write(f"warning: no more events for TensorBoard: {self._folder} can't be written ({error})\n")


def check_tensorboard() -> None:
    """Raise InputError if TensorBoard is not installed."""
    try:
        import tensorboard  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            "--tensorboard needs the package tensorboard: pip install 'alexnet-at-scale[tensorboard]'"
        ) from error


def _open(folder: Path) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob(_EVENTS):
        old.unlink(missing_ok=True)
    # TensorBoard forgets what it has read in files that are gone.
    return SummaryWriter(str(folder), purge_step=0, flush_secs=_FLUSH_SECONDS)


def _forget_from(writer: "SummaryWriter", step: int) -> None:
    """Let TensorBoard forget what was written for a step and later ones.

    In the same file: TensorBoard reads files by the order of their names, which is not that of their beginnings.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    file: Any = writer.file_writer  # torch's annotation says None
    file.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
