"""A recipe's settings for the optimiser and the learning rate. Loads no torch.

`model/optim.py` has the update rules, `model/schedules.py` the learning rate.
"""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Literal, get_args

OptimizerName = Literal["sgd", "sgd_paper", "adam", "lars"]
ScheduleName = Literal["constant", "step", "poly", "linear", "cosine", "plateau"]

# Optimisers or schedules that use a field; all of them use the fields not listed here.
_USED_BY: dict[str, tuple[str, ...]] = {
    "momentum": ("sgd", "sgd_paper", "lars"),
    "nesterov": ("sgd", "lars"),
    "betas": ("adam",),
    "epsilon": ("adam",),
    "trust_coefficient": ("lars",),
    "milestones": ("step",),
    "step_factor": ("step", "plateau"),
    "power": ("poly",),
    "patience": ("plateau",),
    "min_improvement": ("plateau",),
    "max_reductions": ("plateau",),
}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of the weight update; the numeric defaults are the paper's. A field that is not used keeps its default.

    "Biases" are all one-dimensional parameters, including the scales of batch normalisation.

    Attributes:
        name: `sgd`, with PyTorch's momentum; `sgd_paper`, with the learning rate inside the velocity; `adam`; `lars`.
        learning_rate: Highest learning rate of the run, for a global batch of `reference_batch_size`.
        reference_batch_size: Global batch size that `learning_rate` is meant for; for another `--global-batch-size` the
            rate is scaled by global_batch_size / reference_batch_size. None: the rate is never scaled.
        bias_learning_rate_factor: Factor of the biases' learning rate; 2 in Caffe's AlexNet.
        weight_decay: Factor of the weights when they are added to the gradient.
        decay_biases: Whether biases decay too, as in the paper but not in Caffe. Under `lars` it also decides whether
            biases get a layer-wise rate. None: yes, except under `lars`.
        momentum: Momentum of SGD and LARS, in [0, 1).
        nesterov: Whether `sgd` and `lars` use Nesterov's momentum.
        betas: For `adam`: decay of the means of the gradients and of their squares, each in [0, 1).
        epsilon: For `adam`: number added to the root of the mean square.
        trust_coefficient: For `lars`: a layer's step, as a fraction of its weights' norm, at learning rate 1.
        warmup: Fraction of the run over which the learning rate rises linearly from 0, in [0, 1).
        schedule: Learning rate after the warm-up: `constant`; `step` (times `step_factor` at each milestone); `poly`
            (proportional to the remaining fraction of the run, raised to `power`), `linear` or `cosine` (with a
            warm-up: one cycle), which reach 0 at the end; `plateau` (times `step_factor` when the error on `val` no
            longer falls).
        milestones: For `step`: ascending fractions of the run, in (0, 1).
        step_factor: For `step` and `plateau`: factor of each reduction, in (0, 1).
        power: For `poly`: exponent, above 0.
        patience: For `plateau`: number of consecutive evaluations without improvement that count as a stall.
        min_improvement: For `plateau`: margin, in [0, 1); a top-1 error is an improvement if it is lower than the best
            by more than this.
        max_reductions: For `plateau`: number of reductions after which the next stall ends the run.
    """

    name: OptimizerName = "sgd"
    learning_rate: float = 0.01
    reference_batch_size: int | None = None
    bias_learning_rate_factor: float = 1.0
    weight_decay: float = 5e-4
    decay_biases: bool | None = None
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    trust_coefficient: float = 0.001
    warmup: float = 0.0
    schedule: ScheduleName = "constant"
    milestones: tuple[float, ...] = ()
    step_factor: float = 0.1
    power: float = 2.0
    patience: int = 5
    min_improvement: float = 0.0
    max_reductions: int = 3

    def __post_init__(self) -> None:
        for field, names in (("name", OptimizerName), ("schedule", ScheduleName)):
            if getattr(self, field) not in get_args(names):
                raise ValueError(f"{field}={getattr(self, field)!r}: must be one of {', '.join(get_args(names))}")
        self._check_update()
        self._check_schedule()
        for field, users in _USED_BY.items():
            value, default = getattr(self, field), getattr(type(self), field)
            if value != default and self.name not in users and self.schedule not in users:
                raise ValueError(f"{field}={value}: only {' and '.join(users)} use it; leave it at {default}")

    def _check_update(self) -> None:
        for field in ("learning_rate", "bias_learning_rate_factor", "epsilon", "trust_coefficient"):
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"{field}={getattr(self, field)}: must be above 0")
        if self.reference_batch_size is not None and self.reference_batch_size < 1:
            raise ValueError(f"reference_batch_size={self.reference_batch_size}: must be at least 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay}: must not be negative")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum}: must lie in [0, 1)")
        if self.momentum == 0 and self.nesterov:
            raise ValueError(f"nesterov={self.nesterov}: needs a momentum above 0")
        if self.momentum == 0 and self.name == "sgd_paper":
            raise ValueError("momentum=0: without it `sgd_paper` is `sgd`; use that name")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: must be two numbers in [0, 1)")

    def _check_schedule(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup}: must lie in [0, 1), a fraction of the run")
        if self.schedule == "step" and not self.milestones:
            raise ValueError(f"milestones={self.milestones}: the schedule `step` needs them")
        edges = (0.0, *self.milestones, 1.0)
        if not all(left < right for left, right in itertools.pairwise(edges)):
            raise ValueError(f"milestones={self.milestones}: must ascend within (0, 1), fractions of the run")
        if not 0 < self.step_factor < 1:
            raise ValueError(f"step_factor={self.step_factor}: must lie in (0, 1)")
        if not 0 < self.power < math.inf:
            raise ValueError(f"power={self.power}: must be above 0")
        if self.patience < 1:
            raise ValueError(f"patience={self.patience}: must be at least 1")
        if not 0 <= self.min_improvement < 1:
            raise ValueError(f"min_improvement={self.min_improvement}: must lie in [0, 1), a fraction of the samples")
        if self.max_reductions < 0:
            raise ValueError(f"max_reductions={self.max_reductions}: must not be negative")

    def for_batch_size(self, global_batch_size: int) -> "OptimizerConfig":
        """Return this configuration with the learning rate scaled to a global batch.

        Linear scaling: Krizhevsky, One weird trick, 2014; Goyal et al. 2017, who add a warm-up.
        """
        if self.reference_batch_size is None:
            return self
        rate = self.learning_rate * (global_batch_size / self.reference_batch_size)
        return dataclasses.replace(self, learning_rate=rate, reference_batch_size=None)
