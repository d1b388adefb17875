"""The record of a session: the rounds of all its checks and the aims, in the form of `benchmarks.record`."""

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.aims import BATCH_SIZE, IMAGES, QUANTITIES, judged_aims
from benchmarks.gpu.card import describe_card
from benchmarks.gpu.trial import merged_rounds
from benchmarks.record import record_document

PACKAGES = (
    "torch", "torchvision", "triton", "numpy", "numba", "scipy", "pyarrow", "timm", "xxhash", "simplejpeg",
    "nvidia-dali-cuda120", "nvidia-dali-cuda130",
)  # fmt: skip


def session_record(checks: Mapping[str, Mapping[str, Any]], command: str, is_dry: bool) -> dict[str, Any]:
    """Return the record.

    Args:
        checks: Results by check, as in results.json.
        command: Command line, without paths.
        is_dry: True if the figures mean nothing, since everything was tiny and on a CPU.
    """
    values = merged_rounds(check["figures"] for check in checks.values())
    document = record_document(
        name="gpu",
        command=command,
        corpus=f"synthetic pictures of ImageNet's sizes, as 256x256 JPEG unless stated; batches of {BATCH_SIZE}",
        quantities={name: meaning for name, meaning in QUANTITIES.items() if _is_used(name, values) or name == IMAGES},
        values=values,
        comparisons=(),
        packages=PACKAGES,
    )
    words = {True: "ok", False: "failed", None: "skipped"}
    return document | {
        "dry_run": is_dry,
        "card": describe_card(),
        "comparisons": judged_aims(values),
        "checks": {name: words[check["ok"]] for name, check in checks.items()},
    }


def _is_used(quantity: str, values: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(quantity in measured for measured in values.values())
