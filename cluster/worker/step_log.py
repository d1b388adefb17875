"""Records of the training steps: a log line for several steps, and the sample ids of each step in the ledger.

A rank knows only its own samples. So the steps since the last line are kept, and combined over the ranks when a line is
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

_STUCK = 0.01  # fraction of the loss of guessing
_NUM_JUDGED = 20  # number of latest steps whose mean loss is checked
_SEEN = 1 << 48  # added to a sample id by each rank that had the sample; ids are smaller


class StepLog:
    """The steps of one worker since the last line.

    Args:
        run: Run to train.
        dataset: Training dataset.
        world: Place of this worker.
        loader: Loader whose waiting times are logged.
        log: Log of the run; None on all workers but the first.
        ledger: Ledger of the run; None on all workers but the first.
        total_steps: Length of the run.
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
        # For each step: this rank's part of the mean loss and of the fraction of correct samples, and this rank's
        # sample ids at their places in the global batch.
        self._sums: list[torch.Tensor] = []
        self._ids_G: list[torch.Tensor] = []
        self._last_losses: deque[float] = deque(maxlen=_NUM_JUDGED)
        self._began, self._waited_before, self._replaced_before = time.perf_counter(), 0.0, 0

    def __bool__(self) -> bool:
        """Return whether there are steps that have not been logged."""
        return bool(self._sums)

    def add(self, batch: Batch, samples_seen: int, sums_2: torch.Tensor) -> None:
        """Keep a step.

        Args:
            batch: This rank's batch of the step.
            samples_seen: Samples of all workers before the step.
            sums_2: This rank's sum of losses and number of correct samples, float64.
        """
        global_batch_size = self._config.global_batch_size
        ids_G = torch.zeros(global_batch_size, dtype=torch.int64)
        ids_G[batch.positions.cpu() - samples_seen] = batch.sample_ids.cpu() + _SEEN
        self._ids_G.append(ids_G)
        self._sums.append(sums_2 / global_batch_size)

    def leave_out(self, seconds: float) -> None:
        """Exclude time that was not spent on training from the speed of the next line."""
        self._began += seconds

    def write_line(self, step: int, learning_rate: float) -> None:
        """Log the steps since the last line, up to `step`; every worker calls this. Sums are exact per step.

        Raises:
            InputError: The training diverged, or nothing is learnt.
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
        """Raise InputError if the loss became NaN or infinite, or is still that of guessing among all classes."""
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
        if guess == 0 or abs(loss - guess) > _STUCK * guess:  # with one class there is nothing to learn
            return
        raise InputError(
            f"the loss is {loss:.4f} after {epoch:.1f} epochs, that of a guess, ln {self._dataset.num_classes} = "
            f"{guess:.4f}: nothing is learnt. Try another rate (--optimizer.learning-rate, now "
            f"{config.optimizer.learning_rate:g}), other starting biases (--model.initial-bias 0.1) or weights "
            f"(--model.initialization kaiming), and see with pipeline.preview whether the labels fit the pictures"
        )
