"""Check of the whole: training from JPEG beside its step alone and its loader alone, in interleaved rounds."""

import functools
import math
import time

from benchmarks.gpu import aims
from benchmarks.gpu.threads import ThreadClock
from benchmarks.gpu.timing import seconds_per_step, synchronize
from benchmarks.gpu.trainers import ENDLESS, Enough, make_run, open_trainer, train_until
from benchmarks.gpu.trial import Measure, Trial
from benchmarks.record import Values
from benchmarks.step_process import Case, training_step
from pipeline.loader import TrainLoader
from pipeline.online.batch import Cache

_RECIPE, _MODEL, _OPTIMIZER = "krizhevsky_2012", "alexnet_2012", "sgd_paper"
_NUM_EPOCHS_BEFORE = 2  # in the first one a cache is filled
_NUM_STEPS_BEFORE = 8
_DRY_BATCH_SIZE = 4
ON_NOISE = "training on noise"


def check_end_to_end(trial: Trial) -> None:
    """Note images/s of training, of its step alone and of its loader alone, and the busy cores by thread."""
    values = trial.note_rounds(
        {
            aims.COMPUTING: functools.partial(_step, trial),
            aims.LOADING: functools.partial(_loader, trial),
            aims.TRAINING: functools.partial(_training, trial, aims.TRAINING),
            aims.TRAINING_CACHED: functools.partial(_training, trial, aims.TRAINING_CACHED, _gpu_cache(trial)),
            ON_NOISE: functools.partial(_training, trial, ON_NOISE, synthetic_data=True),
        }
    )
    trial.add_rounds(slower_of(values, aims.COMPUTING, aims.LOADING))


def slower_of(values: Values, *alternatives: str) -> Values:
    """Return the images/s of the slowest alternative in each round, as values of `aims.SLOWER`."""
    if not all(name in values for name in alternatives):
        return {}
    rounds = zip(*(values[name][aims.IMAGES] for name in alternatives), strict=False)
    return {aims.SLOWER: {aims.IMAGES: [min(measured) for measured in rounds]}}


def _batch_size(trial: Trial) -> int:
    return _DRY_BATCH_SIZE if trial.is_dry else aims.BATCH_SIZE


def _step(trial: Trial) -> Measure:
    case = Case(model=_MODEL, optimizer=_OPTIMIZER, batch_size=_batch_size(trial), device=str(trial.device))
    step = training_step(case)
    return lambda: {aims.IMAGES: case.batch_size / seconds_per_step(step, 0.6 * trial.seconds)}


def _loader(trial: Trial) -> Measure:
    """Prepare the loader that the training uses, without the training."""
    dataset = trial.dataset("jpeg")
    run = make_run(trial, dataset, _RECIPE, global_batch_size=_batch_size(trial), **ENDLESS)

    def measure() -> dict[str, float]:
        with open_trainer(trial, dataset, run) as trainer:
            loader = trainer.loader
            assert isinstance(loader, TrainLoader)
            seconds = seconds_per_step(lambda: next(loader), trial.seconds, _num_steps_before(trial))
        return {aims.IMAGES: _batch_size(trial) / seconds}

    return measure


def _gpu_cache(trial: Trial) -> Cache:
    return "host" if trial.is_dry else "gpu"


def _training(trial: Trial, name: str, cache: Cache = "none", synthetic_data: bool = False) -> Measure:
    """Prepare training by the recipe; each round is a new run of some seconds."""
    dataset = trial.dataset("jpeg")

    def measure() -> dict[str, float]:
        run = make_run(
            trial, dataset, _RECIPE, global_batch_size=_batch_size(trial), synthetic_data=synthetic_data, **ENDLESS
        )
        with open_trainer(trial, dataset, run, cache=cache) as trainer:
            window = _Window(_num_steps_before(trial), 1.5 * trial.seconds)
            train_until(trainer, window.watch)
        trial.note(f"{name}: cores by thread", window.usage.cores)
        return {
            aims.IMAGES: _batch_size(trial) * window.num_steps / window.seconds,
            aims.CORES: window.usage.total,
            aims.CORES_BESIDE_DALI: window.usage.beside_dali,
        }

    return measure


def _num_steps_before(trial: Trial) -> int:
    if trial.is_dry:
        return 1
    num_samples = trial.dataset("jpeg").num_samples("train")
    return _NUM_EPOCHS_BEFORE * math.ceil(num_samples / _batch_size(trial)) + _NUM_STEPS_BEFORE


class _Window:
    """The steps that are measured, after those that warm up.

    Attributes:
        num_steps: Number of measured steps.
        seconds: Their duration.
        usage: CPU time used meanwhile.
    """

    def __init__(self, num_before: int, least_seconds: float) -> None:
        self._num_before, self._least_seconds = num_before, least_seconds

    def watch(self, num_steps: int) -> None:
        """Note a finished step; raises `Enough` at the end of the window."""
        if num_steps < self._num_before:
            return
        if num_steps == self._num_before:
            synchronize()
            self._clock, self._began = ThreadClock(), time.perf_counter()
        elif time.perf_counter() - self._began >= self._least_seconds:
            synchronize()
            self.seconds = time.perf_counter() - self._began
            self.usage = self._clock.usage()
            self.num_steps = num_steps - self._num_before
            raise Enough
