"""Undocumented behaviour of torch that the networks' check relies on, as observed in torch 2.14.

A dispatch mode sees each operator that a network runs, with its tags and its schema. Without such a mode, networks that
draw random numbers by themselves are not noticed. Layers of a kind have a base class.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.dropout import _DropoutNd as Dropout
from torch.utils import _python_dispatch

__all__ = ["BatchNorm", "Dropout", "noting_draws"]


@contextlib.contextmanager
def noting_draws() -> Iterator[list[str]]:
    """Yield a list that gets the name of each operator that draws random numbers inside the context."""
    found: list[str] = []
    mode = getattr(_python_dispatch, "TorchDispatchMode", None)
    if mode is None:
        yield found
        return

    class Watch(mode):  # type: ignore[misc, valid-type]
        def __torch_dispatch__(
            self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if torch.Tag.nondeterministic_seeded in func.tags and _drops_something(func, args, kwargs):
                found.append(func.name().removeprefix("aten::").partition(".")[0])
            return func(*args, **kwargs)

    with Watch():
        yield found


def _drops_something(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether an operator really draws: those of attention do so only if their dropout is above 0."""
    arguments = {argument.name: argument.default_value for argument in function._schema.arguments}
    arguments |= dict(zip(arguments, args, strict=False)) | kwargs
    return bool(arguments.get("dropout_p", 1.0))
