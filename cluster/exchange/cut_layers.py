"""Dense layers whose weights are cut: each worker has the columns of some inputs, and all samples pass through.

Let B_r be the number of this worker's samples and B of all, F the inputs of the first layer, and F_r, in_r, out_r this
worker's part of some units:

    features       (B_r, F)   --  all to all                           -->  (B, F_r)
    hidden layer   (B, in_r)  --  times W (out, in_r), sum by units    -->  (B, out_r), plus bias (out_r)
    last layer     (B, in_r)  --  times W (out, in_r), sum by samples  -->  (B_r, out), plus bias (out)

A sum is a scatter of partial sums: each worker gets its part of all of them, and adds them up in rank order. The
backward pass mirrors this: gradients are gathered where sums were scattered. So the gradient of a weight that is cut is
the whole one, summed over all samples; that of the last bias is a sum over a worker's own samples.

Under autocast what travels has the dtype of autocast; partial sums are added in float32 and then rounded.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cluster.exchange.collectives import Gathering, gather_samples
from cluster.exchange.cut import Cut, gather, recut, scatter_sum
from model.dropout import CountedDropout


class WholeBatch:
    """The samples that all workers pass through the layers together."""

    def __init__(self) -> None:
        self._samples: Cut | None = None
        self._gathering: Gathering | None = None
        self._positions: Tensor | None = None

    @contextlib.contextmanager
    def passing(self, samples: Cut, positions: Tensor | None) -> Iterator[None]:
        """Return a context for a forward pass.

        Args:
            samples: How the samples are distributed.
            positions: Positions of this worker's samples, or None.
        """
        self._samples, self._positions = samples, None
        if positions is not None:  # sent now, as they are needed late in the pass
            self._gathering = gather_samples([positions], max(samples.sizes))
        try:
            yield
        finally:
            self._samples = self._gathering = self._positions = None

    @property
    def samples(self) -> Cut:
        """How the samples are distributed."""
        if self._samples is None:
            raise RuntimeError("layers that are cut were called outside of the exchange's module")
        return self._samples

    @property
    def positions(self) -> Tensor | None:
        """Positions of all samples, int64 (B,), or None."""
        if self._gathering is not None:
            padded = self._gathering.wait().chunk(len(self.samples.sizes))
            rows = [part[:size] for part, size in zip(padded, self.samples.sizes, strict=True)]
            self._positions, self._gathering = torch.cat(rows), None
        return self._positions


class CutLinear(nn.Module):
    """A dense layer with this worker's part of the weights.

    Args:
        layer: Layer with the whole weights, to replace.
        batch: Samples of the pass.
        is_first: Whether the inputs are the features of this worker's samples.
        is_last: Whether the outputs are those of this worker's samples; then the bias is whole.

    Attributes:
        cuts: How the parameters are cut, by name; a whole one is absent.
        outputs: How the units of the outputs (B, out) are cut, unless this is the last layer.
    """

    def __init__(self, layer: nn.Linear, batch: WholeBatch, *, is_first: bool, is_last: bool) -> None:
        super().__init__()
        world_size, rank = dist.get_world_size(), dist.get_rank()
        self._batch, self._is_first, self._is_last = batch, is_first, is_last
        self._inputs = Cut.of_units(1, layer.in_features, world_size)
        self.outputs = Cut.of_units(1, layer.out_features, world_size)
        self.cuts = {"weight": self._inputs}
        self.weight, self.bias = nn.Parameter(self._inputs.part(layer.weight, rank)), layer.bias
        if layer.bias is not None and not is_last:
            self.cuts["bias"] = Cut(0, self.outputs.sizes)
            self.bias = nn.Parameter(self.cuts["bias"].part(layer.bias, rank))
        self._whole: tuple[Tensor, Tensor | None] | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the outputs; see the module for the shapes."""
        if self._whole is not None:
            return functional.linear(inputs, *self._whole)
        samples, device = self._batch.samples, inputs.device.type
        if torch.is_autocast_enabled(device):
            inputs = inputs.to(torch.get_autocast_dtype(device))
        if self._is_first:
            inputs = _Recut.apply(inputs, samples, self._inputs)
        partial = functional.linear(inputs, self.weight)
        outputs: Tensor = _ScatterSum.apply(partial, samples if self._is_last else self.outputs)
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.to(partial.dtype)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Return a context in which the layer has the whole weights and works alone; every worker enters it."""
        whole = {name: cut.gathered(getattr(self, name)) for name, cut in self.cuts.items()}
        self._whole = whole["weight"], whole.get("bias", self.bias)
        try:
            yield
        finally:
            self._whole = None


class CutDropout(CountedDropout):
    """Dropout of this worker's units, for all samples.

    Args:
        layer: Layer to replace.
        batch: Samples of the pass.
        first_unit: Number of this worker's first unit.
    """

    def __init__(self, layer: CountedDropout, batch: WholeBatch, first_unit: int) -> None:
        super().__init__(
            layer.probability, seed=layer.seed, layer=layer.layer, scaling=layer.scaling, first_unit=first_unit
        )
        self._batch = batch

    def forward(self, activations: Tensor, positions: Tensor | None = None) -> Tensor:
        """Drop units; the positions of this worker's samples are replaced by those of all."""
        return super().forward(activations, self._batch.positions if self.training else positions)


class _Recut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, old: Cut, new: Cut) -> Tensor:
        ctx.cuts = old, new
        return recut(part, old, new)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        old, new = ctx.cuts
        return recut(slopes, new, old) if ctx.needs_input_grad[0] else None, None, None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, cut: Cut) -> Tensor:
        ctx.cut, ctx.dtype = cut, partial.dtype
        return scatter_sum(partial, cut)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        return gather(slopes.to(ctx.dtype), ctx.cut), None
