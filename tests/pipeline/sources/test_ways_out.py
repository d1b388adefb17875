"""What an error says that may be left out: following it leaves out that alone, and the samples are all there."""

import shlex

import layouts
import pytest
from source_files import check_adds_up, samples, save_pictures, taken

from pipeline.command import InputError
from pipeline.sources.detect import open_source
from tests.pipeline.sources.test_webdataset_tars import picture, save

SAMPLES = ["train/cat/a.jpg", "train/dog/b.jpg", "train/val/c.jpg", "train/more/d.jpg", "train/cat/x.jpg"]
OTHERS = {
    "a folder beside the splits, named like a class": (["more/old/a.jpg", "more/b.jpg"], 1),
    "a picture beside the splits, named like a sample": (["x.jpg"], 1),
    "several folders": (["more/a.jpg", "others/b.jpg", "others/old/c.jpg"], 1),
    "many folders": ([f"{letter}/a.jpg" for letter in "abcdefg"], 3),
    "a hidden folder": (["train/.old/a.jpg", "train/.old/b.jpg"], 1),
    "hidden pictures": (["train/cat/.a.jpg", "train/cat/.b.jpg"], 1),
    "names with the shell's letters": (["train/cat/a [1]", "train/cat/what?", "train/cat/*"], 1),
    "an ending with the shell's letters": (["train/cat/a.jpg[1]", "train/cat/b.jpg[1]"], 1),
    "endings and none": (["train/cat/a.dat", "train/dog/b.dat", "train/dog/c.old", "train/dog/c"], 1),
    "the ending of a table": (["train/cat/a.txt"], 1),
    "a name that breaks the line": (["train/cat/a\nb"], 1),
    "a name that is almost a split's": (["val_2/cat/a.jpg"], 1),
    "a split without classes, named like a class": (["val/a.jpg"], 1),
}


@pytest.mark.parametrize(("others", "num_tries"), OTHERS.values(), ids=OTHERS)
def test_what_an_error_says_leaves_out_just_that(tmp_path, others, num_tries):
    save_pictures(tmp_path, SAMPLES)
    (tmp_path / "classes.txt").write_text("cat house cat\n")
    truth = samples(taken(tmp_path)[0])
    save_pictures(tmp_path, others)
    ignore = []
    for _ in range(num_tries):
        with pytest.raises(InputError) as caught:
            taken(tmp_path, *ignore)
        message = str(caught.value)
        assert "\n" not in message
        words = shlex.split(message[message.index("--ignore") :].partition(", and")[0])
        assert words[::2] == ["--ignore"] * (len(words) // 2)
        ignore += words[1::2]
    listing, inventory = taken(tmp_path, *ignore)
    assert samples(listing) == truth
    assert listing.classes[0].name == "house cat"
    check_adds_up(inventory)


def test_a_class_whose_name_begins_like_an_option_is_no_option(tmp_path):
    save_pictures(tmp_path, ["-cat/a.jpg", "dog/b.jpg", "-cat/c"])
    with pytest.raises(InputError, match=r"--ignore /-cat/c$"):
        taken(tmp_path)
    assert taken(tmp_path, "/-cat/c")[1].num_samples == 2


def test_a_pattern_with_a_slash_at_its_start_is_for_the_whole_path(tmp_path):
    save_pictures(tmp_path, ["train/cat/a.jpg", "train/dog/b.jpg", "cat/a.jpg"])
    assert taken(tmp_path, "/cat")[1].num_samples == 2
    assert taken(tmp_path, "cat")[1].num_samples == 1


@pytest.mark.parametrize("make", [layouts.official, layouts.idx, layouts.cifar, layouts.parquet, layouts.webdataset])
@pytest.mark.parametrize("place", ["inner", "data-set/raw"])
def test_a_source_that_lies_one_or_two_folders_down_is_named(tmp_path, make, place):
    (tmp_path / place).mkdir(parents=True)
    make(tmp_path / place)
    with pytest.raises(InputError, match=f"{place} in it has the layout {make.__name__}; name that folder"):
        open_source(tmp_path)
    assert open_source(tmp_path / place).layout == make.__name__


def test_names_with_several_dots_are_told_how_they_are_read(tmp_path):
    save(tmp_path / "a.tar", [("v1.1.jpg", picture(0)), ("v1.1.cls", b"0")])
    with pytest.raises(InputError, match="one name up to the first dot"):
        taken(tmp_path)
