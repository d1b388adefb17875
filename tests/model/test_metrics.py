import math

import torch

from model.metrics import count_correct


def test_counts_of_a_literal_table() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 5.0, 9.0]])
    labels = torch.tensor([0, 1, 2, 2])
    counts = count_correct(logits, labels, ks=(1, 2, 3))
    assert counts.dtype == torch.int64
    assert counts.tolist() == [2, 3, 4]


def test_agrees_with_topk_where_no_logits_are_equal() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.rand(500, 40, generator=generator, dtype=torch.float64)
    labels = torch.randint(40, (500,), generator=generator)
    hits = logits.topk(5).indices == labels[:, None]
    assert count_correct(logits, labels).tolist() == [int(hits[:, :1].sum()), int(hits.sum())]


def test_equal_logits_rank_by_class_index() -> None:
    logits = torch.zeros(10, 10)
    assert count_correct(logits, torch.arange(10)).tolist() == [1, 5]
    tied = torch.tensor([[1.0, 7.0, 7.0, 7.0]]).expand(4, 4)
    assert count_correct(tied, torch.arange(4), ks=(1, 2, 3, 4)).tolist() == [1, 2, 3, 4]


def test_k_beyond_the_classes_counts_all() -> None:
    assert count_correct(torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), ks=(5,)).tolist() == [6]


def test_nan_is_wrong_and_infinity_is_a_number() -> None:
    nan, inf = math.nan, math.inf
    logits = torch.tensor([[nan, nan], [nan, 1.0], [2.0, nan], [inf, 0.0], [-inf, 0.0]])
    labels = torch.tensor([0, 1, 0, 0, 1])
    assert count_correct(logits, labels, ks=(1, 2)).tolist() == [2, 2]


def test_an_empty_batch_counts_nothing() -> None:
    assert count_correct(torch.empty(0, 10), torch.empty(0, dtype=torch.int64)).tolist() == [0, 0]
