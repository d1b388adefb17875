"""Records of the training steps: a log line for several steps, and the sample ids of each step in the ledger.

A rank knows only its own samples. So the steps since the last line are kept, and combined over the ranks when a line is
due. On a GPU, which lags behind, a line waits for its losses until the next line is due, so that the GPU always has
work; the ledger knows its ids at once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Failed, RunLog, Steps, Warned
from cluster.worker.device_clock import DeviceClock, Moment
from cluster.worker.learning_check import LearningCheck
from cluster.worker.run_writer import RunWriter
from cluster.worker.step_parts import DATA_WAIT, Span, StepParts
from cluster.worker.world import World
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.loader import Batch, TrainLoader
from pipeline.online.synthetic_loader import SyntheticLoader

_SEEN = 1 << 48  # added to a sample id by each rank that had the sample; ids are smaller


@dataclass(frozen=True)
class _OpenLine:
    """A line whose losses may still be on their way from the device.

    Attributes:
        step: Latest step.
        learning_rate: Learning rate of the latest step.
        sums_S2: This rank's parts of each step's mean loss and of its fraction of correct samples; on the CPU once the
            device has reached `end`.
        begin: End of the line before.
        end: End of the latest step.
        left_out: Begin and end of each time between that does not count.
        spans: Times that the parts of the steps took.
    """

    step: int
    learning_rate: float
    sums_S2: torch.Tensor
    begin: Moment
    end: Moment
    left_out: list[tuple[Moment, Moment]]
    spans: list[Span]


class StepLog:
    """The steps of one worker since the last line.

    Args:
        run: Run to train.
        dataset: Training dataset.
        world: Place of this worker.
        loader: Loader whose replaced samples are logged.
        parts: Times that the parts of the steps take.
        clock: Clock of this worker's device.
        log: Log of the run; None on all workers but the first.
        writer: Writer of the run's ledger; None on all workers but the first.
        total_steps: Length of the run.
    """

    def __init__(
        self,
        run: RunFolder,
        dataset: Dataset,
        world: World,
        loader: TrainLoader | SyntheticLoader,
        parts: StepParts,
        clock: DeviceClock,
        log: RunLog | None,
        writer: RunWriter | None,
        total_steps: int,
    ) -> None:
        self._config, self._dataset, self._world, self._total_steps = run.config, dataset, world, total_steps
        self._loader, self._parts, self._clock, self._log, self._writer = loader, parts, clock, log, writer
        # For each step: this rank's part of the mean loss and of the fraction of correct samples, and this rank's
        # sample ids at their places in the global batch.
        self._sums: list[torch.Tensor] = []
        self._ids_G: list[torch.Tensor] = []
        self._check = LearningCheck(run.config, dataset)
        self._open_line: _OpenLine | None = None
        self._began, self._left_out = clock.mark(), list[tuple[Moment, Moment]]()
        self._replaced_before = 0

    def watch(self, batches: Iterable[Batch], samples_seen: int) -> Iterator[Batch]:
        """Yield this rank's micro-batches of a step, and keep their sample ids.

        Args:
            batches: Micro-batches of the step.
            samples_seen: Samples of all workers before the step.
        """
        ids_G = torch.zeros(self._config.global_batch_size, dtype=torch.int64)
        self._ids_G.append(ids_G)
        for batch in batches:
            ids_G[batch.positions - samples_seen] = batch.sample_ids + _SEEN
            yield batch

    def add(self, sums_2: torch.Tensor) -> None:
        """Keep the results of a step whose batches were watched.

        Args:
            sums_2: This rank's sum of losses and number of correct samples, float64, on the device.
        """
        self._sums.append(sums_2 / self._config.global_batch_size)

    def leave_out(self, begin: Moment, end: Moment) -> None:
        """Exclude time that was not spent on training from the speed of the next line."""
        self._left_out.append((begin, end))

    def write_line(self, step: int, learning_rate: float) -> None:
        """Log the steps since the last line, up to `step`; every worker calls this. Sums are exact per step.

        Where the device lags, the line itself is written by the next call of this or of `write_open_line`.

        Raises:
            InputError: The training diverged, nothing is learnt, or the ledger can't be written.
            RuntimeError: A place in a global batch was not taken by exactly one rank.
        """
        self._record_ids(step)
        sums_S2 = torch.stack(self._sums).to("cpu", non_blocking=True)
        end = self._clock.mark()
        line = _OpenLine(step, learning_rate, sums_S2, self._began, end, self._left_out, self._parts.take())
        self._sums.clear()
        self._began, self._left_out = end, []
        self.write_open_line()
        self._open_line = line
        if not self._clock.lags:
            self.write_open_line()

    def finish(self, step: int, learning_rate: float) -> None:
        """Log all steps up to `step`, waiting for the device if necessary; every worker calls this.

        Raises:
            InputError, RuntimeError: See `write_line`.
        """
        if self._sums:
            self.write_line(step, learning_rate)
        self.write_open_line()

    def _record_ids(self, step: int) -> None:
        """Combine the sample ids of the steps since the last line, and hand them to the ledger."""
        ids_SG = self._world.sum(torch.stack(self._ids_G)).numpy()
        self._ids_G.clear()
        first_step = step - len(ids_SG) + 1
        if (ids_SG // _SEEN != 1).any():
            raise RuntimeError(f"a sample of steps {first_step} to {step} was not taken by exactly one worker")
        if self._writer is not None:
            self._writer.append(first_step, np.remainder(ids_SG, _SEEN), self._world.world_size)

    def write_open_line(self) -> None:
        """Write the line that was begun last, if it is not written; every worker calls this.

        Raises:
            InputError: See `write_line`.
        """
        line, self._open_line = self._open_line, None
        if line is None:
            return
        self._clock.wait(line.end)
        losses, top1s = self._world.sum(line.sums_S2).unbind(1)
        try:
            self._check(line.step, losses)
        except InputError as error:
            if self._log is not None:
                self._log.write(Failed(step=line.step, message=str(error)))
            raise
        if self._log is None:
            return
        if self._loader.num_replaced_samples > self._replaced_before:
            self._replaced_before = self._loader.num_replaced_samples
            message = f"{self._replaced_before} reads met a changed sample and took another; see pipeline.verify"
            self._log.write(Warned(message=message))
        seconds = self._clock.seconds(line.begin, line.end)
        seconds -= sum(self._clock.seconds(begin, end) for begin, end in line.left_out)
        parts = self._parts.seconds(line.spans)
        seen, num_steps = line.step * self._config.global_batch_size, len(losses)
        self._log.write(
            Steps(
                step=line.step,
                samples_seen=seen,
                epoch=seen / self._dataset.num_samples("train"),
                loss=losses.mean().item(),
                top1=top1s.mean().item(),
                learning_rate=line.learning_rate,
                images_per_second=num_steps * self._config.global_batch_size / seconds,
                data_wait_fraction=parts[DATA_WAIT] / seconds,
                forward_fraction=parts["forward"] / seconds,
                backward_fraction=parts["backward"] / seconds,
                update_fraction=parts["update"] / seconds,
                eta_seconds=seconds / num_steps * (self._total_steps - line.step),
                losses=losses.tolist(),
            )
        )
