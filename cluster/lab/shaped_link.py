"""A link of any bandwidth: what is asked of Linux's token buckets, and of its delay of packets."""

import math
import re
from dataclasses import dataclass

from pipeline.command import InputError

MAX_GIGABITS = 100.0
_MIN_BURST_BYTES = 70_000  # the kernel hands over up to 64 KiB at once
_BURST_SECONDS, _QUEUE_SECONDS, _MIN_QUEUE_BYTES = 0.001, 0.05, 1_000_000
_SMALLEST_PACKET_BYTES = 66  # headers of Ethernet, IP and TCP
_UNITS = {"kbit": 1e-6, "mbit": 1e-3, "gbit": 1.0}  # in Gbit/s


@dataclass(frozen=True, kw_only=True)
class ShapedLink:
    """A host's link to the switch, the same in both directions.

    Attributes:
        gigabits_per_second: Its bandwidth, headers of all packets included.
        latency_seconds: Time that a packet takes from one host to another, beside that of its bytes; anything above 0
            needs the kernel's module sch_netem.
    """

    gigabits_per_second: float
    latency_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check the field.

        Raises:
            ValueError: Names the field, its value and what would be right.
        """
        if not 0 < self.gigabits_per_second <= MAX_GIGABITS:
            raise ValueError(
                f"gigabits_per_second={self.gigabits_per_second}: must be above 0, and at most {MAX_GIGABITS:g}"
            )
        if not 0 <= self.latency_seconds <= 10:
            raise ValueError(f"latency_seconds={self.latency_seconds}: must be from 0 to 10")

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth in bytes."""
        return self.gigabits_per_second * 1e9 / 8

    @property
    def burst_bytes(self) -> int:
        """Bytes that pass at once after a pause."""
        return round(max(_MIN_BURST_BYTES, self.bytes_per_second * _BURST_SECONDS))

    @property
    def queue_bytes(self) -> int:
        """Bytes that may wait to be sent; the link loses what comes then."""
        return round(max(_MIN_QUEUE_BYTES, self.bytes_per_second * (_QUEUE_SECONDS + self.latency_seconds)))

    @property
    def queue_packets(self) -> int:
        """Packets that may wait to be sent."""
        return math.ceil(self.queue_bytes / _SMALLEST_PACKET_BYTES)


def parse_bandwidth(text: str) -> float:
    """Return a bandwidth such as `1gbit`, `250mbit` or `0.5 Gbit/s` in Gbit/s.

    Raises:
        InputError: It reads otherwise.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?([kmg]bit)(/s)?", text.strip().lower())
    if found is None:
        raise InputError(f"{text} is not a bandwidth; write a number and kbit, mbit or gbit, such as 1gbit or 250mbit")
    return float(found[1]) * _UNITS[found[2]]
