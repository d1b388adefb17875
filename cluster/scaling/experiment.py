"""The declaration of a scaling experiment: its axes, and how often and how long each cell is measured.

Loads no torch. `cells.py` makes the cells, `jobs/experiments.py` has declarations with names.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cluster.lab.cpu_quota import check_limit
from cluster.lab.scaling_table import Loader
from cluster.lab.shaped_link import MAX_GIGABITS
from cluster.scaling.like import LikeCluster
from model.registry import NETWORKS, ModelConfig, check_image_size, is_known

ExchangeName = Literal["allreduce", "factors", "hybrid", "bf16"]
PrecisionName = Literal["float32", "bfloat16"]
_PAPERS_SIZE = 224
_AXES = (
    "workers", "global_batch_sizes", "batch_sizes_per_worker", "models", "precisions", "exchanges", "loaders", "links"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is measured. A cell is one choice on each axis.

    Attributes:
        name: Name of the experiment.
        workers: Numbers of workers.
        global_batch_sizes: Samples per step over all workers, the same for every number of workers: strong scaling.
        batch_sizes_per_worker: Samples per step of each worker: weak scaling. A cell that belongs to both is measured
            once.
        models: Models, as NAME or NAME:PIXELS, where PIXELS is the height and width of its input; 224 by default.
        precisions: Precisions of the computation, `float32` or `bfloat16`.
        exchanges: Exchanges of gradients. Each is compared with a step without any, which is measured too.
        loaders: `synthetic`, noise that is there at once, or `real`, pictures of --data.
        links: Bandwidths in Gbit/s that each worker's link is shaped to, headers included; none: links as they are.
        like: A cluster, such as "8 x 20000 img/s @ 100gbit": links get the bandwidth with which all-reduce takes as
            large a part of a step here as it does there. Replaces `links`.
        like_batch: Global batch of that cluster; None: as many samples per worker as here.
        cpus_per_worker: CPUs that each worker may use, at least 0.1; None: all.
        num_classes: Number of classes, without --data.
        steps: Timed steps of a cell in a block.
        warm_up_steps: Steps before, at least 2: in the first libraries choose their kernels. With the loader `real`,
            there are at least as many as the batches that it makes ahead.
        blocks: Number of blocks. Each starts its workers anew, so blocks are independent repeats; steps are not.
        seed: Seed of the cells' order, and of weights and pictures.
    """

    name: str = "scaling"
    workers: tuple[int, ...] = (1, 2)
    global_batch_sizes: tuple[int, ...] = ()
    batch_sizes_per_worker: tuple[int, ...] = ()
    models: tuple[str, ...] = ("alexnet_2012",)
    precisions: tuple[PrecisionName, ...] = ("float32",)
    exchanges: tuple[ExchangeName, ...] = ("allreduce", "factors", "hybrid")
    loaders: tuple[Loader, ...] = ("synthetic",)
    links: tuple[float, ...] = ()
    like: str | None = None
    like_batch: int | None = None
    cpus_per_worker: float | None = None
    num_classes: int = 1000
    steps: int = 6
    warm_up_steps: int = 2
    blocks: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: A field is invalid; the message names it, its value and what would be right.
        """
        for name in ("workers", "models", "precisions", "loaders"):
            if not getattr(self, name):
                raise ValueError(f"{name}=(): must have at least one value")
        for name in ("workers", "global_batch_sizes", "batch_sizes_per_worker"):
            if any(value < 1 for value in getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1 each")
        for name in ("num_classes", "steps", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.warm_up_steps < 2:
            raise ValueError(f"warm_up_steps={self.warm_up_steps}: must be at least 2")
        for name, kind in (("precisions", PrecisionName), ("exchanges", ExchangeName), ("loaders", Loader)):
            if unknown := set(getattr(self, name)) - set(get_args(kind)):
                raise ValueError(f"{name}: has {sorted(unknown)[0]!r}; must be of {', '.join(get_args(kind))}")
        if any(not 0 < link <= MAX_GIGABITS for link in self.links):
            raise ValueError(f"links={self.links}: must be above 0, and at most {MAX_GIGABITS:g} (Gbit/s)")
        if self.links and self.like is not None:
            raise ValueError(f"like={self.like!r}: replaces links; leave out one of them")
        if self.like_batch is not None and (self.like is None or self.like_batch < 1):
            raise ValueError(f"like_batch={self.like_batch}: must be at least 1, and goes with like")
        check_limit("cpus_per_worker", self.cpus_per_worker)
        for model in self.models:
            self._check_model(model)
        for name in _AXES:
            values = self.sized_models if name == "models" else getattr(self, name)
            if len(set(values)) < len(values):
                words = " ".join(map(str, getattr(self, name)))
                raise ValueError(f"{name}: {words} has a value twice; each may be named once")
        _ = self.like_cluster  # whether it can be read

    @property
    def like_cluster(self) -> LikeCluster | None:
        """The cluster that the links imitate."""
        return None if self.like is None else LikeCluster.parse(self.like)

    @property
    def sized_models(self) -> list[tuple[str, int]]:
        """Name and image size of each model."""
        return [_sized(model) for model in self.models]

    @property
    def needs_hosts(self) -> bool:
        """Whether workers need hosts of the lab: links are shaped or CPUs limited."""
        return bool(self.links) or self.like is not None or self.cpus_per_worker is not None

    def to_json(self) -> dict[str, Any]:
        """Return the declaration as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def without_blocks(self) -> "Experiment":
        """Return the declaration of one block: what may not change while an experiment is under way."""
        return dataclasses.replace(self, blocks=1)

    @staticmethod
    def _check_model(model: str) -> None:
        name, size = _sized(model)
        if not is_known(name):
            raise ValueError(f"models: there is no model {name!r}; there are {', '.join(NETWORKS)}")
        check_image_size(ModelConfig(name=name), size)


def _sized(model: str) -> tuple[str, int]:
    name, colon, size = model.partition(":")
    if colon and not size.isdigit():
        raise ValueError(f"models: {model!r} must be NAME or NAME:PIXELS, such as alexnet_small:26")
    return name, int(size) if colon else _PAPERS_SIZE
