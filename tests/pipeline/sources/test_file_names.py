"""Names of files: words that mean a split, numbered parts that must all be there."""

import pytest

from pipeline.command import InputError
from pipeline.sources.file_names import check_parts, split_words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("imagenet1k-train-0003", ("train",)),
        ("A_TRAINING.7", ("training",)),
        ("valid-1", ("valid",)),
        ("my.dev", ("dev",)),
        ("testing", ("testing",)),
        ("train-test", ("train", "test")),
        ("contest-000", ()),
        ("retrain", ()),
        ("interval_3", ()),
        ("latest", ()),
        ("devkit", ()),
    ],
)
def test_words_that_mean_a_split_are_whole_ones(name, words):
    assert split_words(name) == words


def numbered(pattern, numbers):
    return [pattern % number for number in numbers]


COMPLETE = [
    numbered("train-%06d.tar", range(3)),
    numbered("train-%d.tar", range(1, 12)),
    numbered("%d.tar", range(12)),
    numbered("train-%05d-of-00003.tar", range(3)),
    numbered("train-%05d-of-00003.tar", range(1, 4)),
    ["train-00000-of-00002-ab12.parquet", "train-00001-of-00002-cd34.parquet"],
    ["train-00000-of-00001-1234567890123456.parquet"],
    ["train.tar", "val.tar"],
    ["cats-2023.tar", "cats-2024.tar"],
    ["a1-train.tar", "a3-train.tar"],
    [*numbered("train-%04d.tar", range(3)), *numbered("val-%02d.tar", range(1, 3))],
]


@pytest.mark.parametrize("names", COMPLETE)
def test_sets_with_all_their_parts(names):
    check_parts("folder", reversed(names), partial=False)


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        (numbered("train-%06d.tar", [0, 1, 3]), "lacks train-000002.tar; get"),
        (numbered("train-%06d.tar", [0, 1, 3, 7]), "lacks train-000002.tar and 3 more of its set; get"),
        (numbered("train-%06d.tar", [3, 4]), "lacks train-000001.tar and 1 more of its set; get"),
        (numbered("train-%d.tar", [0, 10**12]), r"lacks train-1.tar and 999999999998 more of its set; get"),
        (numbered("train-%02d-of-03.tar", [0, 1]), "lacks train-02-of-03.tar; get"),
        (numbered("train-%02d-of-03.tar", [2, 3]), "lacks train-01-of-03.tar; get"),
        (numbered("train-%05d-of-00005-ab12.parquet", [0, 1, 4]), "lacks train-00002-of-00005.parquet and 1 more"),
        ([*numbered("train-%d.tar", range(3)), "val-00.tar", "val-02.tar"], "lacks val-01.tar; get"),
    ],
)
def test_missing_parts_are_named(names, lacking):
    with pytest.raises(InputError, match=f"folder {lacking} .*--partial|folder {lacking}.*--partial"):
        check_parts("folder", names, partial=False)
    check_parts("folder", names, partial=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["t-0-of-1.parquet", "t-0-of-2.parquet", "t-1-of-2.parquet"], "parts of two sets, t-0-of-1.* and t-0-of-2"),
        (["t-0-of-2.parquet", "t-0.parquet", "t-1-of-2.parquet"], "parts of two sets"),
        (["t-0-of-1-ab.parquet", "t-0-of-1-cd.parquet"], "one part twice, t-0-of-1-ab.parquet and t-0-of-1-cd.parquet"),
        (["t-1.tar", "t-01.tar"], "one part twice, t-01.tar and t-1.tar"),
        (["t-1.tar", "t-02.tar"], "numbers parts in two ways, t-1.tar and t-02.tar"),
        (["t-0-of-1.tar", "t-1-of-1.tar"], "holds t-1-of-1.tar, which is not one of 1 parts"),
        (["t-7-of-5.tar"], "holds t-7-of-5.tar, which is not one of 5 parts"),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_parts_of_two_sets_are_refused(names, message, partial):
    with pytest.raises(InputError, match=f"folder .*{message}.*; keep those of one set, or leave files out with"):
        check_parts("folder", names, partial)
