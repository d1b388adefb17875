"""Everything in this project that relies on undocumented parts of xxhash, as seen in xxhash 4.1.

Its extension module exports the C functions of the XXH3 library. Called from compiled code, they hash a whole batch
without Python's lock. An xxhash without them is used through its Python functions.
"""

import ctypes
import importlib
from typing import Any

from numba import types

# The first name chooses instructions for the processor at run time; builds for other processors have only the second.
_NAMES = ("XXH3_64bits_dispatch", "XXH3_64bits")
HASH_TYPE = types.uint64(types.uint64, types.uint64)
"""Type of the C function that hashes a range of memory: (address, length in bytes) -> hash."""


class CFunction(types.WrapperAddressProtocol):
    """A C function that code compiled by Numba can call.

    Args:
        function: Function of a shared library.
        signature: Its type, by Numba's names.
    """

    def __init__(self, function: Any, signature: Any) -> None:
        self._address, self._signature = ctypes.cast(function, ctypes.c_void_p).value or 0, signature

    def __wrapper_address__(self) -> int:
        return self._address

    def signature(self) -> Any:
        """Return the function's type."""
        return self._signature


def xxh3_64_function() -> CFunction | None:
    """Return the C function of type `HASH_TYPE`, or None if xxhash does not export it."""
    try:
        library = ctypes.CDLL(importlib.import_module("xxhash._xxhash").__file__)
    except (ImportError, OSError):
        return None
    functions = (getattr(library, name, None) for name in _NAMES)
    return next((CFunction(function, HASH_TYPE) for function in functions if function is not None), None)
