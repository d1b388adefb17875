"""LARS, layer-wise adaptive rates: You, Gitman, Ginsburg, "Large batch training of convolutional networks", 2017."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.sgd import sgd

_EPSILON = 1e-8  # as timm writes it
_SETTINGS = ("weight_decay", "trust_coeff")
SquaredNorms = Callable[[Sequence[nn.Parameter], Sequence[Tensor]], Tensor]
"""Function (N parameters, a tensor of each one's form) -> squared norms of the whole tensors, float64 (N,)."""


def squared_norms(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Tensor:
    """Return the squared norms of tensors that this process has whole; see `SquaredNorms`."""
    return torch.stack([torch.linalg.vector_norm(value).double() for value in values]).square()


class Lars(Optimizer):
    """SGD with momentum whose gradients are scaled to their weights' norms, as timm's `Lars` writes it.

    The full gradient of a tensor, gradient + weight_decay w, is scaled by
    trust_coefficient |w| / (|gradient| + weight_decay |w| + 1e-8) before it goes into the momentum. The scale is 1
    where one of the norms is 0. Departs from the paper: the learning rate is outside the momentum.

    The names in its state are timm's, so that it reads checkpoints of older versions, which used timm's.

    Args:
        groups: Parameter groups; gradients are scaled in those with `always_adapt`.
        lr: Learning rate.
        momentum: Momentum, in [0, 1).
        weight_decay: Factor of the weights in the full gradient.
        nesterov: Whether to use Nesterov's momentum.
        trust_coefficient: A tensor's step as a fraction of its norm, at learning rate 1.
        norms: Function that computes the norms of whole tensors, of which a worker may have only a part.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
        trust_coefficient: float,
        norms: SquaredNorms = squared_norms,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(groups, {**settings, "trust_coeff": trust_coefficient, "always_adapt": False})
        self._norms = norms

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a closure has no use here
        """Update all parameters that have a gradient; the gradients become the full, scaled ones."""
        trained = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        scales = self._scales([(group, parameters) for group, parameters in trained if group["always_adapt"]])
        for group, parameters in trained:
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad.add_(parameter, alpha=group["weight_decay"])
                if group["always_adapt"]:
                    parameter.grad.mul_(next(scales).to(parameter.dtype))
            velocities = [self.state[parameter].get("momentum_buffer") for parameter in parameters]
            sgd(
                parameters,
                [parameter.grad for parameter in parameters if parameter.grad is not None],
                velocities,
                lr=group["lr"],
                momentum=group["momentum"],
                dampening=0,
                weight_decay=0,
                nesterov=group["nesterov"],
                maximize=False,
                foreach=False,
                fused=True,
            )
            if group["momentum"]:
                for parameter, velocity in zip(parameters, velocities, strict=True):
                    self.state[parameter]["momentum_buffer"] = velocity

    def _scales(self, adapted: Sequence[tuple[dict[str, Any], Sequence[nn.Parameter]]]) -> Iterator[Tensor]:
        """Return the scale of each parameter's full gradient, in order."""
        pairs = [(group, parameter) for group, parameters in adapted for parameter in parameters]
        if not pairs:
            return iter(())
        parameters = [parameter for _, parameter in pairs]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        weights, slopes = self._norms(parameters * 2, [*parameters, *gradients]).sqrt().chunk(2)
        decays, factors = (weights.new_tensor([group[name] for group, _ in pairs]) for name in _SETTINGS)
        scales = factors * weights / (slopes + decays * weights + _EPSILON)
        return iter(torch.where((weights > 0) & (slopes > 0), scales, 1.0))
