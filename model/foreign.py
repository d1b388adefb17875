"""Networks from elsewhere by name: torchvision's classifiers, and classes of one's own; loaded when one is built.

    torchvision/resnet18           any classifier of torchvision, with random weights
    my_networks:SmallNet           the class SmallNet of the module my_networks, made by SmallNet(num_classes=10)

A class must derive from `torch.nn.Module`, take images (B, 3, H, W) and return logits (B, number of classes). Nothing
else is called by a name from a recipe or a run folder. `model/counted_network.py` adapts such networks.
"""

import difflib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_TORCHVISION = "torchvision/"
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
# Classifiers in the middle of these two are trained beside the last one, and dropped after training. Here they are left
# out; batch normalisation does their work. The initial weights are stated, since torchvision warns otherwise.
_WITHOUT_AUXILIARIES = {"aux_logits": False, "init_weights": True}
_ARGUMENTS: dict[str, dict[str, Any]] = {"googlenet": _WITHOUT_AUXILIARIES, "inception_v3": _WITHOUT_AUXILIARIES}
FORMS = "torchvision/NAME, such as torchvision/resnet18; or MODULE:CLASS, a network of your own"


def is_foreign(name: str) -> bool:
    """Return whether a name has the form of a network from elsewhere."""
    return name.startswith(_TORCHVISION) or _OWN.fullmatch(name) is not None


def find_maker(name: str) -> "Callable[[int], nn.Module]":
    """Return the function that makes a network for a number of classes, as its authors wrote it.

    Raises:
        ValueError: There is no such network; the message says what there is, or how to install it.
    """
    return _of_torchvision(name.removeprefix(_TORCHVISION)) if name.startswith(_TORCHVISION) else _own(name)


def announce_file(name: str) -> None:
    """Say on standard error which file a network of one's own would be loaded from, before its code runs."""
    if _OWN.fullmatch(name):
        _find_working_directory()
        try:
            spec = importlib.util.find_spec(name.partition(":")[0])
        except ModuleNotFoundError:
            return  # said when it is loaded
        if spec is not None:
            sys.stderr.write(f"the network {name} is loaded from {spec.origin}\n")
            sys.stderr.flush()


def _of_torchvision(name: str) -> "Callable[[int], nn.Module]":
    try:
        from torchvision import models
    except ImportError as error:
        raise ValueError(
            f"name={_TORCHVISION + name!r}: torchvision can't be loaded here ({error}); install it on every node: "
            "pip install torchvision"
        ) from error
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or known
        raise ValueError(f"name={_TORCHVISION + name!r}: torchvision has no such classifier; it has {', '.join(near)}")
    build, arguments = models.get_model_builder(name), _ARGUMENTS.get(name, {})
    return lambda num_classes: build(weights=None, num_classes=num_classes, **arguments)


def _own(name: str) -> "Callable[[int], nn.Module]":
    from torch import nn

    module_name, _, class_name = name.partition(":")
    _find_working_directory()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks another one
        raise ValueError(
            f"name={name!r}: there is no module {module_name}; start from the folder that holds it, or add that folder "
            "to PYTHONPATH on every node"
        ) from error
    made = getattr(module, class_name, None)
    if not (isinstance(made, type) and issubclass(made, nn.Module)):
        raise ValueError(f"name={name!r}: {module_name} has no class {class_name} that derives from torch.nn.Module")
    try:
        inspect.signature(made).bind(num_classes=10)
    except TypeError as error:
        raise ValueError(f"name={name!r}: {class_name}(num_classes=10) can't be called: {error}") from error
    return lambda num_classes: made(num_classes=num_classes)


def _find_working_directory() -> None:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that it hides nothing
