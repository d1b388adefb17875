"""What a training step changes: the model, its optimiser and the exchange of gradients."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.optim import Optimizer

from cluster.exchange.base import Exchange
from cluster.exchange.replicas import Drift, align_replicas, copy_from_first
from cluster.run.config import TrainingConfig
from cluster.worker.precision import forward_context, input_dtype, place
from cluster.worker.trained_model import untrained_model
from cluster.worker.world import World
from model.batch_norm import update_running_statistics
from model.metrics import count_correct
from model.optim import build_optimizer, set_learning_rate
from model.schedules import learning_rate
from pipeline.loader import Batch


class Learner:
    """One worker's copy of the model, and its optimiser; `connect` comes before all else.

    Attributes:
        model: Network, without the exchange's wrapper.
        optimizer: Optimiser of the network, from `connect` on.
    """

    optimizer: Optimizer

    def __init__(
        self,
        config: TrainingConfig,
        num_classes: int,
        total_steps: int,
        world: World,
    ) -> None:
        """Build the network with its initial weights.

        Args:
            config: Recipe of the run.
            num_classes: Number of classes.
            total_steps: Length of the run, which the learning rate depends on.
            world: Place of this worker.

        Raises:
            InputError: The network can't be built on this node.
        """
        self._config, self._world = config, world
        self._total_samples = total_steps * config.global_batch_size
        self.model = place(untrained_model(config, num_classes), config.precision, world.device)
        self._optimizer_config = config.optimizer.for_batch_size(config.global_batch_size)

    def connect(self, exchange: Exchange, state: dict[str, Any] | None = None) -> str | None:
        """Restore a state, connect an exchange to the model, and build the optimiser; every worker calls this.

        Args:
            exchange: Exchange that combines the workers' gradients.
            state: State from the first worker's `state_dict`, the same on all workers; None: the initial weights.

        Returns:
            A warning if part of the state could not be restored.
        """
        self._exchange = exchange
        if state is not None:
            self.model.load_state_dict(state["model"])
        warning = None if state is None or not exchange.keeps_state else self._restore_exchange(state)
        self._wrapped = exchange.wrap(self.model)
        optimizer = build_optimizer(self.model, self._optimizer_config, exchange.squared_norms)
        self.optimizer = exchange.wrap_optimizer(optimizer)
        if state is not None:
            self.optimizer.load_state_dict(_mapped(state["optimizer"], self._trained_names(), exchange.part))
        return warning

    @property
    def has_equal_weights(self) -> bool:
        """Whether all workers have the same weights now; see `Exchange`."""
        return self._exchange.has_equal_weights

    @property
    def has_shared_state(self) -> bool:
        """Whether every worker must call `state_dict`."""
        return self._exchange.keeps_state or self._exchange.cuts_weights

    @property
    def copies_state(self) -> bool:
        """Whether `state_dict` returns copies of the weights and of the optimiser's tensors."""
        return self._exchange.cuts_weights

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which `model`, in evaluation mode, works alone; every worker enters it."""
        return self._exchange.evaluating()

    @property
    def learning_rate(self) -> float:
        """Learning rate of the latest step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(
        self,
        batches: Iterable[Batch],
        samples_seen: int,
        num_reductions: int,
        part: Callable[[str], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> torch.Tensor:
        """Make a step.

        Args:
            batches: This worker's slice of the global batch, in micro-batches.
            samples_seen: Samples of all workers before the step.
            num_reductions: Number of reductions of the learning rate so far, for the schedule `plateau`.
            part: Makes the context of a part of the step: `forward`; `backward`, with what of the exchange is not
                hidden behind it; `update`.

        Returns:
            Sum of losses and number of correct samples of the slice, float64 (2,).
        """
        rate = learning_rate(self._optimizer_config, samples_seen, self._total_samples, num_reductions)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        sums = []
        for batch, is_last in _with_last(batches):
            with contextlib.nullcontext() if is_last else self._exchange.accumulating():
                sums.append(self._forward_backward(batch, part))
        with part("backward"):
            self._exchange.finish()
        with part("update"):
            self.optimizer.step()
            update_running_statistics(self.model, self._world.sum)
        return torch.stack(sums).sum(0)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to keep in a checkpoint, whole on the first worker.

        Every worker must call this if the exchange keeps a state or cuts weights.
        """
        exchange, names = self._exchange, self._trained_names()
        state: dict[str, Any] = {
            "model": {name: exchange.whole(name, value) for name, value in self.model.state_dict().items()},
            "optimizer": _mapped(self.optimizer.state_dict(), names, exchange.whole),
        }
        if exchange.keeps_state:
            state["exchange"] = self._world.gather(exchange.state_dict())
        return state

    def align(self) -> Drift | None:
        """Compare the workers' weights; where they differ by rounding, take the first worker's.

        Then also take all of its optimiser's state, unless the workers' are meant to differ.

        Every worker calls this, when the weights should be equal.

        Returns:
            What differed; None: nothing.

        Raises:
            ReplicasDiffer: The weights differ by more than rounding.
        """
        if self._world.world_size == 1:
            return None
        weights = {n: value for n, value in self.model.state_dict().items() if not self._exchange.is_cut(n)}
        drift = align_replicas(weights)
        if drift is not None and not self._exchange.has_own_optimizers:
            names = self._trained_names()
            kept = {
                f"{names[index]} {key}": value
                for index, values in self.optimizer.state_dict()["state"].items()
                for key, value in values.items()
                if isinstance(value, torch.Tensor) and value.ndim and names[index] in weights
            }
            copy_from_first(kept)
        return drift

    def _restore_exchange(self, state: dict[str, Any]) -> str | None:
        """Restore this rank's state of the exchange; return a warning if there is none for as many workers."""
        states = state.get("exchange", [])
        num_workers = self._world.world_size
        if len(states) != num_workers:
            if states and not any(states):
                return None
            reason = f"the checkpoint has the state of {len(states)} workers, and this launch has {num_workers}"
            return f"{self._exchange.without_state}: {reason}"
        self._exchange.load_state_dict(states[self._world.rank])
        return None

    def _trained_names(self) -> list[str]:
        """Return the parameters' names in the order in which the optimiser numbers them."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [names[parameter] for group in self.optimizer.param_groups for parameter in group["params"]]

    def _forward_backward(
        self, batch: Batch, part: Callable[[str], contextlib.AbstractContextManager[object]]
    ) -> torch.Tensor:
        """Add a batch's gradient; return its sum of losses and its number of correct samples, (2,)."""
        config, labels = self._config, batch.labels
        with part("forward"):
            images = batch.images.to(input_dtype(config.precision)).contiguous(memory_format=torch.channels_last)
            with forward_context(config.precision, self._world.device):
                logits = self._wrapped(images, batch.device_positions)
            logits = logits if config.precision == "float64" else logits.float()
            loss_sum = functional.cross_entropy(logits, labels, reduction="sum")
        with part("backward"):
            (loss_sum * self._exchange.loss_scale).backward()
        correct = count_correct(logits.detach(), labels, ks=(1,))[0]
        return torch.stack([loss_sum.detach().double(), correct.double()])


def _mapped(
    state: dict[str, Any], names: Sequence[str], function: Callable[[str, torch.Tensor], torch.Tensor]
) -> dict[str, Any]:
    """Return an optimiser's state with a function (name, tensor) applied to each tensor of a parameter's form."""
    of_parameters = {
        index: {
            # Others are counts of steps.
            key: function(names[index], value) if isinstance(value, torch.Tensor) and value.ndim else value
            for key, value in kept.items()
        }
        for index, kept in state["state"].items()
    }
    return state | {"state": of_parameters}


def _with_last(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Yield each batch, and whether it is the last."""
    following = iter(batches)
    batch = next(following)
    for next_batch in following:
        yield batch, False
        batch = next_batch
    yield batch, True
