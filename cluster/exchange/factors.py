"""Every worker computes the gradients of the dense layers from the inputs and output gradients of all samples.

The gradient of a layer's weights is D^T X: D (B, out) and X (B, in) are the gradients of its outputs and its inputs, a
row per sample of the global batch. In place of the gradient, workers gather X, which leaves during the forward pass,
and D, which leaves during the backward pass; nothing waits for them until backward is through. The gradients of all
other parameters are summed as by all-reduce.

Each of w workers sends (w - 1) / w times 2 n + B times the sum of (in + out) over the dense layers, in values: n
parameters outside of dense layers, a global batch of B. For `alexnet_2012` the sum is 26,600; at B = 128 that is 16 MB
on 2 workers and 28 MB on 8. In bfloat16 the gathered values take half.

Trade-off: exact, and weights, optimiser and checkpoints stay as they are. But each worker computes the gradients of the
dense weights for the whole global batch, 2.7 % of the operations of its step for each further worker, and holds X and D
of all samples. Each worker's sums are its own, so unlike CPUs may round them differently; see
`cluster/exchange/replicas.py`. Above B = 4,400, all-reduce sends less.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cluster.exchange.base import Exchange
from cluster.exchange.collectives import Gathering, gather_samples
from cluster.exchange.dense_layers import dense_layers
from cluster.exchange.replicated import replicated
from pipeline.command import InputError
from pipeline.online.order import RankShare


class Factors(Exchange):
    """Exchange of the dense layers' inputs and output gradients; for several workers, and a model with dense layers."""

    name = "factors"

    def __init__(self, share: RankShare) -> None:
        super().__init__(share)
        self._layers: list[FactorLinear] = []
        self._accumulating = contextlib.nullcontext

    def wrap(self, model: nn.Module) -> nn.Module:
        """Replace the dense layers in `model` by layers with the same parameters, and return the module to call."""
        for name, layer in dense_layers(model).items():
            self._layers.append(FactorLinear(layer, self.share.largest))
            model.set_submodule(name, self._layers[-1])
        self._parallel = replicated(model, [p for layer in self._layers for p in layer.parameters()])
        return self._parallel

    @property
    def loss_scale(self) -> float:
        """Factor 1 / G: the gradients are sums over the workers."""
        return 1 / self.share.global_batch_size

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """Keep the factors of the backward passes inside the context, for the pass after it to send."""
        with contextlib.ExitStack() as stack:
            if isinstance(self._parallel, nn.parallel.DistributedDataParallel):
                stack.enter_context(self._parallel.no_sync())
            for layer in self._layers:
                layer.is_accumulating = True
            try:
                yield
            finally:
                for layer in self._layers:
                    layer.is_accumulating = False

    def finish(self) -> None:
        """Compute the dense layers' gradients, in the order in which their factors have left."""
        for layer in reversed(self._layers):
            layer.compute_gradients()


class FactorLinear(nn.Module):
    """A dense layer whose parameters get their gradients from the factors of all workers.

    Args:
        layer: Layer to replace; its parameters are taken over.
        num_rows: Largest number of samples of a worker; smaller parts are padded with zeros.

    Attributes:
        is_accumulating: Whether the factors are kept until the next pass.
    """

    def __init__(self, layer: nn.Linear, num_rows: int) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.is_accumulating = False
        self._inputs, self._slopes = _Factor(num_rows), _Factor(num_rows)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the outputs (B, ..., out) of inputs (B, ..., in)."""
        if not (self.training and torch.is_grad_enabled()):
            return functional.linear(inputs, self.weight, self.bias)
        parameters: list[Tensor | None] = [self.weight.detach(), None if self.bias is None else self.bias.detach()]
        device = inputs.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            inputs, parameters = inputs.to(dtype), [None if p is None else p.to(dtype) for p in parameters]
        # The weights are an argument so that the outputs require gradients even if the inputs don't.
        outputs: Tensor = _FactorFunction.apply(inputs, self.weight, *parameters, self)
        return outputs

    def keep_inputs(self, inputs: Tensor) -> None:
        """Take the inputs of a forward pass."""
        self._inputs.add(inputs, self.is_accumulating)

    def keep_slopes(self, slopes: Tensor) -> None:
        """Take the outputs' gradients of a backward pass."""
        self._slopes.add(slopes, self.is_accumulating)

    def compute_gradients(self) -> None:
        """Set the gradients of the parameters, once the factors of all workers have arrived."""
        inputs, slopes = self._inputs.whole(), self._slopes.whole()
        if self.weight.grad is not None:
            raise InputError(
                "the weights of a dense layer are also used outside of the layer, which --exchange factors can't do; "
                "train with --exchange allreduce"
            )
        if inputs is None or slopes is None:  # the step did not use the layer
            return
        inputs, slopes = inputs.flatten(0, -2), slopes.flatten(0, -2)
        self.weight.grad = (slopes.T @ inputs).to(self.weight.dtype)
        if self.bias is not None:
            self.bias.grad = slopes.sum(dim=0).to(self.bias.dtype)


class _FactorFunction(torch.autograd.Function):
    """A dense layer's outputs; in place of the parameters' gradients, its layer gets the factors."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, trained: Tensor, weight: Tensor, bias: Tensor | None, layer: FactorLinear
    ) -> Tensor:
        ctx.save_for_backward(weight, inputs)  # the inputs for autograd's check that they are still the same
        ctx.layer = layer
        layer.keep_inputs(inputs.detach())
        return functional.linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        weight, _ = ctx.saved_tensors
        ctx.layer.keep_slopes(slopes)
        return slopes @ weight if ctx.needs_input_grad[0] else None, None, None, None, None


class _Factor:
    """One factor of a dense layer's gradient: rows of this worker's passes, then of all workers."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._own: list[Tensor] = []
        self._gathering: Gathering | None = None

    def add(self, rows: Tensor, is_accumulating: bool) -> None:
        """Take the rows of a pass; send all rows so far unless more passes follow."""
        if self._gathering is not None:
            raise InputError(
                "a dense layer is used twice in a forward pass, which --exchange factors can't do; train with "
                "--exchange allreduce"
            )
        self._own.append(rows)
        if not is_accumulating:
            self._gathering = gather_samples(self._own, self._num_rows)
            self._own = []

    def whole(self) -> Tensor | None:
        """Wait for the rows of all workers, and return them, or None if the step had none."""
        if self._gathering is None:
            return None
        gathered, self._gathering = self._gathering.wait(), None
        return gathered
