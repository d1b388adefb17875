"""Measure how well the orders mix: classes per batch, compared with a true permutation and a shuffle buffer.

No picture is read. The shards hold 1,000 classes either as `pipeline.shard` writes them, globally shuffled, or sorted
by class, the worst case for reading shard after shard. `StreamOrder` reads them in several streams with its default
window. The shuffle buffer, of the same size, works like those of webdataset and DALI's reader: shards are read one
after another, and a random one of the buffered samples is taken.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import tyro

from benchmarks.record import Comparison, publish, record_document, run_rounds
from pipeline.command import run_command
from pipeline.online.order import permutation
from pipeline.online.stream_order import StreamConfig, StreamOrder

_NUM_CLASSES, _SHARD_LENGTH = 1000, 1000
_NUM_STREAMS = (1, 16, 64)
_NUM_BATCHES = 500  # evenly spaced over an epoch
_PERMUTATION = "permutation"
_QUANTITIES = {"classes_per_batch": "different ones in a batch, mean of 500 batches over an epoch; a round is a seed"}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.mixing`."""

    rounds: int = 3
    """Number of seeds."""
    samples: int = 1_281_000
    """Samples in the training set, a multiple of 1000."""
    batch_size: int = 256
    """Samples per batch."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    alternatives = {
        f"{labels} shards, {name}": partial(_measure, order, labels, itertools.count(), arguments)
        for labels in ("shuffled", "sorted")
        for name, order in _ORDERS.items()
    }
    publish(
        record_document(
            name="mixing",
            command=f"python -m benchmarks.mixing --rounds {arguments.rounds} --samples {arguments.samples} "
            f"--batch-size {arguments.batch_size}",
            corpus=f"{arguments.samples:,} labels of {_NUM_CLASSES} classes in shards of {_SHARD_LENGTH}",
            quantities=_QUANTITIES,
            values=run_rounds(alternatives, arguments.rounds),
            comparisons=[
                Comparison(of=name, quantity="classes_per_batch", to=f"{name.partition(',')[0]}, {_PERMUTATION}")
                for name in alternatives
                if not name.endswith(_PERMUTATION)
            ],
            packages=["numpy"],
        )
    )
    return 0


def _streams(num_streams: int, num_samples: int, seed: int) -> np.ndarray:
    order = StreamOrder(_shard_lengths(num_samples), seed, num_streams, StreamConfig().window_size)
    return order.sample_ids(np.arange(num_samples))


def _buffered(num_samples: int, seed: int) -> np.ndarray:
    """Return the order of a shuffle buffer, as large as the streams' window, over shards in a random order."""
    generator = np.random.default_rng(seed)
    shards = generator.permutation(len(_shard_lengths(num_samples)))
    incoming = (shards[:, None] * _SHARD_LENGTH + np.arange(_SHARD_LENGTH)).reshape(-1)
    size = min(StreamConfig().window_size, num_samples)
    buffer, order = incoming[:size].copy(), np.empty_like(incoming)
    places = generator.integers(size, size=num_samples - size)
    for number, (place, sample_id) in enumerate(zip(places.tolist(), incoming[size:].tolist(), strict=True)):
        order[number] = buffer[place]
        buffer[place] = sample_id
    order[num_samples - size :] = generator.permutation(buffer)
    return order


def _shard_lengths(num_samples: int) -> list[int]:
    return [_SHARD_LENGTH] * (num_samples // _SHARD_LENGTH)


_ORDERS: dict[str, Callable[[int, int], np.ndarray]] = {
    _PERMUTATION: lambda num_samples, seed: permutation(seed, 0, num_samples),
    **{f"{number} streams": partial(_streams, number) for number in _NUM_STREAMS},
    "shuffle buffer": _buffered,
}


def _measure(
    order: Callable[[int, int], np.ndarray], labels: str, seeds: Iterator[int], arguments: Arguments
) -> Mapping[str, float]:
    seed, num_samples = next(seeds), arguments.samples
    classes = np.arange(num_samples) * _NUM_CLASSES // num_samples
    if labels == "shuffled":
        classes = classes[permutation(seed, 1, num_samples)]
    in_order = classes[order(num_samples, seed)]
    firsts = np.linspace(0, num_samples - arguments.batch_size, _NUM_BATCHES).astype(np.int64)
    counts = [len(np.unique(in_order[first : first + arguments.batch_size])) for first in firsts]
    return {"classes_per_batch": float(np.mean(counts))}


if __name__ == "__main__":
    run_command(main)
