"""Kaggle's folder: training pictures by their folder, validation pictures by the table."""

import shutil

import pytest
from PIL import Image
from source_files import check_adds_up, samples, taken

from pipeline.command import InputError
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.pictures.encode import EncodingConfig
from pipeline.sources.detect import open_source

WNIDS = ["n02", "n01", "n10"]


@pytest.fixture
def folder(tmp_path):
    """Two training pictures a class and one validation picture a class, whose numbers are not the class order."""
    pictures = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    lines = ["ImageId,PredictionString"]
    for number, wnid in enumerate(WNIDS):
        (pictures / "train" / wnid).mkdir(parents=True)
        (pictures / "val").mkdir(exist_ok=True)
        image = Image.new("RGB", (40, 30), (number * 80, 0, 0))
        for index in range(2):
            image.save(pictures / "train" / wnid / f"{wnid}_{index}.JPEG")
        image.save(pictures / "val" / f"ILSVRC2012_val_{number}.JPEG")
        lines.append(f"ILSVRC2012_val_{number},{wnid} 1 2 3 4 {wnid} 5 6 7 8 ")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n10 a, b\nn02 tench, Tinca tinca\nn01 goldfish\n")
    return tmp_path


def test_labels_follow_the_sorted_wnids(folder):
    source = open_source(folder)
    assert source.layout == "kaggle"
    listing = source.list_samples()
    assert [(c.wnid, c.name) for c in listing.classes] == [
        ("n01", "goldfish"),
        ("n02", "tench, Tinca tinca"),
        ("n10", "a, b"),
    ]
    train, val = listing.splits["train"].to_pylist(), listing.splits["val"].to_pylist()
    assert [(row["source"], row["class_index"]) for row in train] == [
        (f"train/{wnid}/{wnid}_{index}.JPEG", label) for label, wnid in enumerate(sorted(WNIDS)) for index in range(2)
    ]
    assert [row["class_index"] for row in val] == [1, 0, 2]


def test_it_can_be_sharded(folder, tmp_path):
    config = ShardingConfig(encoding=EncodingConfig(encoding="jpeg", size=16))
    document = shard_dataset(open_source(folder), tmp_path / "out", config, num_workers=1)
    assert {name: counts["num_samples"] for name, counts in document["splits"].items()} == {"train": 6, "val": 3}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "LOC_val_solution.csv").unlink(), "LOC_val_solution.csv is missing"),
        (lambda root: (root / "LOC_synset_mapping.txt").write_text("n01 a\nn02 b\n"), "does not name n10"),
        (
            lambda root: (root / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_1.JPEG").unlink(),
            "the first mismatch: ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_1",
        ),
        (
            lambda root: (root / "LOC_val_solution.csv").write_text(
                "ImageId,PredictionString\nx,n01 1 2 3 4 n02 1 2 3 4\n"
            ),
            "does not give one picture one class",
        ),
    ],
)
def test_tables_that_do_not_fit_are_named(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message):
        open_source(folder).list_samples()


@pytest.fixture
def sorted_folder(folder):
    """The validation pictures lie in the folders of their classes."""
    val = folder / "ILSVRC/Data/CLS-LOC/val"
    for number, wnid in enumerate(WNIDS):
        (val / wnid).mkdir()
        (val / f"ILSVRC2012_val_{number}.JPEG").rename(val / wnid / f"ILSVRC2012_val_{number}.JPEG")
    return folder


@pytest.mark.parametrize("has_table", [True, False])
def test_validation_pictures_may_lie_in_the_folders_of_their_classes(sorted_folder, has_table):
    if not has_table:
        (sorted_folder / "LOC_val_solution.csv").unlink()
    listing, inventory = taken(sorted_folder)
    assert samples(listing)["val"] == [
        (f"val/{wnid}/ILSVRC2012_val_{WNIDS.index(wnid)}.JPEG", wnid) for wnid in sorted(WNIDS)
    ]
    assert len(inventory.tables) == 1 + has_table
    check_adds_up(inventory)


@pytest.mark.parametrize("damage", ["moved", "doubled", "removed", "foreign"])
def test_folders_of_validation_pictures_that_contradict_the_table_are_refused(sorted_folder, damage):
    val = sorted_folder / "ILSVRC/Data/CLS-LOC/val"
    path, other = val / "n01/ILSVRC2012_val_1.JPEG", val / "n02/ILSVRC2012_val_1.JPEG"
    if damage in ("moved", "removed"):
        (path.rename(other) if damage == "moved" else path.unlink())
    else:
        shutil.copy(path, other if damage == "doubled" else path.with_name("mine.JPEG"))
    with pytest.raises(
        InputError, match=r"val and LOC_val_solution.csv differ; the first difference: (ILSVRC2012_val_1|mine).JPEG"
    ):
        taken(sorted_folder)


def test_a_folder_of_no_class_among_validation_pictures_is_named(sorted_folder):
    (sorted_folder / "LOC_val_solution.csv").unlink()
    (sorted_folder / "ILSVRC/Data/CLS-LOC/val/n02").rename(sorted_folder / "ILSVRC/Data/CLS-LOC/val/n77")
    with pytest.raises(InputError, match="does not name n77"):
        taken(sorted_folder)
