"""Convolutions are data-parallel, dense layers model-parallel: each worker has a part of the dense weights.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, scheme (a): a worker computes its
own samples' features, then all samples pass through the dense layers, of which each worker has the weights of some
inputs; see `cluster/exchange/cut_layers.py`. What travels are features, partial sums and their gradients, but no
gradient of a dense weight. All other gradients are summed as by all-reduce.

Each of w workers sends c (2 n + 2 B (F / w + sum(out))) per step, in values: c = (w - 1) / w, n parameters that are not
cut, a global batch of B, F inputs of the first dense layer, and the outputs of each. For `alexnet_2012` that is 16 MB
on 2 workers and 26 MB on 8 at B = 128, in float32. In bfloat16 the activations take half.

Trade-off: exact; and a worker keeps, and updates, only its part of the dense weights and of the optimiser's state. But
the layers wait for each exchange, in both passes, which hides behind nothing. A checkpoint moves the dense weights and
their optimiser state to the first worker, and an evaluation the weights to all. Each worker must process a batch in as
many pieces as the others.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.exchange.base import Exchange
from cluster.exchange.cut import Cut
from cluster.exchange.cut_layers import CutDropout, CutLinear, WholeBatch
from cluster.exchange.dense_layers import dense_chain
from cluster.exchange.replicated import replicated
from model.dropout import CountedDropout
from pipeline.command import InputError
from pipeline.online.order import RankShare


class Hybrid(Exchange):
    """Exchange by dense layers that are cut; for several workers, and a model whose dense layers form a chain.

    Raises:
        InputError: The micro-batches do not fit; see `check`.
    """

    name = "hybrid"
    cuts_weights: ClassVar[bool] = True

    def __init__(self, share: RankShare) -> None:
        super().__init__(share)
        self.check(share)
        of_ranks = [dataclasses.replace(share, rank=rank).pieces for rank in range(share.world_size)]
        self._pieces = [Cut(0, tuple(p.stop - p.start for p in pieces)) for pieces in zip(*of_ranks, strict=True)]
        self._num_passed = 0  # pieces of the step
        self._batch = WholeBatch()
        self._layers: list[CutLinear] = []
        self._cuts: dict[str, Cut] = {}
        self._cut_parameters: set[nn.Parameter] = set()

    @staticmethod
    def check(share: RankShare) -> None:
        """Check that all workers have the same number of micro-batches.

        Raises:
            InputError: They do not; the message names the next larger size that fits.
        """
        if not share.has_equal_pieces:
            raise InputError(
                f"--micro-batch-size {share.micro_batch_size} does not fit --exchange hybrid: it cuts the parts of "
                f"{share.world_size} workers of a global batch of {share.global_batch_size} into unequal numbers of "
                f"micro-batches; use --micro-batch-size {2 * share.group_size} or more, or another exchange"
            )

    def wrap(self, model: nn.Module) -> nn.Module:
        """Replace the dense layers in `model`, and dropout between them, and return the module to call."""
        chain = dense_chain(model)
        if chain is None:
            raise ValueError("the model's dense layers do not form a chain, which `hybrid` needs")
        for index, layer in enumerate(chain.layers, chain.first):
            if isinstance(layer, nn.Linear):
                is_last = index == len(chain.container) - 1
                self._layers.append(CutLinear(layer, self._batch, is_first=not self._layers, is_last=is_last))
                chain.container[index] = self._layers[-1]
            elif isinstance(layer, CountedDropout):
                first_unit = self._layers[-1].outputs.first_of(self.rank)
                chain.container[index] = CutDropout(layer, self._batch, first_unit)
        self._drops_units = any(isinstance(layer, CutDropout) and layer.probability for layer in chain.layers)
        for name, layer in model.named_modules():
            if isinstance(layer, CutLinear):
                self._cuts |= {f"{name}.{parameter}": cut for parameter, cut in layer.cuts.items()}
        self._cut_parameters = {model.get_parameter(name) for name in self._cuts}
        self._parallel = replicated(model, self._cut_parameters)
        return _Wrapped(self._parallel, self)

    @property
    def loss_scale(self) -> float:
        """Factor 1 / G: the gradients are sums over the workers."""
        return 1 / self.share.global_batch_size

    def accumulating(self) -> contextlib.AbstractContextManager[None]:
        """Return a context without the exchange of the gradients; the dense layers exchange in each pass."""
        if isinstance(self._parallel, nn.parallel.DistributedDataParallel):
            return self._parallel.no_sync()
        return contextlib.nullcontext()

    def finish(self) -> None:
        """Note that the step's last piece has passed."""
        self._num_passed = 0

    @contextlib.contextmanager
    def passing(self, num_samples: int, positions: Tensor | None) -> Iterator[None]:
        """Return a context for the forward pass of the step's next piece.

        Args:
            num_samples: Number of this worker's samples.
            positions: Their positions, or None.
        """
        samples = self._pieces[self._num_passed]
        if num_samples != samples.sizes[self.rank]:
            raise RuntimeError(f"a piece of {num_samples} samples; the share has one of {samples.sizes[self.rank]}")
        self._num_passed += 1
        with self._batch.passing(samples, positions if self._drops_units else None):
            yield

    def squared_norms(self, parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Tensor:
        """Return the squared norms of whole tensors: those of the parts are summed; every worker calls this."""
        norms_N = super().squared_norms(parameters, values)
        indices = [index for index, parameter in enumerate(parameters) if parameter in self._cut_parameters]
        if indices:
            sums = torch.stack([norms_N[index] for index in indices])
            dist.all_reduce(sums)
            for index, total in zip(indices, sums, strict=True):
                norms_N[index] = total
        return norms_N

    def is_cut(self, name: str) -> bool:
        """Return whether a worker has only a part of the parameter or buffer `name`."""
        return name in self._cuts

    def whole(self, name: str, value: Tensor) -> Tensor:
        """Return a copy on the CPU for a checkpoint, whole on the first worker."""
        return self._cuts[name].collected(value) if name in self._cuts else value.detach().to("cpu", copy=True)

    def part(self, name: str, value: Tensor) -> Tensor:
        """Return this worker's part of a whole tensor."""
        return self._cuts[name].part(value, self.rank) if name in self._cuts else value

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Return a context in which the model works alone, with whole weights; every worker enters it."""
        with contextlib.ExitStack() as stack:
            for layer in self._layers:
                stack.enter_context(layer.gathered())
            yield


class _Wrapped(nn.Module):
    """The model, which tells the layers that are cut of the samples that pass."""

    def __init__(self, parallel: nn.Module, exchange: Hybrid) -> None:
        super().__init__()
        self._parallel, self._exchange = parallel, exchange

    def forward(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        with self._exchange.passing(len(images), positions):
            logits: Tensor = self._parallel(images, positions)
        return logits
