"""Update rules: how a gradient changes the weights. The learning rate over time is in `model/schedules.py`.

Nothing here knows the number of workers, and the only state is in the optimiser's own buffers.
"""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.sgd import sgd

from model.lars import Lars, SquaredNorms, squared_norms
from model.optim_config import OptimizerConfig


class PaperSGD(Optimizer):
    """Momentum with the learning rate inside the velocity: Krizhevsky et al. 2012, section 5; also Caffe's SGD.

    v <- momentum v - weight_decay learning_rate w - learning_rate gradient;  w <- w + v.

    After a change of the rate, the weights keep their old speed for a while; PyTorch's momentum changes speed at once.
    Torch's own kernel computes the update at a rate of 1, with `1 - dampening` as the gradient's factor: one pass over
    the weights. The state `velocity` holds -v.

    Args:
        groups: Parameter groups.
        lr: Learning rate.
        momentum: Factor of the old velocity, in (0, 1).
        weight_decay: Factor of the weights in the formula above.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["velocity"] = torch.zeros_like(parameter, requires_grad=False)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a closure has no use here
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            sgd(
                parameters,
                [parameter.grad for parameter in parameters],
                [self.state[parameter]["velocity"] for parameter in parameters],
                lr=1.0,
                dampening=1 - group["lr"],
                momentum=group["momentum"],
                weight_decay=group["weight_decay"],
                nesterov=False,
                maximize=False,
                foreach=False,
                fused=True,
            )


def build_optimizer(model: nn.Module, config: OptimizerConfig, norms: SquaredNorms = squared_norms) -> Optimizer:
    """Build the optimiser over two parameter groups, weights and biases.

    - `sgd`: v <- momentum v + gradient + weight_decay w;  w <- w - learning_rate v  (torch.optim.SGD).
    - `sgd_paper`: see `PaperSGD`; the two differ only while the learning rate changes.
    - `adam`: Kingma and Ba 2015, with the decay in the gradient (torch.optim.Adam).
    - `lars`: see `Lars`.

    Where torch has a `fused` kernel, an update is one pass over the weights, which are too large for any cache.

    Args:
        model: Model to train.
        config: Settings.
        norms: Function that computes the norms of whole tensors, for `lars`; by default, the model has them whole.
    """
    decay_biases = config.name != "lars" if config.decay_biases is None else config.decay_biases
    weights = {
        "params": [parameter for parameter in model.parameters() if parameter.ndim > 1],
        "learning_rate_factor": 1.0,
        "weight_decay": config.weight_decay,
    }
    biases = {
        "params": [parameter for parameter in model.parameters() if parameter.ndim <= 1],
        "learning_rate_factor": config.bias_learning_rate_factor,
        "weight_decay": config.weight_decay if decay_biases else 0.0,
    }
    if config.name == "lars":
        weights["always_adapt"], biases["always_adapt"] = True, decay_biases
    groups = [group for group in (weights, biases) if group["params"]]
    optimizer = _build(groups, config, norms)
    set_learning_rate(optimizer, config.learning_rate)
    return optimizer


def _build(groups: list[dict[str, Any]], config: OptimizerConfig, norms: SquaredNorms) -> Optimizer:
    rate, momentum, decay = config.learning_rate, config.momentum, config.weight_decay
    match config.name:
        case "sgd":
            return torch.optim.SGD(
                groups, lr=rate, momentum=momentum, weight_decay=decay, nesterov=config.nesterov, fused=True
            )
        case "sgd_paper":
            return PaperSGD(groups, lr=rate, momentum=momentum, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(
                groups, lr=rate, betas=config.betas, eps=config.epsilon, weight_decay=decay, fused=True
            )
        case "lars":
            return Lars(
                groups,
                lr=rate,
                momentum=momentum,
                weight_decay=decay,
                nesterov=config.nesterov,
                trust_coefficient=config.trust_coefficient,
                norms=norms,
            )


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Set the learning rate of the next step, multiplied by each group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["learning_rate_factor"]
