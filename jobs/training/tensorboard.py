"""Writes a run's log as TensorBoard events, for `--tensorboard`.

The log is the truth: each launch writes the events of the whole run anew, so that nothing is missing or doubled after a
kill, and steps that are rolled back vanish here too.
"""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.run.run_log import Evaluated, Line, Resumed, Started, Steps
from pipeline.command import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_EVENTS = "events.out.tfevents.*"
_FLUSH_SECONDS = 5


class TensorBoard:
    """Events of a run. Steps are the x-axis; times are those of the log.

    Args:
        folder: Folder of the events; those of earlier launches are removed.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        check_tensorboard()
        self._folder = folder
        for old in self._folder.glob(_EVENTS):
            old.unlink(missing_ok=True)
        self._writer: SummaryWriter | None = self._open(0)

    @property
    def command(self) -> str:
        """Command that shows the events."""
        return shlex.join(["tensorboard", "--logdir", str(self._folder)])

    def see(self, line: Line) -> None:
        """Write the numbers of a line. If they can't be written, one warning says so, and the run goes on."""
        if self._writer is None:
            return
        try:
            self._write(self._writer, line)
        except OSError as error:
            self._writer = None
            sys.stderr.write(f"warning: no more events for TensorBoard: {self._folder} can't be written ({error})\n")

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
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
                scalars = {"speed/workers": float(line.world_size)}
            case Resumed():
                writer.close()
                self._writer = self._open(line.step + 1)
                return
            case _:
                return
        for name, value in scalars.items():
            writer.add_scalar(name, value, line.step, walltime=line.time)

    def _open(self, purge_step: int) -> "SummaryWriter":
        """Begin a file of events; TensorBoard forgets those of `purge_step` and later in older files."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=purge_step, flush_secs=_FLUSH_SECONDS)


def check_tensorboard() -> None:
    """Raise InputError if TensorBoard is not installed."""
    try:
        import tensorboard  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            "--tensorboard needs the package tensorboard: pip install 'alexnet-at-scale[tensorboard]'"
        ) from error
