"""What Linux knows of the accuracy of its clock. Standard library only."""

import ctypes
import struct
from dataclasses import dataclass

# struct timex of a 64-bit Linux (adjtimex(2)): modes, offset, freq, maxerror, esterror, status; the rest is not read.
_TIMEX, _TIMEX_BYTES = struct.Struct("@I4xqqqqi"), 256
_STA_UNSYNC = 0x40


@dataclass(frozen=True)
class ClockState:
    """Accuracy of the clock.

    Attributes:
        is_synchronized: A time service has told Linux that the clock is right, and goes on doing so.
        max_error_seconds: Largest error by Linux's own account; means nothing if it is not synchronised.
    """

    is_synchronized: bool
    max_error_seconds: float


def clock_state() -> ClockState | None:
    """Return the state of this machine's clock, or None if Linux does not tell."""
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)  # modes = 0: nothing is changed
    if ctypes.sizeof(ctypes.c_long) != 8 or ctypes.CDLL(None).adjtimex(buffer) < 0:
        return None
    _, _, _, max_error_microseconds, _, status = _TIMEX.unpack_from(buffer)
    return ClockState(not status & _STA_UNSYNC, max_error_microseconds / 1e6)
