"""The choice of the exact exchange of a launch: as told, or the one with the shortest predicted step.

What was chosen by a measurement is logged and holds for the run, as long as it has as many workers on devices of the
same type; so the same command does the same. It stands in `metrics.jsonl`, since the workers measure, and only the
launching process writes `launches.jsonl`.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import torch
from torch import nn

from cluster.exchange.cost import Computation, Workload, predict_step
from cluster.exchange.dense_layers import mixes_rows
from cluster.exchange.link import measure_link, slowest, timed
from cluster.exchange.names import Strategy, StrategyChoice
from cluster.run.config import TrainingConfig
from cluster.run.run_log import ExchangeChosen, Line, Warned, only
from cluster.worker.precision import forward_context, input_dtype
from cluster.worker.world import World
from model.counted_network import CountedNetwork
from model.registry import num_operations, outline_network
from pipeline.online.order import RankShare
from pipeline.system.processor import this_processor

_BACKWARD_AND_FORWARD = 3  # operations of both passes, in those of the forward pass
_TRIAL_SAMPLES = {"cpu": 8, "cuda": 64}  # a forward and backward pass of AlexNet: about a second on one core
_NUM_TRIALS = 2


@dataclasses.dataclass(frozen=True)
class ExchangeChooser:
    """Chooses the exchange of a launch; every worker does, and gets the same answer.

    Attributes:
        config: Recipe of the run.
        model: Network on its device, whole.
        num_classes: Number of classes.
        image_size: Height and width of the pictures.
        world: Place of this worker.
        share: This worker's part of each global batch.
    """

    config: TrainingConfig
    model: nn.Module
    num_classes: int
    image_size: int
    world: World
    share: RankShare

    def choose(self, requested: StrategyChoice, earlier: Sequence[Line]) -> tuple[Strategy, Line | None]:
        """Return the strategy, and a line for the log if there is something to say.

        Args:
            requested: Strategy of the command line.
            earlier: Lines of the run's log; only the first worker's count.
        """
        workload, world_size = self._workload(), self.world.world_size
        choices = [name for name in workload.choices(world_size) if name != "hybrid" or self.share.has_equal_pieces]
        mixes_rows = len(choices) > 1 and self._mixes_rows()
        if mixes_rows:
            choices = ["allreduce"]
        if requested == "auto":
            if len(choices) > 1 and not self._are_alike():
                choices.remove("factors")
            return self._fastest(choices, workload, earlier)
        if requested in choices:
            return requested, None
        if world_size == 1:
            reason = "a single worker exchanges nothing"
        elif not workload.units:
            reason = f"{self.config.model.name} has no dense layers"
        elif mixes_rows:
            reason = f"{self.config.model.name} has a dense layer that does not get a row per picture"
        elif not self.share.has_equal_pieces:
            reason = (
                f"--micro-batch-size {self.share.micro_batch_size} gives {world_size} workers unequal numbers of "
                f"micro-batches; {2 * self.share.group_size} or more does not"
            )
        else:
            reason = f"the dense layers of {self.config.model.name} can't be cut for {world_size} workers"
        return "allreduce", Warned(message=f"--exchange {requested} is allreduce here: {reason}")

    def _fastest(
        self, allowed: Sequence[Strategy], workload: Workload, earlier: Sequence[Line]
    ) -> tuple[Strategy, Line | None]:
        if len(allowed) == 1:
            return allowed[0], None
        device, world_size = self.world.device, self.world.world_size
        known = [
            allowed.index(line.exchange)
            for line in only(ExchangeChosen, earlier)
            if line.world_size == world_size and line.device == device.type and line.exchange in allowed
        ]
        recorded = int(self.world.sum(torch.tensor(known[-1] + 1 if known and self.world.is_first else 0)))
        if recorded:
            return allowed[recorded - 1], None
        link, computation = measure_link(device), self._measure_computation()
        seconds: dict[str, float] = {
            name: predict_step(name, workload, world_size, link, computation) for name in allowed
        }
        chosen = min(allowed, key=lambda name: seconds[name])
        return chosen, ExchangeChosen(
            exchange=chosen,
            world_size=world_size,
            device=device.type,
            **dataclasses.asdict(link),
            step_seconds=seconds,
        )

    def _mixes_rows(self) -> bool:
        """Return whether a dense layer of a network from elsewhere gets something else than a row per picture."""
        if not isinstance(self.model, CountedNetwork):
            return False
        return mixes_rows(outline_network(self.config.model, num_classes=self.num_classes), self.image_size)

    def _workload(self) -> Workload:
        activation_bytes = {"bfloat16": 2, "float64": 8}.get(self.config.precision, 4)
        return Workload.of(self.model, self.config.global_batch_size, activation_bytes, self.share.num_pieces)

    def _are_alike(self) -> bool:
        """Return whether the workers' processors round in the same way, as far as can be told."""
        if self.world.device.type == "cuda":
            kind = torch.cuda.get_device_name(self.world.device)
        else:
            kind = f"{this_processor()}, {self.world.num_threads} threads"
        return self.world.agrees(zlib.crc32(kind.encode()) >> 4)

    def _measure_computation(self) -> Computation:
        """Measure the forward and backward passes of a few samples; every worker gets the slowest one's times."""
        config, device = self.config, self.world.device
        num_samples = min(self.share.largest_piece, _TRIAL_SAMPLES[device.type])
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(num_samples, 3, self.image_size, self.image_size, generator=generator)
        images = images.to(device, input_dtype(config.precision)).contiguous(memory_format=torch.channels_last)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

        def passes() -> None:
            with forward_context(config.precision, device):
                loss = self.model(images).float().sum()
            torch.autograd.grad(loss, parameters, allow_unused=True)

        was_training = self.model.training
        self.model.eval()  # dropout and batch normalisation keep no trace of the trial
        passes()
        seconds = slowest(min(timed(passes, device) for _ in range(_NUM_TRIALS)))
        self.model.train(was_training)
        num = _BACKWARD_AND_FORWARD * num_samples * num_operations(config.model, self.num_classes, self.image_size)
        return Computation(seconds * self.share.largest / num_samples, num / seconds)
