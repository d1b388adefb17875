"""What holds up a run, by the lines of its log."""

from collections.abc import Iterable

from cluster.run.run_log import Steps

BINDING_WAIT = 0.1  # share of a step: a loader that is waited for longer holds up the step


def data_wait_share(lines: Iterable[Steps]) -> float:
    """Return the share of the lines' time in which the first worker's device waited for batches; 0 for no lines."""
    seconds = waited = 0.0
    for line in lines:
        if line.images_per_second > 0:
            duration = len(line.losses) / line.images_per_second  # of a batch of one sample: the unit cancels
            seconds += duration
            waited += duration * line.data_wait_fraction
    return waited / seconds if seconds else 0.0
