"""Functions compiled by Numba on the machine where they run; the result is kept if there is a folder for it."""

from collections.abc import Callable
from typing import Any


def compiled(decorator: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """Compile a function by a decorator of Numba, and keep the result beside its file or in the user's cache."""
    try:
        return decorator(cache=True)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written to
        return decorator()(function)
