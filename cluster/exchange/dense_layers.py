"""The dense layers of a model, which the exchanges `factors` and `hybrid` treat by themselves."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from model.counted_network import CountedNetwork
from model.dropout import CountedDropout

_ELEMENTWISE = (nn.ReLU, nn.Tanh)
_HEAD_DEPTH = 2  # `fc`, `classifier.6`
_TRIAL_SAMPLES = 2


@dataclass(frozen=True)
class DenseChain:
    """Dense layers that follow each other and end in the logits, with only element-wise layers between them.

    Attributes:
        container: Module that holds them.
        name: Name of the container in the model.
        first: Index of the first dense layer in the container.
    """

    container: nn.Sequential
    name: str
    first: int

    @property
    def layers(self) -> list[nn.Module]:
        """The layers from the first dense one to the last one."""
        return list(self.container)[self.first :]


def dense_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return a model's dense layers by their names, in the model's order.

    Subclasses are left out, since others may use their weights; so are layers whose parameters belong to two places, or
    are not trained. A network from elsewhere may apply a dense layer to many parts of a picture, or use its weights by
    itself; so only those at its outermost level, or in a module there, are taken.
    """
    everywhere = [module for _, module in model.named_modules(remove_duplicate=False)]
    num_places = Counter(id(parameter) for module in everywhere for parameter in module.parameters(recurse=False))
    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear
        and all(parameter.requires_grad and num_places[id(parameter)] == 1 for parameter in layer.parameters())
        and not (isinstance(model, CountedNetwork) and name.removeprefix("network.").count(".") >= _HEAD_DEPTH)
    }


def mixes_rows(model: nn.Module, image_size: int) -> bool:
    """Return whether a dense layer gets anything else than one row, or one block of rows, per sample.

    Args:
        model: Model on the meta device.
        image_size: Height and width of the pictures.
    """
    found: list[int] = []
    for layer in dense_layers(model).values():
        layer.register_forward_pre_hook(lambda layer, inputs: found.append(len(inputs[0])))
    with torch.no_grad():
        model.train()(torch.empty(_TRIAL_SAMPLES, 3, image_size, image_size, device="meta"))
    return any(num_rows != _TRIAL_SAMPLES for num_rows in found)


def dense_chain(model: nn.Module) -> DenseChain | None:
    """Return the chain that all dense layers of a model form, or None if they don't form one."""
    dense = dense_layers(model)
    containers = {name.rpartition(".")[0] for name in dense}
    if len(containers) != 1:
        return None
    name = containers.pop()
    container = model.get_submodule(name)
    if not isinstance(container, nn.Sequential):
        return None
    layers = list(container)
    own = set(dense.values())
    chain = DenseChain(container, name, next(index for index, layer in enumerate(layers) if layer in own))
    is_chain = all(layer in own or isinstance(layer, (CountedDropout, *_ELEMENTWISE)) for layer in chain.layers)
    return chain if is_chain and layers[-1] in own else None
