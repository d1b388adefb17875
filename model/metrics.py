"""Counts, which add up exactly over batches and ranks; rates are for whoever prints them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def count_correct(logits: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> Tensor:
    """Count the samples whose label is among the k highest logits.

    Of equal logits the lower class index ranks first, so a net whose outputs are all alike scores as chance does, and
    the count does not depend on the device (`torch.topk` leaves ties open). A sample with a NaN among its logits is
    wrong for every k.

    Args:
        logits: (B, num_classes), floating.
        labels: int64 (B,), in [0, num_classes).
        ks: Each at least 1; one beyond the number of classes counts as the number of classes.

    Returns:
        int64 (len(ks),) on the device of the logits.
    """
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & earlier)).sum(dim=1)
    valid = ~logits.isnan().any(dim=1)
    return torch.stack([((rank < k) & valid).sum() for k in ks])
