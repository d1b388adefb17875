"""What is noted of the steps: a line of the run's log for several of them, and each one's sample ids in the ledger.

A rank knows its own samples alone. So the steps since the last line are kept, and joined over the ranks when a line is
due.
"""

import math
import time
from collections import deque

import numpy as np
import torch

from cluster.run.ledger_files import Ledger
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import RunLog, Steps, Warned
from cluster.worker.world import World
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.loader import Batch, TrainLoader
from pipeline.online.synthetic_loader import SyntheticLoader

_STUCK = 0.01  # of the loss of a guess
_NUM_JUDGED = 20  # steps in a row whose mean loss is judged
_SEEN = 1 << 48  # added to a sample id by each rank that had it; ids are smaller


class StepLog:
    """The steps of one worker since the last line.

    Args:
        run: Its recipe.
        dataset: Trained on.
        world: Of this worker.
        loader: Whose waiting times are told.
        log: Of the run; None on all workers but the first.
        ledger: Of the run; None on all workers but the first.
        total_steps: The run's length.
    """

    def __init__(
        self,
        run: RunFolder,
        dataset: Dataset,
        world: World,
        loader: TrainLoader | SyntheticLoader,
        log: RunLog | None,
        ledger: Ledger | None,
        total_steps: int,
    ) -> None:
        self._config, self._dataset, self._world, self._total_steps = run.config, dataset, world, total_steps
        self._loader, self._log, self._ledger = loader, log, ledger
        # Each step's mean loss and fraction of correct samples, and its sample ids at their places in the global
        # batch, as far as this rank knows.
        self._sums: list[torch.Tensor] = []
        self._ids_G: list[torch.Tensor] = []
        self._last_losses: deque[float] = deque(maxlen=_NUM_JUDGED)
        self._began, self._waited_before, self._replaced_before = time.perf_counter(), 0.0, 0

    def __bool__(self) -> bool:
        """Return whether there are steps that no line tells of."""
        return bool(self._sums)

    def add(self, batch: Batch, samples_seen: int, sums_2: torch.Tensor) -> None:
        """Keep a step.

        Args:
            batch: This rank's, that has just entered the loss.
            samples_seen: Before the step.
            sums_2: This rank's sum of losses and number of correct samples, float64.
        """
        global_batch_size = self._config.global_batch_size
        ids_G = torch.zeros(global_batch_size, dtype=torch.int64)
        ids_G[batch.positions.cpu() - samples_seen] = batch.sample_ids.cpu() + _SEEN
        self._ids_G.append(ids_G)
        self._sums.append(sums_2 / global_batch_size)

    def leave_out(self, seconds: float) -> None:
        """Take time that was not spent on training out of the speed of the next line."""
        self._began += seconds

    def write_line(self, step: int, learning_rate: float) -> None:
        """Log the steps since the last line, the latest being `step`; every worker calls it. Sums are exact per step.

        Raises:
            InputError: The training diverged, or does not learn.
            RuntimeError: A place in a global batch was not taken by exactly one rank.
        """
        losses, top1s = self._world.sum(torch.stack(self._sums).cpu()).unbind(1)
        ids_SG = self._world.sum(torch.stack(self._ids_G)).numpy()
        num_steps = len(losses)
        self._sums.clear()
        self._ids_G.clear()
        if (ids_SG // _SEEN != 1).any():
            raise RuntimeError(
                f"a sample of steps {step - num_steps + 1} to {step} was not taken by exactly one worker"
            )
        if self._ledger is not None:
            first_step = step - num_steps + 1
            self._ledger.append(first_step, np.remainder(ids_SG, _SEEN), self._world.world_size)
        self._check_learning(step, losses)
        now, waited = time.perf_counter(), self._loader.data_wait_seconds
        seconds, waited_seconds = now - self._began, waited - self._waited_before
        self._began, self._waited_before = now, waited
        if self._log is None:
            return
        if self._loader.num_replaced_samples > self._replaced_before:
            self._replaced_before = self._loader.num_replaced_samples
            message = f"{self._replaced_before} reads met a changed sample and took another; see pipeline.verify"
            self._log.write(Warned(message=message))
        seen = step * self._config.global_batch_size
        self._log.write(
            Steps(
                step=step,
                samples_seen=seen,
                epoch=seen / self._dataset.num_samples("train"),
                loss=losses.mean().item(),
                top1=top1s.mean().item(),
                learning_rate=learning_rate,
                images_per_second=num_steps * self._config.global_batch_size / seconds,
                data_wait_fraction=waited_seconds / seconds,
                eta_seconds=seconds / num_steps * (self._total_steps - step),
                losses=losses.tolist(),
            )
        )

    def _check_learning(self, step: int, losses: torch.Tensor) -> None:
        """Stop a run whose loss became NaN or infinite, or is still that of a guess among all classes."""
        config, guess = self._config, math.log(self._dataset.num_classes)
        if not bool(losses.isfinite().all()):
            raise InputError(
                f"the loss became NaN or infinite at step {step}; lower the rate: --optimizer.learning-rate "
                f"(now {config.optimizer.learning_rate:g})"
            )
        self._last_losses.extend(losses.tolist())
        loss = sum(self._last_losses) / len(self._last_losses)
        epoch = step * config.global_batch_size / self._dataset.num_samples("train")
        if config.synthetic_data or epoch < config.stuck_after_epochs or len(self._last_losses) < _NUM_JUDGED:
            return
        if guess == 0 or abs(loss - guess) > _STUCK * guess:  # of one class a guess is all there is to learn
            return
        raise InputError(
            f"the loss is {loss:.4f} after {epoch:.1f} epochs, that of a guess, ln {self._dataset.num_classes} = "
            f"{guess:.4f}: nothing is learnt. Try another rate (--optimizer.learning-rate, now "
            f"{config.optimizer.learning_rate:g}), other starting biases (--model.initial-bias 0.1) or weights "
            f"(--model.initialization kaiming), and see with pipeline.preview whether the labels fit the pictures"
        )
