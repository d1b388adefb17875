"""Networks from elsewhere, adapted so that their training does not depend on the workers or on interruptions.

What would depend on them is replaced: batch normalisation by `GhostBatchNorm`, whose groups of consecutive samples are
the same for any number of workers; dropout and stochastic depth by masks that are functions of a sample's position. A
layer that can't be replaced is refused by its name, and so is a network that draws random numbers by itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.lazy import LazyModuleMixin
from torch.overrides import TorchFunctionMode

from model.batch_norm import GhostBatchNorm
from model.dropout import CountedDropout
from model.torch_quirks import BatchNorm, Dropout, noting_draws

_EACH_UNIT, _EACH_SAMPLE, _EACH_CHANNEL = None, 1, 2  # number of dimensions that a mask has
_PROBE_SAMPLES = 2  # batch normalisation needs as many
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUTS = {
    nn.Dropout: _EACH_UNIT,
    nn.Dropout1d: _EACH_CHANNEL,
    nn.Dropout2d: _EACH_CHANNEL,
    nn.Dropout3d: _EACH_CHANNEL,
}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class CountedNetwork(nn.Module):
    """A network that takes images alone, called with the samples' positions too.

    Args:
        network: Network that takes images (B, 3, H, W) and returns logits (B, classes); changed in place.
        seed: Seed of the dropout masks.
        batch_norm_group: Number of consecutive samples that share the statistics of batch normalisation.
        resize_to: Height and width to which pictures are resized first, bilinearly; None: no resizing.

    Attributes:
        network: The adapted network. It loads the state of the original one under the same names.

    Raises:
        ValueError: A layer can't be replaced; the message names it and says why.
    """

    def __init__(self, network: nn.Module, *, seed: int, batch_norm_group: int, resize_to: int | None = None) -> None:
        super().__init__()
        self._resize_to = resize_to
        self._layers: list[PlacedDropout] = []
        self._replace_layers(network, seed, batch_norm_group)
        for layer in self._layers:
            layer.num_layers = len(self._layers)
        self.network = network

    def forward(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute the logits.

        Args:
            images: Floating, (B, 3, H, W).
            positions: int64 (B,), which select the masks of dropout; None: torch's ordinary dropout.
        """
        if (side := self._resize_to) is not None:
            images = functional.interpolate(images, size=(side, side), mode="bilinear")
        for layer in self._layers:
            layer.begin(positions)
        logits: Tensor = self.network(images)
        return logits

    def _replace_layers(self, network: nn.Module, seed: int, batch_norm_group: int) -> None:
        made: dict[nn.Module, nn.Module | None] = {}  # a layer may stand in several places
        for name, module in list(network.named_modules(remove_duplicate=False)):
            if module not in made:
                made[module] = self._counted(name or type(network).__name__, module, seed, batch_norm_group)
            if (counted := made[module]) is not None:
                network.set_submodule(name, counted)

    def _counted(self, name: str, module: nn.Module, seed: int, batch_norm_group: int) -> nn.Module | None:
        """Return what replaces a layer; None: it stays."""
        kind = type(module)
        layer = f"layer {name} is of type {kind.__name__}"
        match module:
            case LazyModuleMixin():
                raise ValueError(f"{layer}, whose size is not known before it runs; state its size")
            case BatchNorm() if kind in _BATCH_NORMS:
                _refuse_additions(layer, module)
                return _grouped(layer, module, batch_norm_group)
            case BatchNorm():
                raise ValueError(
                    f"{layer}, which takes statistics over a worker's samples and may do more than torch's own batch "
                    "normalisation; use nn.BatchNorm2d, followed by what else it does"
                )
            case nn.InstanceNorm1d() | nn.InstanceNorm2d() | nn.InstanceNorm3d() if module.track_running_stats:
                raise ValueError(
                    f"{layer}, whose running statistics depend on the number of workers; use track_running_stats=False"
                )
            case Dropout() if kind in _DROPOUTS and module.p > 0:
                _refuse_additions(layer, module)
                return self._placed(module.p, seed, _DROPOUTS[kind])
            case Dropout() if module.p > 0:
                raise ValueError(f"{layer}, for which there are no counted masks; use nn.Dropout")
            case _ if kind.__name__ == "StochasticDepth" and kind.__module__.startswith("torchvision."):
                _refuse_additions(layer, module)
                if module.mode != "row":
                    raise ValueError(
                        f"{layer} and mode {module.mode!r}, which drops a worker's whole batch; use mode 'row'"
                    )
                return self._placed(float(module.p), seed, _EACH_SAMPLE)  # type: ignore[arg-type]
        return None

    def _placed(self, probability: float, seed: int, num_dimensions: int | None) -> "PlacedDropout":
        layer = PlacedDropout(probability, seed=seed, layer=len(self._layers), num_dimensions=num_dimensions)
        self._layers.append(layer)
        return layer


