"""The worker loop: the same under Ray Train, under torch.distributed, and in a single process.

A step depends only on (recipe, dataset, samples seen) and, with the schedule `plateau`, on the evaluations so far. Two
world sizes differ only in the order of floating-point sums. `learner.py` makes the step, with the gradients of all
workers (`cluster/exchange/`), and `step_log.py` records it.
"""

import contextlib
import dataclasses
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import torch

from cluster.exchange.base import Exchange, MakeExchange
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import (
    Aligned,
    DecodingChosen,
    Evaluated,
    Line,
    Resumed,
    RunLog,
    Stalled,
    Started,
    Stopped,
    Warned,
    read_metrics,
)
from cluster.worker.checkpoint_schedule import CheckpointSchedule
from cluster.worker.device_clock import Moment, clock_of
from cluster.worker.evaluation import evaluate, open_eval_loader
from cluster.worker.exchange_choice import ExchangeChooser
from cluster.worker.exchanges import EXACT, lossy_exchange
from cluster.worker.learner import Learner
from cluster.worker.options import WorkerOptions
from cluster.worker.progress import Progress
from cluster.worker.run_writer import RunWriter
from cluster.worker.step_log import StepLog
from cluster.worker.step_parts import StepParts
from cluster.worker.stopping import StopAgreement
from cluster.worker.world import World
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.loader import EvalLoader, TrainLoader
from pipeline.online.decoding_trial import Decoding, choose_decoding
from pipeline.online.order import RankShare
from pipeline.online.synthetic_loader import SyntheticLoader

_LINE_INTERVAL = 20
_FIRST_LINES = (1, 2, 5, 10)  # steps after a start that are logged, so that a person soon sees progress
_MOST_UNFINISHED_STEPS = 4  # by which the process runs ahead of a GPU: more than it ever needs to be given work
_LOCK_SECONDS = 120.0  # time for the previous launch's workers to end; the lock of a lost NFS client lasts 90 s


def train(
    dataset_path: Path,
    run_path: Path,
    world: World,
    options: WorkerOptions | None = None,
    make_exchange: MakeExchange | None = None,
) -> None:
    """Train the run in `run_path`, or continue to train it; every worker calls this.

    It returns when the run is finished, or at a checkpoint if the workers were asked to stop.

    Args:
        dataset_path: Path of the dataset folder on this worker.
        run_path: Path of the run folder, which contains `config.json`, on this worker.
        world: Place of this worker.
        options: Options of this launch; None: the defaults.
        make_exchange: Function that makes the exchange of gradients; None: the one that recipe and options name.
    """
    torch.set_num_threads(world.num_threads)
    run = RunFolder.open(run_path)
    if not world.agrees(run.digest):
        raise InputError(f"the workers see different files {run_path / 'config.json'}; is it a shared folder?")
    trainer = Trainer(Dataset.open(dataset_path), run, world, options, _LOCK_SECONDS, make_exchange)
    try:
        trainer.run()
    finally:
        trainer.close()


