"""What the exact exchanges cost: bytes that a worker sends per step, and a prediction of the step's time.

With w workers, c = (w - 1) / w, a global batch of B, n_c parameters outside of dense layers and n_d in them, dense
layers of (in, out) units, and F inputs of the first, a worker sends, in values:

    allreduce   2 c (n_c + n_d)                                 a ring: scatter the sums, gather them
    factors     2 c n_c + c B sum(in + out)                     inputs and output gradients
    hybrid      2 c n_c + 2 c B (F / w + sum(out))              features, partial sums; back: their gradients

Gradients are float32. What is exchanged of activations has the dtype that the layers compute in.

The prediction: a step computes for some time, and of the exchange only what does not fit behind the computation of the
backward pass comes on top. The activations of `hybrid` never fit: the layers wait for them.
"""

import math
from dataclasses import dataclass

from torch import nn

from cluster.exchange.cut import UNITS_TOGETHER
from cluster.exchange.dense_layers import dense_chain, dense_layers
from cluster.exchange.names import Strategy

_GRADIENT_BYTES = 4
# Gradients that are sent together: DistributedDataParallel's default, and that of `replicated.py`.
_BUCKET_BYTES: dict[Strategy, int] = {"allreduce": 25 * 2**20, "factors": 2**20, "hybrid": 2**20}
BACKWARD_SHARE = 2 / 3  # of a step's operations


@dataclass(frozen=True)
class Traffic:
    """What a worker sends in a step, and what it computes for that alone.

    Attributes:
        num_hidden: Number of collective operations that may go on during the backward pass.
        hidden_bytes: Bytes that a worker sends in them.
        num_awaited: Number of collective operations for which the computation waits.
        awaited_bytes: Bytes that a worker sends in them.
        extra_operations: Floating-point operations of a worker.
    """

    num_hidden: int = 0
    hidden_bytes: float = 0.0
    num_awaited: int = 0
    awaited_bytes: float = 0.0
    extra_operations: float = 0.0


