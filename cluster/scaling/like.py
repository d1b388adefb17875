"""Links with which an experiment here is decided as on a big cluster.

What decides is r = bytes of the exchange / bandwidth / time of the computation. A cluster of w workers that computes
w x images/s, with a global batch of B, has r = bytes(w, B) / bandwidth / (B / (w x images/s)). Here a step without an
exchange takes t, and the same r needs a bandwidth of bytes / (r t). The bytes are all-reduce's, each by the formula at
its own number of workers; so the other exchanges meet the link that they would meet there.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it loads torch, which the declaration of an experiment does without
    from cluster.exchange.cost import Workload

_FORM = re.compile(
    r"(?P<workers>\d+) *x *(?P<rate>[\d.]+) *(?:img|images|imgs)/s *@ *(?P<bandwidth>[\d.]+) *(?P<unit>[gm])bit(?:/s)?",
    re.IGNORECASE,
)
_GIGABITS = {"g": 1.0, "m": 1e-3}


@dataclass(frozen=True)
class LikeCluster:
    """A cluster that is imitated.

    Attributes:
        num_workers: Number of workers.
        images_per_second: Samples per second of each, computing alone.
        gigabits_per_second: Bandwidth of each worker's link.
    """

    num_workers: int
    images_per_second: float
    gigabits_per_second: float

    @classmethod
    def parse(cls, text: str) -> "LikeCluster":
        """Read a text such as `8 x 20000 img/s @ 100gbit`.

        Raises:
            ValueError: It is none.
        """
        found = _FORM.fullmatch(text.strip())
        try:
            if found is None:
                raise ValueError
            gigabits = float(found["bandwidth"]) * _GIGABITS[found["unit"].lower()]
            cluster = cls(int(found["workers"]), float(found["rate"]), gigabits)
            if cluster.num_workers < 2 or not (cluster.images_per_second > 0 and gigabits > 0):
                raise ValueError
        except ValueError:
            raise ValueError(
                f'like={text!r}: must be like "8 x 20000 img/s @ 100gbit": at least 2 workers, their images/s each, '
                "and the bandwidth of each one's link"
            ) from None
        return cluster

    def ratio(self, workload: "Workload") -> float:
        """Return its r.

        Args:
            workload: Model, and its global batch there.
        """
        num_bytes = workload.num_bytes("allreduce", self.num_workers)
        compute_seconds = workload.global_batch_size / (self.num_workers * self.images_per_second)
        return num_bytes / (self.gigabits_per_second * 1e9 / 8) / compute_seconds


def matching_gigabits(ratio: float, workload: "Workload", num_workers: int, compute_seconds: float) -> float:
    """Return the bandwidth here that gives an r, to three digits.

    Args:
        ratio: The r that is wanted.
        workload: Model, and its global batch here.
        num_workers: Number of workers here.
        compute_seconds: Time of a step here without an exchange.
    """
    num_bytes = workload.num_bytes("allreduce", num_workers)
    return float(f"{num_bytes / (ratio * compute_seconds) * 8 / 1e9:.3g}")
