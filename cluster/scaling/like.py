"""Links with which an experiment here is decided as on a big cluster.

What decides is r, see `cluster.lab.cost_model.kind.exchange_ratio`. A cluster of w workers that computes w x images/s,
with a global batch of B, has r = bytes(w) / bandwidth / (B / (w x images/s)). Here the passes of a step without an
exchange take t, and the same r needs a bandwidth of bytes / (r t). The bytes are all-reduce's, each by the formula at
its own number of workers; so the other exchanges meet the link that they would meet there.

What collective operations get of a link is less than its bandwidth, by the headers of its packets: `PAYLOAD_SHARE` of
it by sweeps, here and on the cluster alike. `cells.py` puts this together.
"""

import re
from dataclasses import dataclass

PAYLOAD_SHARE = 0.95  # sweeps of links of 0.1 to 1 Gbit/s, between 2 and 4 hosts, found 0.94 to 0.96
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
        images_per_second: Samples per second of each in forward and backward passes alone.
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

    def passes_seconds(self, global_batch_size: int) -> float:
        """Return the time of a step's forward and backward passes."""
        return global_batch_size / (self.num_workers * self.images_per_second)

    @property
    def payload_bytes_per_second(self) -> float:
        """What collective operations get of a link."""
        return PAYLOAD_SHARE * self.gigabits_per_second * 1e9 / 8
