"""The worker loop: the same under Ray Train, under torch.distributed, and alone.

A step takes this rank's slice of the global batch, scales its summed loss by world_size / global_batch_size, and lets
DistributedDataParallel average over the ranks: the gradient is the mean over the global batch, also where slices are
uneven or cut into pieces (`micro_batches.py`). What a step does depends on (recipe, dataset, samples seen)
alone; with the schedule `plateau`, on the evaluations so far too. What remains between two world sizes is the order of
floating-point sums.
"""

import contextlib
import dataclasses
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from cluster.run.config import TrainingConfig
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Evaluated, Resumed, RunLog, Stalled, Started, Stopped, Warned
from cluster.worker.checkpoint_writer import CheckpointWriter
from cluster.worker.evaluation import evaluate
from cluster.worker.micro_batches import cut_into_micro_batches
from cluster.worker.precision import forward_context, input_dtype
from cluster.worker.step_log import StepLog
from cluster.worker.stopping import StopAgreement
from cluster.worker.world import World
from model.alexnet import build_model, check_image_size
from model.batch_norm import update_running_statistics
from model.metrics import count_correct
from model.optim import build_optimizer, set_learning_rate
from model.schedules import Plateau, learning_rate
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.loader import Batch, TrainLoader
from pipeline.online.synthetic_loader import SyntheticLoader

_LINE_INTERVAL = 20
_FIRST_LINES = (1, 2, 5, 10)  # steps after a start, so that a person soon sees that it runs
_LOCK_SECONDS = 120.0  # that workers of a launch before get to end; of a lost NFS client the lock lasts 90 s


def check_fits(config: TrainingConfig, dataset: Dataset, num_workers: int) -> None:
    """Check, before anything is started, that recipe, dataset and workers fit each other.

    Raises:
        InputError: Names what does not.
    """
    group_size = config.model.group_size
    num_groups = config.global_batch_size // group_size
    if num_groups < num_workers:
        groups = f" in groups of {group_size}" if group_size > 1 else ""
        raise InputError(
            f"{num_workers} workers can't share a global batch of {config.global_batch_size}{groups}; use at most "
            f"{num_groups} workers"
        )
    if config.optimizer.schedule == "plateau" and "val" not in dataset.splits:
        raise InputError(
            f"recipe {config.name} lowers its rate by the error on val, which {dataset.path} lacks; choose another "
            "schedule (--optimizer.schedule cosine), or make the dataset with --val-fraction 0.05"
        )
    if config.early_stop_patience is not None and "val" not in dataset.splits:
        raise InputError(
            f"--early-stop-patience needs the split val, which {dataset.path} lacks; leave it out, or make the dataset "
            "with --val-fraction 0.05"
        )
    check_images_fit(config, dataset)


def check_images_fit(config: TrainingConfig, dataset: Dataset) -> None:
    """Check that the model takes the dataset's pictures.

    Raises:
        InputError: It does not.
    """
    try:
        check_image_size(config.model, config.augmentation.crop_of(dataset.stored_size))
    except ValueError as error:
        raise InputError(f"recipe {config.name} does not fit {dataset.path}: {error}") from error


