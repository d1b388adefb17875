"""Counts, which add up exactly over batches and ranks; rates are for whoever prints them."""

from collections.abc import Sequence

import torch
from torch import Tensor

NO_RANK = -1


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes are ahead of each sample's label; 0 where the label comes first.

    Of equal scores the lower class index ranks first, so a net whose outputs are all alike scores as chance does, and
    the rank does not depend on the device (`torch.topk` leaves ties open).

    Args:
        scores: (B, num_classes), floating: logits, or anything that orders the classes as they do.
        labels: int64 (B,), in [0, num_classes).

    Returns:
        int64 (B,) on the device of the scores; `NO_RANK` where a NaN is among a sample's scores.
    """
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    ranks = ((scores > own) | ((scores == own) & earlier)).sum(dim=1)
    return ranks.where(~scores.isnan().any(dim=1), NO_RANK)


def count_correct(logits: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> Tensor:
    """Count the samples whose label is among the k highest logits, by `label_ranks`.

    A sample with a NaN among its logits is wrong for every k.

    Args:
        logits: (B, num_classes), floating.
        labels: int64 (B,), in [0, num_classes).
        ks: Each at least 1; one beyond the number of classes counts as the number of classes.

    Returns:
        int64 (len(ks),) on the device of the logits.
    """
    ranks = label_ranks(logits, labels)
    return torch.stack([((ranks != NO_RANK) & (ranks < k)).sum() for k in ks])
