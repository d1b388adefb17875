"""Scaling experiments with names: a function returns a full declaration; a variant replaces fields.

Any field can be overridden on the command line: `jobs/scale.py --experiment small_trial --steps 10`. Each docstring
says what the experiment shows, and what it costs.
"""

from collections.abc import Callable

from cluster.scaling.experiment import Experiment
from pipeline.command import InputError


def small_trial() -> Experiment:
    """Whether everything works here: a small model on 1 and 2 workers, strong and weak, on a slow and a faster link.

    By root, since links are shaped. Cost: some minutes on two cores.
    """
    return Experiment(
        name="small_trial",
        workers=(1, 2),
        global_batch_sizes=(32,),
        batch_sizes_per_worker=(32,),
        models=("alexnet_small:26",),
        exchanges=("allreduce", "factors"),
        links=(0.1, 1.0),
        cpus_per_worker=0.9,
        num_classes=10,
    )


def exchanges_on_links() -> Experiment:
    """Which exchange is fastest on which link: 1, 2 and 4 workers, three bandwidths, the paper's net and a small one.

    Strong scaling at a global batch of 64, weak scaling at 16 per worker. On two cores, links between four workers fit
    latency + bytes / bandwidth up to 1 Gbit/s. By root. Cost: 40 minutes on two cores of an AMD EPYC with AVX-512;
    --dry-run says it for this machine.
    """
    return Experiment(
        name="exchanges_on_links",
        workers=(1, 2, 4),
        global_batch_sizes=(64,),
        batch_sizes_per_worker=(16,),
        models=("alexnet_2012", "alexnet_small:26"),
        exchanges=("allreduce", "factors", "hybrid", "bf16"),
        links=(0.25, 0.5, 1.0),
        cpus_per_worker=0.45,
        steps=4,
    )


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    experiment.__name__: experiment for experiment in (small_trial, exchanges_on_links)
}


def get_experiment(name: str) -> Experiment:
    """Return an experiment by its name.

    Raises:
        InputError: There is no experiment with this name.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]()