def train(dataset_path: Path, run_path: Path, world: World, micro_batch_size: int | None = None) -> None:
    """Train, or go on training, the run in `run_path`; every worker calls this.

    It returns when the run is finished, or at a checkpoint if the workers were asked to stop.

    Args:
        dataset_path: The dataset folder, as this worker sees it.
        run_path: The run's folder with its `config.json`, as this worker sees it.
        world: Of this worker.
        micro_batch_size: Most samples that pass through the model at once; None: the worker's whole slice.
    """
    torch.set_num_threads(world.num_threads)
    run = RunFolder.open(run_path)
    if not world.agrees(run.digest):
        raise InputError(f"the workers see different files {run_path / 'config.json'}; is it a shared folder?")
    trainer = Trainer(Dataset.open(dataset_path), run, world, micro_batch_size, _LOCK_SECONDS)
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
        micro_batch_size: int | None = None,
        lock_seconds: float = 0.0,
    ) -> None:
        """Build model, optimiser and loader, and restore the latest checkpoint.

        Args:
            dataset: To train on.
            run: Its recipe and its files.
            world: Of this worker.
            micro_batch_size: See `train`.
            lock_seconds: How long the first worker waits for one that still writes to the run.
        """
        self._dataset, self._run, self._world, self._config = dataset, run, world, run.config
        self._micro_batch_size = micro_batch_size
        config, num_samples = self._config, dataset.num_samples("train")
        self._total_steps = config.total_steps(num_samples)
        self._evaluation_interval = config.evaluation_interval(num_samples)
        self._model: nn.Module = build_model(
            **dataclasses.asdict(config.model), num_classes=dataset.num_classes, seed=config.seed
        )
        self._model.to(world.device, input_dtype(config.precision))
        self._model.to(memory_format=torch.channels_last)
        self._optimizer_config = config.optimizer.for_batch_size(config.global_batch_size)
        self._optimizer = build_optimizer(self._model, self._optimizer_config)
        self._plateau = Plateau(config.optimizer)
        self._step = 0
        self._best_top1: float | None = None
        self._num_evaluations_since_best = 0
        self._is_evaluation_due = False
        self._log = RunLog(run.metrics_path, lock_seconds) if world.is_first else None
        self._ledger = run.ledger if world.is_first else None
        self._checkpoints = CheckpointWriter(run.checkpoints)
        self._restore()
        self._first_step = self._step
        self._parallel: nn.Module = self._model
        if world.world_size > 1:
            self._parallel = DistributedDataParallel(self._model, gradient_as_bucket_view=True)
        self._loader = self._open_loader()
        self._stop = StopAgreement(world)
        self._steps = StepLog(run, dataset, world, self._loader, self._log, self._ledger, self._total_steps)

    def run(self) -> None:
        """Train to the end, or until the workers are asked to stop; log, evaluate and checkpoint on the way."""
        while not self._is_finished():
            is_stopped = not self._is_evaluation_due and self._advance()
            is_best = False
            if self._is_evaluation_due and not is_stopped:
                is_best = self._evaluate()
                is_stopped = self._is_evaluation_due  # nothing but a stop leaves it undone
            # The best one is always the latest too: what is restored is never older than the best that is kept.
            is_due = self._step % self._config.steps_between_checkpoints == 0
            if self._is_last() or is_stopped or is_best or is_due:
                self._save_checkpoint(is_best)
            if is_stopped:
                break
        self._checkpoints.wait()
        if self._world.is_first and self._is_finished():
            self._run.finish({"num_steps": self._step, "best_val_top1": self._best_top1})
        elif self._log is not None:
            self._log.write(Stopped(step=self._step))

    def close(self) -> None:
        """Release the loader, the log and what writes checkpoints."""
        self._loader.close()
        self._checkpoints.close()
        if self._log is not None:
            self._log.close()

    def _is_last(self) -> bool:
        patience = self._config.early_stop_patience
        is_early = patience is not None and self._num_evaluations_since_best >= patience
        return self._step == self._total_steps or self._plateau.is_over or is_early

    def _is_finished(self) -> bool:
        return self._is_last() and not self._is_evaluation_due

    def _advance(self) -> bool:
        """Make a step and log it; return whether the workers were asked to stop after it."""
        self._stop.ask()
        self._train_step(next(self._loader))
        if self._is_last() or self._is_line_due():
            self._write_line()
        if "val" in self._dataset.splits:
            self._is_evaluation_due = self._is_last() or self._step % self._evaluation_interval == 0
        return self._stop.is_reached()

    def _is_line_due(self) -> bool:
        return self._step - self._first_step in _FIRST_LINES or self._step % _LINE_INTERVAL == 0

    def _open_loader(self) -> TrainLoader | SyntheticLoader:
        config, dataset, world = self._config, self._dataset, self._world
        samples_seen = self._step * config.global_batch_size
        loader_config = world.loader_config(config.decode, config.on_bad_sample, config.model.group_size)
        if config.synthetic_data:
            return SyntheticLoader(
                num_samples=dataset.num_samples("train"),
                num_classes=dataset.num_classes,
                crop_size=config.augmentation.crop_of(dataset.stored_size),
                global_batch_size=config.global_batch_size,
                rank=world.rank,
                world_size=world.world_size,
                seed=config.seed,
                samples_seen=samples_seen,
                config=loader_config,
            )
        return TrainLoader(
            dataset,
            global_batch_size=config.global_batch_size,
            rank=world.rank,
            world_size=world.world_size,
            seed=config.seed,
            samples_seen=samples_seen,
            augmentation=config.augmentation,
            streams=config.streams,
            config=loader_config,
        )

    def _train_step(self, batch: Batch) -> None:
        global_batch_size = self._config.global_batch_size
        seen, total_samples = self._step * global_batch_size, self._total_steps * global_batch_size
        rate = learning_rate(self._optimizer_config, seen, total_samples, self._plateau.num_reductions)
        set_learning_rate(self._optimizer, rate)
        self._optimizer.zero_grad(set_to_none=True)
        *others, last = cut_into_micro_batches(len(batch.labels), self._micro_batch_size, self._config.model.group_size)
        with self._without_exchange():
            sums = [self._forward_backward(batch, piece) for piece in others]
        sums.append(self._forward_backward(batch, last))
        self._optimizer.step()
        update_running_statistics(self._model, self._world.sum)
        self._steps.add(batch, seen, torch.stack(sums).sum(0))
        self._step += 1

    def _forward_backward(self, batch: Batch, piece: slice) -> torch.Tensor:
        """Add a piece's share to the gradient; return its sum of losses and its number of correct samples, (2,)."""
        config, labels = self._config, batch.labels[piece]
        images = batch.images[piece].to(input_dtype(config.precision)).contiguous(memory_format=torch.channels_last)
        with forward_context(config.precision, self._world.device):
            logits = self._parallel(images, batch.positions[piece].to(self._world.device))
        logits = logits if config.precision == "float64" else logits.float()
        loss_sum = functional.cross_entropy(logits, labels, reduction="sum")
        # DistributedDataParallel divides the ranks' sum by world_size: what remains is the mean over the global batch.
        (loss_sum * (self._world.world_size / config.global_batch_size)).backward()
        correct = count_correct(logits.detach(), labels, ks=(1,))[0]
        return torch.stack([loss_sum.detach().double(), correct.double()])

    def _without_exchange(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which a backward pass adds to this rank's gradient alone."""
        if isinstance(self._parallel, DistributedDataParallel):
            return self._parallel.no_sync()
        return contextlib.nullcontext()

    def _write_line(self) -> None:
        self._steps.write_line(self._step, self._optimizer.param_groups[0]["lr"])

    def _evaluate(self) -> bool:
        """Evaluate on `val`; return whether the model is the best so far.

        If the workers are asked to stop meanwhile, nothing of it is noted and it stays due.
        """
        began = time.perf_counter()
        evaluation = evaluate(self._model, self._dataset, "val", self._world, self._run, stop=self._stop)
        self._steps.leave_out(time.perf_counter() - began)
        if evaluation is None:
            return False
        self._is_evaluation_due, result = False, evaluation.summary()
        if self._log is not None:
            self._log.write(Evaluated(step=self._step, **result))
        is_best = self._best_top1 is None or result["top1"] > self._best_top1
        self._num_evaluations_since_best += 1
        if is_best:
            self._best_top1, self._num_evaluations_since_best = result["top1"], 0
        if self._config.optimizer.schedule == "plateau" and self._plateau.observe(1 - result["top1"]) and self._log:
            num_reductions, is_over = self._plateau.num_reductions, self._plateau.is_over
            self._log.write(Stalled(step=self._step, num_reductions=num_reductions, is_over=is_over))
        return is_best

    def _state(self) -> dict[str, Any]:
        return {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self._step,
            "samples_seen": self._step * self._config.global_batch_size,
            "best_top1": self._best_top1,
            "num_evaluations_since_best": self._num_evaluations_since_best,
            "is_evaluation_due": self._is_evaluation_due,
            "plateau": self._plateau.state_dict(),
        }

    def _save_checkpoint(self, is_best: bool = False) -> None:
        """Let the first worker write a checkpoint; the ledger of its steps is on disk before it."""
        if self._steps:
            self._write_line()
        if self._ledger is not None:
            self._checkpoints.write(self._state(), self._step, is_best)
            self._ledger.consolidate()
            if self._config.checkpoint_interval == 1:  # no step may be made before it is whole
                self._checkpoints.wait()

    def _restore(self) -> None:
        """Go on from the newest whole checkpoint, which the first worker chooses: others may see an older folder."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            state = self._run.checkpoints.load_latest() if self._world.is_first else None
            step = int(self._world.sum(torch.tensor(0 if state is None else state["step"])))
            if step and not self._world.is_first:
                state = self._run.checkpoints.load(step)
        if step and state is None:
            raise InputError(f"a worker can't read the checkpoint of step {step} in {self._run.path}; share the folder")
        if state is not None:
            self._model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._plateau.load_state_dict(state["plateau"])
            self._step, self._best_top1 = state["step"], state["best_top1"]
            self._num_evaluations_since_best = state["num_evaluations_since_best"]
            self._is_evaluation_due = state.get("is_evaluation_due", False)  # absent before there was one
        if self._log is None or self._ledger is None:
            return
        self._run.checkpoints.remove_leftovers(step)
        for warning in caught:
            self._log.write(Warned(message=str(warning.message)))
        num_rolled_back = self._ledger.roll_back(step)
        if step or num_rolled_back:
            self._log.write(Resumed(step=step, num_rolled_back=num_rolled_back))
        self._log.write(Started(step=step, world_size=self._world.world_size))
