"""A training job of `jobs/train.py`: its recipe, dataset and run folder, and its messages to a person."""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.run.config import Precision, TrainingConfig
from cluster.run.fit import check_fits
from cluster.run.follower import Follower
from cluster.run.run_folder import RunFolder, open_launches
from cluster.run.run_log import Changed, RunLog
from cluster.run.terminal import Terminal
from cluster.worker.emulation import Emulation
from cluster.worker.precision import choose_precision
from jobs.training.outcome import outcome
from jobs.training.tensorboard import TensorBoard, check_tensorboard
from pipeline import embedded
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.format.manifest import DATASET_JSON
from pipeline.paths import shared_path
from pipeline.shard import main as shard

if TYPE_CHECKING:
    from jobs.train import Arguments


@dataclass(frozen=True)
class TrainingJob:
    """A recipe, the dataset to train it on, and the run folder to write to.

    Attributes:
        requested: Recipe of the command line.
        config: The same recipe, with its precision resolved as soon as the devices are known.
        data: Dataset folder, with a path that is valid on all workers.
        dataset: Dataset in that folder.
        run_path: Run folder, with a path that is valid on all workers.
        run: Existing run in the folder, or None.
        is_dry: Whether the job is only checked and no run begins.
        has_tensorboard: Whether events for TensorBoard are written.
        is_own: Whether the dataset was made of pictures of one's own (--source).
        reason: Reason for the precision, or empty if there is nothing to explain.
        is_emulated: Whether a device emulates the precision.
    """

    requested: TrainingConfig
    config: TrainingConfig
    data: Path
    dataset: Dataset
    run_path: Path
    run: RunFolder | None
    is_dry: bool
    has_tensorboard: bool
    is_own: bool
    reason: str = ""
    is_emulated: bool = False

    @classmethod
    def prepare(
        cls, arguments: "Arguments", config: TrainingConfig, num_workers: int, is_quiet: bool = False
    ) -> "TrainingJob":
        """Open the dataset and the run folder, and check that the recipe fits them."""
        if arguments.tensorboard and not is_quiet:
            check_tensorboard()
        data, run_path = find_paths(arguments, is_quiet)
        dataset = Dataset.open(data)
        check_fits(config, dataset, num_workers)
        run = RunFolder.resume(run_path, config, dataset)
        has_tensorboard, is_own = arguments.tensorboard, arguments.source is not None
        return cls(config, config, data, dataset, run_path, run, arguments.dry_run, has_tensorboard, is_own)

    @property
    def total_steps(self) -> int:
        """Length of the run."""
        return self.config.total_steps(self.dataset.num_samples("train"))

    def is_finished(self) -> bool:
        """Return whether nothing is left to do, with a message if so."""
        if self.run is None or self.run.result is None:
            return False
        sys.stdout.write(f"{self.run_path} is finished already: {self._evaluate_hint()}\n")
        return True

    @property
    def recorded_precision(self) -> Precision | None:
        """Precision of the run that is resumed; None for a new run."""
        return None if self.run is None else self.run.config.precision

    @property
    def computes_in_bfloat16(self) -> bool:
        """Whether the run certainly computes in bfloat16."""
        return "bfloat16" in (self.config.precision, self.recorded_precision)

    def in_precision(self, emulations: Sequence[Emulation]) -> "TrainingJob":
        """Return the job with its precision resolved, and warn if a device emulates it.

        Args:
            emulations: Devices that may get a worker and would emulate bfloat16.
        """
        choice = choose_precision(self.config.precision, self.recorded_precision, emulations)
        for line in choice.warnings:
            sys.stderr.write(f"warning: {line}\n")
        config = replace(self.config, precision=choice.precision)
        return replace(self, config=config, reason=choice.reason, is_emulated=bool(choice.warnings))

    def announce(self, workers: str, num_workers: int) -> None:
        """Print what begins or, in a dry run, would begin."""
        check_fits(self.config, self.dataset, num_workers)
        reason = f" ({self.reason})" if self.reason else ""
        sys.stdout.write(
            f"{'would train' if self.is_dry else 'training'} {self.config.name} ({self.config.model.name}) in "
            f"{self.config.precision}{reason} on {self.data}: {self.dataset.num_samples('train'):,} samples, "
            f"{self.dataset.num_classes} classes, {self.total_steps:,} steps of {self.config.global_batch_size}\n"
            f"{workers}; run folder {self.run_path}\n"
        )
        sys.stdout.flush()

    @contextlib.contextmanager
    def begun(self) -> Iterator[tuple[RunFolder, RunLog]]:
        """Lock the run for this command, create its folder if it is new, and show its log as it grows.

        Yields:
            The run and the log of its launches, whose lock is held.
        """
        with contextlib.closing(open_launches(self.run_path)) as log:
            # Checked again under the lock, since another command may have begun a run here meanwhile.
            run = RunFolder.resume(self.run_path, self.requested, self.dataset)
            if run is None:
                run = RunFolder.create(self.run_path, self.config, self.dataset)
            elif changes := run.changes_to(self.requested):
                log.write(Changed(changes=changes))
                run.operate_as(self.requested)
                sys.stdout.writelines(f"{name} {old} -> {new} from here on\n" for name, (old, new) in changes.items())
            bench = shlex.join(["python", "-m", "pipeline.bench", str(self.data)])
            terminal = Terminal(self.total_steps, self._advice(), bench)
            with contextlib.ExitStack() as stack:
                stack.enter_context(terminal)
                stack.enter_context(Follower(run.metrics_path, terminal.see))
                if self.has_tensorboard:
                    events = stack.enter_context(contextlib.closing(TensorBoard(run, self.dataset)))
                    stack.enter_context(Follower(run.metrics_path, events.see, from_start=True))
                    sys.stdout.write(f"watch the run with: {events.command}\n")
                yield run, log

    def _advice(self) -> str:
        """Return advice on how to shorten this run, or the next one."""
        more = "a GPU, or more or faster nodes"
        others = [f"fewer epochs (--num-epochs, now {self.config.num_epochs:g})"]
        others += ["fewer pictures (pipeline.shard --max-train-samples)"]
        if self.is_emulated:
            others.insert(0, "--precision float32")
        return f"{more}; or, in a new --run, with {' or '.join(others)}"

    def say_finished(self) -> None:
        """Print what became of the run, that it is finished, and the next commands."""
        lines = outcome(RunFolder.open(self.run_path), self.dataset, self.is_own)
        try:
            sys.stdout.writelines(f"{line}\n" for line in lines)
        except InputError as error:  # the training itself is done
            sys.stderr.write(f"warning: the result was not compared with a simple guess: {error}\n")
        report = shlex.join(["python", "jobs/report.py", str(self.run_path), "-o", str(self.run_path / "report.html")])
        sys.stdout.write(f"finished: {self._evaluate_hint()}\nthen, for a page to look at: {report}\n")

    def _evaluate_hint(self) -> str:
        return shlex.join(["python", "jobs/evaluate.py", "--data", str(self.data), "--run", str(self.run_path)])


def find_paths(arguments: "Arguments", is_quiet: bool = False) -> tuple[Path, Path]:
    """Return the dataset and run folders; without --data, the embedded default's, created if necessary."""
    if arguments.data is not None:
        if arguments.run is None:
            raise InputError("--run is missing: name the folder that the run is to live in")
        return shared_path(arguments.data, "--data"), shared_path(arguments.run, "--run")
    data = embedded.dataset_folder()
    if not is_quiet:
        sys.stdout.write(f"no --data given: training on the embedded synthetic mini-ImageNet in {data}\n")
        sys.stdout.flush()
    if not (data / DATASET_JSON).exists():
        shard([])
    return data, shared_path(arguments.run, "--run") if arguments.run else embedded.run_folder()