class Trainer:
    """One worker's part of a run, from its latest checkpoint to its end."""

    def __init__(
        self,
        dataset: Dataset,
        run: RunFolder,
        world: World,
        options: WorkerOptions | None = None,
        lock_seconds: float = 0.0,
        make_exchange: MakeExchange | None = None,
    ) -> None:
        """Build model, optimiser and loader, and restore the latest checkpoint.

        Args:
            dataset: Dataset to train on.
            run: Recipe and files of the run.
            world: Place of this worker.
            options: See `train`.
            lock_seconds: Maximum time that the first worker waits for another process that still writes to the run.
            make_exchange: See `train`.
        """
        self._dataset, self._run, self._world, self._config = dataset, run, world, run.config
        self._options = options or WorkerOptions()
        self._options.check(self._config)
        config, num_samples = self._config, dataset.num_samples("train")
        self._evaluation_interval = config.evaluation_interval(num_samples)
        self.progress = Progress(config, num_samples)
        total_steps = self.progress.total_steps
        share = RankShare(
            config.global_batch_size,
            world.rank,
            world.world_size,
            config.model.group_size,
            self._options.micro_batch_size,
        )
        self._decoding: Decoding | None = None  # chosen by a trial
        self._eval_loader: EvalLoader | None = None
        self._finished: deque[Moment] = deque()  # ends of the latest steps
        with contextlib.ExitStack() as resources:
            # Only the first worker writes.
            self._log = RunLog(run.metrics_path, lock_seconds) if world.is_first else None
            if self._log is not None:
                resources.callback(self._log.close)
            self._clock = clock_of(world.device)
            self._writer = RunWriter(run.checkpoints, run.ledger, self._clock) if world.is_first else None
            if self._writer is not None:
                resources.callback(self._writer.close)
            self.learner = Learner(config, dataset.num_classes, total_steps, world)
            self._start(make_exchange(share) if make_exchange is not None else self._chosen_exchange(share))
            self._first_step = self.progress.step
            self.loader = self._open_loader()
            resources.callback(self.loader.close)
            self._stop, self._schedule = StopAgreement(world), CheckpointSchedule(config, self._first_step)
            self._parts = StepParts(self.loader, self._clock)
            self._steps = StepLog(
                run, dataset, world, self.loader, self._parts, self._clock, self._log, self._writer, total_steps
            )
            self._resources = resources.pop_all()

    def run(self) -> None:
        """Train to the end, or until the workers are asked to stop; log, evaluate and write checkpoints."""
        progress, is_stopped = self.progress, False
        while not progress.is_finished:
            if not progress.is_evaluation_due or not self.learner.has_equal_weights:
                is_stopped = self._advance() or is_stopped
            if not self.learner.has_equal_weights:  # whatever is due waits for it
                continue
            is_best = False
            if progress.is_evaluation_due and not is_stopped:
                is_best = self._evaluate()
                is_stopped = progress.is_evaluation_due  # only a stop leaves it undone
            # The best checkpoint is also the latest when it is written, so no resume starts before the best one.
            if progress.is_last or is_stopped or is_best or self._schedule.is_due(progress.step):
                self.save_checkpoint(is_best)
            if is_stopped:
                break
        if self._writer is not None:
            self._writer.wait()
        if self._world.is_first and progress.is_finished:
            self._run.finish({"num_steps": progress.step, "best_val_top1": progress.best_top1})
        else:
            self._write(Stopped(step=progress.step))

    def close(self) -> None:
        """Release the loader, the writer and the log."""
        self._resources.close()

    def make_step(self) -> None:
        """Make the next step, and keep its results for the log."""
        samples_seen = self.progress.samples_seen
        # Batches that the GPU has not finished hold memory, which nothing else bounds.
        if len(self._finished) == _MOST_UNFINISHED_STEPS:
            self._clock.wait(self._finished.popleft())
        batches = self._steps.watch(self._parts.watch(self.loader.micro_batches()), samples_seen)
        num_reductions = self.progress.plateau.num_reductions
        self._steps.add(self.learner.step(batches, samples_seen, num_reductions, self._parts.part))
        self._finished.append(self._clock.mark())
        self.progress.step += 1

    def write_line(self) -> None:
        """Log the steps since the last line, or begin to; every worker calls this."""
        self._steps.write_line(self.progress.step, self.learner.learning_rate)

    def save_checkpoint(self, is_best: bool = False) -> None:
        """Let the first worker begin to write a checkpoint, once the steps before are logged."""
        self._schedule.begin(self.progress.step)
        self._steps.finish(self.progress.step, self.learner.learning_rate)
        self._align()
        if self._writer is None and not self.learner.has_shared_state:
            return
        state = self.learner.state_dict() | self.progress.state_dict()
        if self._decoding is not None:
            state["decoding"] = dataclasses.asdict(self._decoding)
        if self._writer is not None:
            self._writer.save(state, self.progress.step, is_best, is_copy=self.learner.copies_state)
            if self._config.checkpoint_interval == 1:  # it must be complete before the next step
                self._writer.wait()

    def _advance(self) -> bool:
        """Make a step and log it; return whether the workers were asked to stop after it."""
        progress = self.progress
        self._stop.ask(self._schedule.is_time)
        self.make_step()
        num_since_start = progress.step - self._first_step
        if progress.is_last or num_since_start in _FIRST_LINES or progress.step % _LINE_INTERVAL == 0:
            self.write_line()
        if "val" in self._dataset.splits:
            progress.is_evaluation_due |= progress.is_last or progress.step % self._evaluation_interval == 0
        is_stopped = self._stop.is_reached()
        if self._stop.is_checkpoint_time:
            self._schedule.allow()
        return is_stopped

    def _evaluate(self) -> bool:
        """Evaluate on `val`; return whether the model is the best so far.

        If the workers are asked to stop meanwhile, nothing is recorded and the evaluation stays due.
        """
        began = self._clock.mark()
        if self._eval_loader is None and self._world.device.type == "cuda":
            # Kept open: to build its graph again would take longer than many an evaluation.
            self._eval_loader = open_eval_loader(self._dataset, "val", self._world, self._run)
            self._resources.callback(self._eval_loader.close)
        learner, world = self.learner, self._world
        with learner.evaluating():
            evaluation = evaluate(
                learner.model, self._dataset, "val", world, self._run, stop=self._stop, loader=self._eval_loader
            )
        self._steps.leave_out(began, self._clock.mark())
        self._stop.renew()  # for the steps that follow
        self._steps.write_open_line()
        if evaluation is None:
            return False
        step, result, plateau = self.progress.step, evaluation.summary(), self.progress.plateau
        is_best, has_stalled = self.progress.observe(result["top1"])
        self._write(Evaluated(step=step, **result))
        if has_stalled:
            self._write(Stalled(step=step, num_reductions=plateau.num_reductions, is_over=plateau.is_over))
        return is_best

    def _open_loader(self) -> TrainLoader | SyntheticLoader:
        config, dataset, world = self._config, self._dataset, self._world
        share: dict[str, Any] = {
            "global_batch_size": config.global_batch_size,
            "rank": world.rank,
            "world_size": world.world_size,
            "seed": config.seed,
            "samples_seen": self.progress.samples_seen,
            "config": world.loader_config(config.decode, config.on_bad_sample, config.model.group_size, self._options),
        }
        if config.synthetic_data:
            crop_size = config.augmentation.crop_of(dataset.stored_size)
            num_samples = dataset.num_samples("train")
            return SyntheticLoader(
                num_samples=num_samples, num_classes=dataset.num_classes, crop_size=crop_size, **share
            )
        loader = TrainLoader(dataset, augmentation=config.augmentation, streams=config.streams, **share)
        if config.decode == "auto" and world.device.type == "cuda" and dataset.member != "npy":
            self._decoding = self._decoding or choose_decoding(
                lambda ways: world.sum(torch.tensor(loader.decoding_rates(ways))).tolist()
            )
            loader.decode_by(self._decoding)
            self._write(DecodingChosen(**dataclasses.asdict(self._decoding)))
        return loader

    def _start(self, exchange: Exchange) -> None:
        """Restore the newest complete checkpoint if there is one, and connect the exchange to the model."""
        state, messages = self._latest_state()
        if state is not None:
            self.progress.load_state_dict(state)
            self._decoding = Decoding(**state["decoding"]) if "decoding" in state else None
        exchange.begin(self.progress.step)
        messages += filter(None, [self.learner.connect(exchange, state)])
        step = self.progress.step
        if self._world.is_first:
            self._run.checkpoints.remove_leftovers(step)
            for message in messages:
                self._write(Warned(message=message))
            num_rolled_back = self._run.ledger.roll_back(step)
            if step or num_rolled_back:
                self._write(Resumed(step=step, num_rolled_back=num_rolled_back))
            self._write(Started(step=step, world_size=self._world.world_size, exchange=exchange.name))
        self._align()

    def _chosen_exchange(self, share: RankShare) -> Exchange:
        """Make the exchange that this launch uses."""
        if self._config.is_exchange_lossy:
            return lossy_exchange(self._config, share, self.progress.total_steps)
        chooser = ExchangeChooser(
            config=self._config,
            model=self.learner.model,
            num_classes=self._dataset.num_classes,
            image_size=self._config.augmentation.crop_of(self._dataset.stored_size),
            world=self._world,
            share=share,
        )
        earlier = read_metrics(self._run.metrics_path) if self._world.is_first else []
        strategy, line = chooser.choose(self._options.exchange, earlier)
        if line is not None:
            self._write(line)
        return EXACT[strategy](share)

    def _latest_state(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Return the newest complete checkpoint, or None, and warnings.

        The first worker chooses it, since others may see an older folder.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            state = self._run.checkpoints.load_latest() if self._world.is_first else None
            step = int(self._world.sum(torch.tensor(0 if state is None else state["step"])))
            if step and not self._world.is_first:
                state = self._run.checkpoints.load(step)
        if step and state is None:
            raise InputError(f"a worker can't read the checkpoint of step {step} in {self._run.path}; share the folder")
        return state, [str(warning.message) for warning in caught]

    def _align(self) -> None:
        """Make sure that all workers have the same weights; every worker calls this."""
        if drift := self.learner.align():
            self._write(Aligned(step=self.progress.step, num_tensors=drift.num_tensors, largest=drift.largest))

    def _write(self, line: Line) -> None:
        """Write a line to the log if this is the first worker."""
        if self._log is not None:
            self._log.write(line)
