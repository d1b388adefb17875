"""The dense layers of a model, which the exchanges `factors` and `hybrid` treat by themselves."""

from dataclasses import dataclass

from torch import nn

from model.dropout import CountedDropout

_ELEMENTWISE = (nn.ReLU, nn.Tanh)


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

    @property
    def dense(self) -> list[nn.Linear]:
        """The dense layers."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]


def dense_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return a model's dense layers by their names, in the model's order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def dense_chain(model: nn.Module) -> DenseChain | None:
    """Return the chain that all dense layers of a model form, or None if they don't form one."""
    containers = {name.rpartition(".")[0] for name in dense_layers(model)}
    if len(containers) != 1:
        return None
    name = containers.pop()
    container = model.get_submodule(name)
    if not isinstance(container, nn.Sequential):
        return None
    layers = list(container)
    first = next(index for index, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    chain = DenseChain(container, name, first)
    is_chain = all(isinstance(layer, (nn.Linear, CountedDropout, *_ELEMENTWISE)) for layer in chain.layers)
    return chain if is_chain and isinstance(layers[-1], nn.Linear) else None
