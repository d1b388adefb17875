"""Check of the whole: training from JPEG beside its step alone and its loader alone, in interleaved rounds."""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

from benchmarks.gpu import aims
from benchmarks.gpu.threads import ThreadClock
from benchmarks.gpu.timing import seconds_per_step, synchronize
from benchmarks.gpu.trainers import ENDLESS, Enough, make_run, open_trainer, train_until
from benchmarks.gpu.trial import Measure, Trial
from benchmarks.record import Values
from benchmarks.step_process import Case, training_step
from cluster.worker.training import Trainer
from pipeline.loader import TrainLoader
from pipeline.online.batch import Cache, LoaderConfig
from pipeline.online.decoding_trial import Decoding, choose_decoding

Choose = Callable[[], Decoding | None]
_RECIPE = "krizhevsky_2012"
_STEP = Case(model="alexnet_2012", optimizer="sgd_paper")
_NUM_EPOCHS_BEFORE = 2  # in the first one a cache is filled
_NUM_STEPS_BEFORE = 8
_DRY_BATCH_SIZE = 4
_SECONDS_OF_A_TRAINING = 5
ON_NOISE = "training on noise"


def check_end_to_end(trial: Trial) -> None:
    """Note images/s of training, of its step alone and of its loader alone, and the busy cores by thread."""
    choose = functools.cache(functools.partial(_chosen_decoding, trial))
    values = trial.note_rounds(
        {
            aims.COMPUTING: functools.partial(_step, trial),
            aims.LOADING: functools.partial(_loader, trial, choose),
            aims.TRAINING: functools.partial(_training, trial, aims.TRAINING, choose),
            aims.TRAINING_CACHED: functools.partial(
                _training, trial, aims.TRAINING_CACHED, cache="host" if trial.is_dry else "gpu"
            ),
        }
    )
    trial.add_rounds(slower_of(values, aims.COMPUTING, aims.LOADING))
    noise = _training(trial, ON_NOISE, synthetic_data=True)
    trial.note_cases({ON_NOISE: noise}, _SECONDS_OF_A_TRAINING)


def slower_of(values: Values, *alternatives: str) -> Values:
    """Return the images/s of the slowest alternative in each round, as values of `aims.SLOWER`."""
    if not all(name in values for name in alternatives):
        return {}
    rounds = zip(*(values[name][aims.IMAGES] for name in alternatives), strict=False)
    return {aims.SLOWER: {aims.IMAGES: [min(measured) for measured in rounds]}}


def _batch_size(trial: Trial) -> int:
    return _DRY_BATCH_SIZE if trial.is_dry else aims.BATCH_SIZE


def _step(trial: Trial) -> Measure:
    case = dataclasses.replace(_STEP, batch_size=_batch_size(trial), device=str(trial.device))
    step = training_step(case)
    return lambda: {aims.IMAGES: case.batch_size / seconds_per_step(step, 0.6 * trial.seconds)}


def _chosen_decoding(trial: Trial) -> Decoding | None:
    """Let a trial choose who decodes, as `--decode auto` does; on a CPU there is nothing to choose."""
    if trial.is_dry:
        return None
    config = LoaderConfig(device="gpu", layout="NHWC")
    with contextlib.closing(
        TrainLoader(trial.dataset("jpeg"), global_batch_size=_batch_size(trial), config=config)
    ) as loader:
        chosen = choose_decoding(loader.decoding_rates)
    trial.note("decode auto", dataclasses.asdict(chosen))
    return chosen


def _loader(trial: Trial, choose: Choose) -> Measure:
    """Prepare the loader that the training uses, without the training."""
    decoding = choose()

    def measure() -> dict[str, float]:
        with _trainer(trial, decoding=decoding) as trainer:
            step = functools.partial(next, cast(TrainLoader, trainer.loader))
            seconds = seconds_per_step(step, trial.seconds, _num_steps_before(trial))
        return {aims.IMAGES: _batch_size(trial) / seconds}

    return measure


def _training(
    trial: Trial, name: str, choose: Choose = lambda: None, cache: Cache = "none", synthetic_data: bool = False
) -> Measure:
    """Prepare training by the recipe; each round is a new run of some seconds."""
    decoding = choose()

    def measure() -> dict[str, float]:
        window = _Window(_num_steps_before(trial), 1.5 * trial.seconds)
        with _trainer(trial, cache, decoding, synthetic_data=synthetic_data) as trainer:
            train_until(trainer, window.watch)
        trial.note(f"{name}: cores by thread", window.usage.cores)
        return {
            aims.IMAGES: _batch_size(trial) * window.num_steps / window.seconds,
            aims.CORES: window.usage.total,
            aims.CORES_BESIDE_DALI: window.usage.beside_dali,
        }

    return measure


@contextlib.contextmanager
def _trainer(
    trial: Trial, cache: Cache = "none", decoding: Decoding | None = None, **changes: Any
) -> Iterator[Trainer]:
    """Open a trainer of a new run of the recipe."""
    dataset = trial.dataset("jpeg")
    run = make_run(trial, dataset, _RECIPE, global_batch_size=_batch_size(trial), **ENDLESS, **changes)
    with open_trainer(trial, dataset, run, cache=cache) as trainer:
        if decoding is not None:
            cast(TrainLoader, trainer.loader).decode_by(decoding)
        yield trainer


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