class PlacedDropout(CountedDropout):
    """Counted dropout for a network that does not hand on the positions; `CountedNetwork` gives them beforehand.

    Args:
        probability: Probability that something is dropped, in [0, 1).
        seed: Seed of the masks.
        layer: Number of this layer within the network.
        num_dimensions: Number of leading dimensions that have a mask of their own: 1 drops samples (stochastic depth),
            2 drops channels; None: units are dropped.

    Attributes:
        num_layers: Number of such layers in the network. A layer that is used again in a pass takes masks of its own.
    """

    def __init__(self, probability: float, *, seed: int, layer: int, num_dimensions: int | None = None) -> None:
        super().__init__(probability, seed=seed, layer=layer)
        self.num_layers = 1
        self._first, self._num_dimensions = layer, num_dimensions
        self._positions: Tensor | None = None

    @property
    def p(self) -> float:
        """The probability, under the name that torch's dropout gives it."""
        return self.probability

    def begin(self, positions: Tensor | None) -> None:
        """Take the positions of a pass."""
        self._positions, self.layer = positions, self._first

    def forward(self, activations: Tensor, positions: Tensor | None = None) -> Tensor:
        """Drop units, channels or samples in training; the positions are those of the pass."""
        if not self.training or self.probability == 0:
            return activations
        if self._num_dimensions is None:
            outputs = super().forward(activations, self._positions)
        else:
            shape = activations.shape[: self._num_dimensions]
            factors = super().forward(activations.new_ones(shape), self._positions)
            outputs = activations * factors.view(*shape, *[1] * (activations.ndim - len(shape)))
        self.layer += self.num_layers
        return outputs


def check_pictures(network: CountedNetwork, name: str, num_classes: int, image_size: int) -> None:
    """Check by both passes on the meta device, which takes no memory, that a network does what training needs of it.

    Args:
        network: Network on the meta device.
        name: Its name, for messages.
        num_classes: Number of classes.
        image_size: Height and width of the pictures, before any resizing inside the model.

    Raises:
        ValueError: The network does not take such pictures, returns something else than logits, draws random numbers by
            torch by itself, has nothing to train, or calls dropout again in the backward pass.
    """
    images = torch.empty(_PROBE_SAMPLES, 3, image_size, image_size, device="meta")
    positions = torch.zeros(_PROBE_SAMPLES, dtype=torch.int64, device="meta")
    try:
        with torch.enable_grad(), noting_draws() as draws:
            logits = network.train()(images, positions)
    except AttributeError as error:
        raise ValueError(
            f"name={name!r}: the network can't be run ({error}); its layers for batch normalisation and dropout are "
            "replaced by others, which may lack an attribute of the original ones"
        ) from error
    except (RuntimeError, AssertionError, ValueError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"image_size={image_size}: {name} does not take such pictures ({cause}); use larger ones, or resize them "
            "inside the model: --model.resize-to 224"
        ) from error
    if draws:
        raise ValueError(
            f"name={name!r}: the network draws random numbers by itself ({draws[0]}), so its training would "
            "depend on the number of workers and on interruptions; use nn.Dropout layers, or none"
        )
    if not isinstance(logits, Tensor) or logits.shape != (_PROBE_SAMPLES, num_classes):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"name={name!r}: the network returns {got} for {_PROBE_SAMPLES} pictures; it must return logits of shape "
            f"({_PROBE_SAMPLES}, {num_classes})"
        )
    _check_backward(network, name, logits)


def _check_backward(network: CountedNetwork, name: str, logits: Tensor) -> None:
    if not logits.requires_grad:
        raise ValueError(f"name={name!r}: none of the network's parameters that its logits depend on can be trained")
    called: list[str] = []
    for place, layer in network.network.named_modules():
        if isinstance(layer, PlacedDropout):
            layer.register_forward_pre_hook(lambda *_, place=place: called.append(place))
    try:
        logits.sum().backward()
    except RuntimeError as error:
        raise ValueError(f"name={name!r}: the backward pass can't be run ({str(error).splitlines()[0]})") from error
    if called:
        raise ValueError(
            f"name={name!r}: layer {called[0]} runs again in the backward pass, where its dropout would differ from "
            "that of the forward pass; leave it out of activation checkpointing"
        )


def _refuse_additions(layer: str, module: nn.Module) -> None:
    """Refuse a layer to which something was added that its replacement would lack."""
    if any(getattr(module, hooks) for hooks in _HOOKS) or "forward" in vars(module):
        raise ValueError(f"{layer} and has hooks, which would be lost as the layer is replaced; remove them")


def _grouped(name: str, module: BatchNorm, group_size: int) -> GhostBatchNorm:
    """Return the batch normalisation over groups that takes over a layer's parameters and statistics."""
    if not (module.affine and module.track_running_stats) or module.momentum is None:
        raise ValueError(
            f"{name} without scale and shift, running statistics or momentum; use those that it has by default"
        )
    if group_size < 2:
        raise ValueError(
            f"batch_norm_group={group_size}: must be at least 2, since {name}, which takes its statistics over several "
            "samples"
        )
    assert module.running_mean is not None and module.running_var is not None
    layer = GhostBatchNorm(module.num_features, group_size, epsilon=module.eps, momentum=module.momentum)
    layer.weight, layer.bias = module.weight, module.bias
    layer.running_mean, layer.running_variance = module.running_mean, module.running_var
    return layer


def build(make: Callable[[int], nn.Module], num_classes: int, seed: int, **settings: Any) -> CountedNetwork:
    """Make a network with its initial weights, float32 on the CPU, the same on every rank.

    Args:
        make: Number of classes -> network, with weights from torch's global generator, which is seeded meanwhile.
        num_classes: Number of classes.
        seed: Seed of the weights and the masks.
        settings: Other arguments of `CountedNetwork`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = make(num_classes)
    return CountedNetwork(network, seed=seed, **settings)


def outline(make: Callable[[int], nn.Module], num_classes: int, seed: int, **settings: Any) -> CountedNetwork:
    """Make a network on the meta device: shapes without weights. The arguments are those of `build`."""
    with _EmptyOnMeta():
        network = CountedNetwork(make(num_classes), seed=seed, **settings)
    return network.to("meta")


class _EmptyOnMeta(TorchFunctionMode):
    """Puts uninitialised tensors, as weights are at first, on the meta device.

    Other tensors stay where they are, unlike under `torch.device("meta")`: some constructors read their values.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)
