"""The optimiser and its learning rate, which is a pure function of the samples seen.

Nothing here knows the number of workers, and nothing but the optimiser's own buffers has a state: a resumed run, or one
on another world size, gets the same learning rates.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

SCHEDULES = ("constant", "step", "linear", "cosine")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights are updated; the defaults of the numbers are the paper's.

    Attributes:
        learning_rate: The highest of the run, for the recipe's global batch size.
        momentum: In [0, 1).
        weight_decay: Added to the gradient as weight_decay * weight; for weights and biases alike, as in the paper.
        nesterov: Nesterov's momentum.
        warmup: Fraction of the run over which the learning rate rises linearly from 0, in [0, 1).
        schedule: What follows the warm-up: `constant`; `step` (times `step_factor` at each milestone); `linear` or
            `cosine`, down to 0 at the end (with a warm-up: one cycle).
        milestones: For `step`: ascending fractions of the run, in (0, 1).
        step_factor: For `step`: in (0, 1).
    """

    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    warmup: float = 0.0
    schedule: str = "constant"
    milestones: tuple[float, ...] = ()
    step_factor: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate}: must be above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum}: must lie in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay}: must not be negative")
        if self.nesterov and self.momentum == 0:
            raise ValueError(f"nesterov={self.nesterov}: needs a momentum above 0")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup}: must lie in [0, 1), a fraction of the run")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r}: must be one of {', '.join(SCHEDULES)}")
        if bool(self.milestones) != (self.schedule == "step"):
            raise ValueError(f"milestones={self.milestones}: the schedule `step` needs them, the others have none")
        edges = (0.0, *self.milestones, 1.0)
        if not all(left < right for left, right in itertools.pairwise(edges)):
            raise ValueError(f"milestones={self.milestones}: must ascend within (0, 1), fractions of the run")
        if not 0 < self.step_factor < 1:
            raise ValueError(f"step_factor={self.step_factor}: must lie in (0, 1)")


def learning_rate(config: OptimizerConfig, samples_seen: int, total_samples: int) -> float:
    """Compute the learning rate of the step that follows `samples_seen` samples.

    Args:
        config: Says how.
        samples_seen: In [0, total_samples].
        total_samples: The run's length.

    Raises:
        ValueError: `samples_seen` lies outside the run.
    """
    if not 0 <= samples_seen <= total_samples or total_samples == 0:
        raise ValueError(f"samples_seen={samples_seen}: must lie in [0, {total_samples}], the run's length")
    progress = samples_seen / total_samples
    if progress < config.warmup:
        return config.learning_rate * progress / config.warmup
    remaining = (1 - progress) / (1 - config.warmup)
    match config.schedule:
        case "step":
            num_steps = sum(milestone <= progress for milestone in config.milestones)
            return config.learning_rate * config.step_factor**num_steps
        case "linear":
            return config.learning_rate * remaining
        case "cosine":
            return config.learning_rate * (1 - math.cos(math.pi * remaining)) / 2
        case _:
            return config.learning_rate


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Build stochastic gradient descent with momentum, as PyTorch writes it.

    v <- momentum v + gradient + weight_decay w;  w <- w - learning_rate v. The paper has the learning rate inside v,
    which differs only while the learning rate changes.
    """
    return torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        fused=True,  # one pass over the weights, which outgrow every cache
    )


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = value
