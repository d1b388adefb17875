"""Counts, which add up exactly over batches and ranks; the code that prints them computes the rates."""

from collections.abc import Sequence

import torch
from torch import Tensor

NO_RANK = -1


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes rank above each sample's label; 0 means that the label ranks first.

    Among equal scores the lower class index ranks first. A net with constant outputs therefore scores no better than
    chance, and the rank does not depend on the device (`torch.topk` does not define the order of ties).

    Args:
        scores: (B, num_classes), floating: logits, or other scores that order the classes in the same way.
        labels: int64 (B,), in [0, num_classes).

    Returns:
        int64 (B,) on the device of the scores; `NO_RANK` if one of a sample's scores is NaN.
    """
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    ranks = ((scores > own) | ((scores == own) & earlier)).sum(dim=1)
    return ranks.masked_fill_(scores.isnan().any(dim=1), NO_RANK)


def count_correct(logits: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> Tensor:
    """Count the samples whose label is among the k highest logits, as ranked by `label_ranks`.

    A sample with a NaN among its logits counts as wrong for every k.

    Args:
        logits: (B, num_classes), floating.
        labels: int64 (B,), in [0, num_classes).
        ks: Values of k, each at least 1; a k above the number of classes counts every sample without NaN.

    Returns:
        int64 (len(ks),) on the device of the logits.
    """
    ranks = label_ranks(logits, labels)
    return torch.stack([((ranks != NO_RANK) & (ranks < k)).sum() for k in ks])
