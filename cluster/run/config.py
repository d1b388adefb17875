"""The type of a recipe, which says what is trained. The recipes are functions in `jobs/recipes.py`."""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from model.optim_config import OptimizerConfig
from model.registry import ModelConfig
from pipeline.online.augmentation import AugmentationConfig
from pipeline.online.batch import OnBadSample
from pipeline.online.stream_order import StreamConfig

GradientCompression = Literal["none", "bf16", "powersgd"]
Precision = Literal["auto", "float32", "bfloat16", "float64"]
# Fields that may change at a resume: they affect how a run is operated, not what it computes from intact data.
_OPERATION = ("on_bad_sample", "stuck_after_epochs", "checkpoint_interval", "checkpoint_seconds", "num_checkpoints")
_LEAST_POWERSGD_START = 2  # steps; torch demands it
# Field -> field and value that it belongs to; otherwise it keeps its default.
_BELONGS_TO: dict[str, tuple[str, str]] = {
    "powersgd_rank": ("gradient_compression", "powersgd"),
    "powersgd_start": ("gradient_compression", "powersgd"),
    "local_sgd_start": ("local_sgd_steps", "a number"),
}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A recipe: everything that determines a run's numbers, a little about its operation, nothing about where it runs.

    Attributes:
        name: Name of the recipe.
        model: Network to train.
        optimizer: Weight update and learning rate.
        augmentation: Steps from a stored picture to the model's input.
        streams: Settings for reading shards one after another, for slow disks.
        decode: Device that decodes training JPEGs: `cpu` gives the same bits with and without a GPU, `mixed` also uses
            the GPU; None: `mixed` if there is a GPU. `auto`: CPU, GPU, or each a share of the samples, whatever a trial
            at the start finds fastest; the choice is kept in the checkpoints.
        on_bad_sample: Treatment of a training sample whose bytes have changed: an `error`, or it is replaced and
            counted.
        synthetic_data: True to train on noise of the right shape, which takes no time to make, so that only computation
            is timed. Nothing is learnt.
        global_batch_size: Samples per step over all workers.
        num_epochs: Length of the run in epochs; may be fractional.
        precision: `float32`, `bfloat16` (autocast; weights stay float32), `float64`, or `auto`: bfloat16 if all devices
            of the run support it natively, else float32. `auto` is resolved and recorded when the run begins.
        stuck_after_epochs: Number of epochs, at least 1, after which a run is stopped if its loss is still that of
            guessing, to within 1 %.
        gradient_compression: Lossy form in which several workers exchange gradients: `bf16`, rounded to bfloat16;
            `powersgd`, as products of thin matrices; or `none`. See docs/runs.md.
        powersgd_rank: For `powersgd`: number of columns of the thin matrices. Vogels et al. 2019 needed 2 for a
            residual network and 4 for an LSTM.
        powersgd_start: For `powersgd`: fraction of the run, in [0, 1], whose gradients are exchanged as they are; at
            least 2 steps are. torch's documentation suggests 0.1, and no less than the warm-up.
        local_sgd_steps: Number of steps, at least 2, that several workers train on their own before their weights are
            averaged; None: they exchange gradients at each step.
        local_sgd_start: For `local_sgd_steps`: fraction of the run, in [0, 1], whose gradients are exchanged at each
            step first. Lin et al. 2020 begin at the first reduction of the learning rate, half-way.
        seed: Seed of weights, order, augmentation and dropout.
        early_stop_patience: Number of consecutive evaluations without a better top-1 on `val` after which the run ends;
            None: it never ends early.
        evaluations_per_epoch: Number of evaluations on `val` per epoch; below 1, they are several epochs apart.
        checkpoint_interval: Maximum number of steps to repeat after workers are lost, unless `checkpoint_seconds` is
            the longer time. Checkpoints are begun twice as often, since each one is written while training continues,
            and is complete before the next one begins. With 1, each step's is complete before the next step.
        checkpoint_seconds: Time that may be lost in any case, in seconds: if `checkpoint_interval` steps take less, the
            steps of this time may be repeated, and those of about two seconds more.
        num_checkpoints: Number of checkpoints to keep, in addition to the best.
    """

    name: str
    model: ModelConfig
    optimizer: OptimizerConfig
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    streams: StreamConfig = field(default_factory=StreamConfig)
    decode: Literal["cpu", "mixed", "auto"] | None = None
    on_bad_sample: OnBadSample = "error"
    synthetic_data: bool = False
    global_batch_size: int
    num_epochs: float
    precision: Precision = "auto"
    stuck_after_epochs: float = 1.0
    gradient_compression: GradientCompression = "none"
    powersgd_rank: int = 4
    powersgd_start: float = 0.1
    local_sgd_steps: int | None = None
    local_sgd_start: float = 0.0
    seed: int = 0
    early_stop_patience: int | None = None
    evaluations_per_epoch: float = 1.0
    checkpoint_interval: int = 500
    checkpoint_seconds: float = 30.0
    num_checkpoints: int = 2

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ValueError: A field is invalid; the message names it, its value and what would be right.
        """
        if self.global_batch_size < 1:
            raise ValueError(f"global_batch_size={self.global_batch_size}: must be at least 1")
        if self.global_batch_size % self.model.group_size:
            raise ValueError(
                f"global_batch_size={self.global_batch_size}: must be a multiple of model.batch_norm_group, "
                f"{self.model.group_size}"
            )
        if not self.num_epochs > 0:
            raise ValueError(f"num_epochs={self.num_epochs}: must be above 0")
        if self.on_bad_sample not in get_args(OnBadSample):
            raise ValueError(f"on_bad_sample={self.on_bad_sample!r}: must be one of {', '.join(get_args(OnBadSample))}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision={self.precision!r}: must be one of {', '.join(get_args(Precision))}")
        if not self.stuck_after_epochs >= 1:
            raise ValueError(f"stuck_after_epochs={self.stuck_after_epochs}: must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: must be 0 to 2**63 - 1")
        if self.early_stop_patience is not None and self.early_stop_patience < 1:
            raise ValueError(f"early_stop_patience={self.early_stop_patience}: must be at least 1, or none")
        if not self.evaluations_per_epoch > 0:
            raise ValueError(f"evaluations_per_epoch={self.evaluations_per_epoch}: must be above 0")
        if self.checkpoint_interval < 1 or self.num_checkpoints < 1:
            raise ValueError("checkpoint_interval and num_checkpoints: must be at least 1")
        if not self.checkpoint_seconds >= 0:
            raise ValueError(f"checkpoint_seconds={self.checkpoint_seconds}: must be at least 0")
        self._check_exchange()

    def _check_exchange(self) -> None:
        names = get_args(GradientCompression)
        if self.gradient_compression not in names:
            raise ValueError(f"gradient_compression={self.gradient_compression!r}: must be one of {', '.join(names)}")
        if self.powersgd_rank < 1:
            raise ValueError(f"powersgd_rank={self.powersgd_rank}: must be at least 1")
        if self.local_sgd_steps is not None and self.local_sgd_steps < 2:
            raise ValueError(f"local_sgd_steps={self.local_sgd_steps}: must be at least 2, or none")
        for name in ("powersgd_start", "local_sgd_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must lie in [0, 1], a fraction of the run")
        if self.local_sgd_steps is not None and self.gradient_compression != "none":
            raise ValueError(
                f"local_sgd_steps={self.local_sgd_steps}: does not go with gradient_compression="
                f"{self.gradient_compression!r}; choose one of them"
            )
        is_used = {
            "gradient_compression": self.gradient_compression == "powersgd",
            "local_sgd_steps": self.local_sgd_steps is not None,
        }
        for name, (owner, value) in _BELONGS_TO.items():
            if not is_used[owner] and getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"{name}={getattr(self, name)}: is used only if {owner} is {value}; leave it at "
                    f"{getattr(type(self), name)}"
                )

    def total_steps(self, num_samples: int) -> int:
        """Return the length of the run in steps for a training set of `num_samples`."""
        return max(1, round(self.num_epochs * num_samples / self.global_batch_size))

    @property
    def is_exchange_lossy(self) -> bool:
        """Whether several workers exchange less than their gradients, which changes the result."""
        return self.gradient_compression != "none" or self.local_sgd_steps is not None

    def num_exact_steps(self, total_steps: int) -> int:
        """Return the number of steps, of a run of that many, before a lossy exchange begins to lose something."""
        if self.gradient_compression == "powersgd":
            return max(_LEAST_POWERSGD_START, round(self.powersgd_start * total_steps))
        return round(self.local_sgd_start * total_steps)

    @property
    def may_be_bfloat16(self) -> bool:
        """Whether the devices must be checked for native bfloat16."""
        return self.precision in ("auto", "bfloat16")

    @property
    def steps_between_checkpoints(self) -> int:
        """Number of steps from the beginning of one checkpoint to the beginning of the next."""
        return max(1, self.checkpoint_interval // 2)

    @property
    def seconds_between_checkpoints(self) -> float:
        """Least time from the beginning of one checkpoint to the beginning of the next; 0 if each step has one."""
        return self.checkpoint_seconds / 2 if self.checkpoint_interval > 1 else 0.0

    def evaluation_interval(self, num_samples: int) -> int:
        """Return the number of steps between two evaluations."""
        return max(1, round(num_samples / self.global_batch_size / self.evaluations_per_epoch))

    def identity(self) -> "TrainingConfig":
        """Return the recipe with all fields that may change at a resume set to their defaults.

        Recipes with equal identities compute the same numbers. `evaluations_per_epoch` belongs to the identity only if
        the learning rate or the end of the run depends on it.
        """
        operation = list(_OPERATION)
        if self.optimizer.schedule != "plateau" and self.early_stop_patience is None:
            operation.append("evaluations_per_epoch")
        fields = dataclasses.fields(self)
        defaults: dict[str, Any] = {field.name: field.default for field in fields if field.name in operation}
        return dataclasses.replace(self, **defaults)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "TrainingConfig":
        """Rebuild a recipe from `to_json`.

        Raises:
            ValueError, TypeError, KeyError: The document was written by another version.
        """
        return typing.cast(TrainingConfig, _rebuild(cls, document))


def _rebuild(kind: Any, document: dict[str, Any]) -> Any:
    types = typing.get_type_hints(kind)
    values = {}
    for name, value in document.items():
        if dataclasses.is_dataclass(types[name]):
            values[name] = _rebuild(types[name], value)
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