@dataclass(frozen=True)
class Workload:
    """What a model exchanges.

    Attributes:
        num_other: Number of trained parameters outside of dense layers.
        num_dense: Number of parameters of the dense layers.
        units: Inputs and outputs of each dense layer.
        is_chain: Whether the dense layers form a chain, which `hybrid` needs.
        global_batch_size: Samples per step over all workers.
        activation_bytes: Bytes of one activation.
        gradient_bytes: Bytes of one gradient.
        num_pieces: Number of micro-batches that a worker's samples pass in.
    """

    num_other: int
    num_dense: int
    units: tuple[tuple[int, int], ...]
    is_chain: bool
    global_batch_size: int
    activation_bytes: int = 4
    gradient_bytes: int = _GRADIENT_BYTES
    num_pieces: int = 1

    @classmethod
    def of(cls, model: nn.Module, global_batch_size: int, activation_bytes: int = 4, num_pieces: int = 1) -> "Workload":
        """Describe a model, of which only the shapes count."""
        dense = list(dense_layers(model).values())
        num_dense = sum(parameter.numel() for layer in dense for parameter in layer.parameters())
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return cls(
            num_other=sum(parameter.numel() for parameter in parameters) - num_dense,
            num_dense=num_dense,
            units=tuple((layer.in_features, layer.out_features) for layer in dense),
            is_chain=dense_chain(model) is not None,
            global_batch_size=global_batch_size,
            activation_bytes=activation_bytes,
            gradient_bytes=max((parameter.itemsize for parameter in parameters), default=_GRADIENT_BYTES),
            num_pieces=num_pieces,
        )

    def num_gradient_bytes(self, strategy: Strategy, world_size: int) -> float:
        """Return the bytes of gradients that a worker sends per step."""
        num_values = self.num_other + (self.num_dense if strategy == "allreduce" else 0)
        return 2 * fraction_sent(world_size) * num_values * self.gradient_bytes

    def num_activation_bytes(self, strategy: Strategy, world_size: int) -> float:
        """Return the bytes of activations and of their gradients that a worker sends per step."""
        match strategy:
            case "allreduce":
                num_values = 0.0
            case "factors":
                num_values = float(sum(inputs + outputs for inputs, outputs in self.units))
            case "hybrid":
                features = self.units[0][0]
                num_values = 2 * (features / world_size + sum(outputs for _, outputs in self.units))
        return fraction_sent(world_size) * self.global_batch_size * num_values * self.activation_bytes

    def num_bytes(self, strategy: Strategy, world_size: int) -> float:
        """Return the bytes that a worker sends per step."""
        return self.num_gradient_bytes(strategy, world_size) + self.num_activation_bytes(strategy, world_size)

    def traffic(self, strategy: Strategy, world_size: int) -> Traffic:
        """Return what a worker sends per step."""
        gradients = self.num_gradient_bytes(strategy, world_size)
        activations = self.num_activation_bytes(strategy, world_size)
        num_buckets = math.ceil(gradients / _BUCKET_BYTES[strategy]) + 1
        match strategy:
            case "allreduce":
                return Traffic(num_buckets, gradients)
            case "factors":
                num_others = self.global_batch_size * fraction_sent(world_size)
                return Traffic(
                    num_buckets + 2 * len(self.units),
                    gradients + activations,
                    extra_operations=2 * self.num_dense * num_others,
                )
            case "hybrid":
                num_awaited = 2 * (len(self.units) + 1) * self.num_pieces
                return Traffic(num_buckets, gradients, num_awaited, activations)

    def choices(self, world_size: int) -> tuple[Strategy, ...]:
        """Return the strategies that differ from each other for this model and number of workers."""
        if world_size == 1 or not self.units:
            return ("allreduce",)
        can_be_cut = self.is_chain and all(inputs // UNITS_TOGETHER >= world_size for inputs, _ in self.units)
        return ("allreduce", "factors", "hybrid") if can_be_cut else ("allreduce", "factors")


@dataclass(frozen=True)
class Link:
    """How fast the workers exchange.

    Attributes:
        latency_seconds: Time of a collective operation that sends almost nothing.
        bytes_per_second: Bytes that each worker sends per second in one that sends much.
    """

    latency_seconds: float
    bytes_per_second: float

    def seconds(self, num_operations: int, num_bytes: float) -> float:
        """Return the time that collective operations take, one after the other."""
        return num_operations * self.latency_seconds + num_bytes / self.bytes_per_second


@dataclass(frozen=True)
class Computation:
    """How long a worker computes.

    Attributes:
        step_seconds: Time of the forward and backward passes of a step, without an exchange.
        operations_per_second: Floating-point operations per second in them; a multiply-add counts as two.
    """

    step_seconds: float
    operations_per_second: float


def predict_step(
    strategy: Strategy, workload: Workload, world_size: int, link: Link, computation: Computation
) -> float:
    """Return the predicted time of a step in seconds, without that of the weights' update.

    Args:
        strategy: Exact exchange.
        workload: Model and global batch.
        world_size: Number of workers.
        link: Link between them.
        computation: Computation of a worker.
    """
    traffic = workload.traffic(strategy, world_size)
    # Gradients travel during the last piece's backward pass alone.
    backward = BACKWARD_SHARE * computation.step_seconds / workload.num_pieces
    extra = traffic.extra_operations / computation.operations_per_second
    waiting = link.seconds(traffic.num_awaited, traffic.awaited_bytes)
    hidden = link.seconds(traffic.num_hidden, traffic.hidden_bytes)
    return computation.step_seconds + extra + waiting + max(0.0, hidden - backward)


def fraction_sent(world_size: int) -> float:
    """Return c: in a ring, a worker sends this fraction of what is scattered, and as much of what is gathered."""
    return (world_size - 1) / world_size
