"""Own pictures: `jobs/train.py --source` makes a dataset once, chooses what fits, and compares with a simple guess."""

import dataclasses
import io
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.run.fit import check_fits_pictures
from cluster.run.run_folder import RunFolder
from jobs import evaluate, predict, train
from jobs.recipes import get_recipe
from jobs.training import choice
from jobs.training.choice import OwnPictures, choose, described, keep
from jobs.training.color_baseline import color_baseline, nearest_class
from jobs.training.own_source import OwnSource
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.format.manifest import DATASET_JSON
from pipeline.online.augmentation import AugmentationConfig
from pipeline.shard import main as shard

CLASSES = ("flat", "rough")


def save_pictures(root, num_each=12, size=(48, 40)) -> None:
    """Save pictures whose classes differ by their texture; their colours say nothing."""
    draw = np.random.Generator(np.random.Philox(key=7))
    for number in range(num_each):
        color = draw.uniform(60, 190, 3)
        for label, sigma in zip(CLASSES, (2, 40), strict=True):
            noise = draw.normal(0, sigma, (size[1], size[0], 3))
            pixels = np.clip(color + noise, 0, 255).astype(np.uint8)
            (root / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / label / f"{number}.png")


@pytest.fixture
def source(tmp_path):
    save_pictures(tmp_path / "photos")
    return tmp_path / "photos"


def words(source, run, *others) -> list[str]:
    return ["--source", str(source), "--run", str(run), "--launcher", "alone", "--precision", "float32", *others]


SHORT = ["--num-epochs", "1", "--global-batch-size", "8"]


@pytest.mark.parametrize(
    ("pictures", "has_gpu", "recipe", "stored", "crop", "batch", "epochs", "held_out"),
    [
        (OwnPictures(200, 4, False, 375), False, "own_pictures", 80, 60, 32, 60, 0.2),
        (OwnPictures(200, 4, True, 375), False, "own_pictures", 80, 60, 32, 54, None),
        (OwnPictures(8_000, 10, False, 375), False, "own_pictures", 80, 60, 128, 10, 0.1),
        (OwnPictures(50_000, 100, False, 375), False, "own_pictures", 80, 60, 128, 10, 0.05),
        (OwnPictures(50_000, 100, False, 375), True, "owt_2014", 256, 224, 128, 90, 0.05),
        (OwnPictures(50_000, 100, False, 64), True, "own_pictures", 64, 48, 128, 10, 0.05),
        (OwnPictures(200, 4, False, 20), False, "own_pictures", 32, 28, 32, 60, 0.2),
        (OwnPictures(60_000, 10, False, 28, stores_pixels=True), False, "own_pictures", None, 24, 128, 10, 0.05),
        (OwnPictures(20, 2, False, 500), False, "own_pictures", 80, 60, 32, 80, 0.2),
    ],
)
def test_the_recipe_fits_the_pictures(pictures, has_gpu, recipe, stored, crop, batch, epochs, held_out):
    choice = choose(pictures, has_gpu)
    assert choice.config.name == recipe and choice.stored_size == stored and choice.val_fraction == held_out
    assert choice.config.augmentation.crop_of(stored or pictures.side) == crop
    assert (choice.config.global_batch_size, choice.config.num_epochs) == (batch, epochs)


def test_a_recipe_that_is_named_holds_and_gets_pictures_that_fit():
    pictures = OwnPictures(200, 4, False, 375)
    assert keep(pictures, get_recipe("krizhevsky_2012"), "why").stored_size == 256
    assert keep(pictures, get_recipe("small_demo"), "why").stored_size == 80
    assert keep(pictures, get_recipe("small_demo"), "why").config == get_recipe("small_demo")


def test_what_was_chosen_is_said_with_its_reason():
    pictures = OwnPictures(200, 4, False, 375)
    choice = choose(pictures, has_gpu=False)
    assert described(pictures, choice) == (
        "own pictures: 200 in 4 classes, 20% of each class held out; shorter side 375 pixels (median)\n"
        "recipe own_pictures (fewer than 20,000 pictures): stored at 80 pixels, crops of 60, batches of 32, 60 epochs\n"
    )


def test_one_picture_per_class_leaves_none_to_hold_out(tmp_path, capsys):
    save_pictures(tmp_path / "photos", num_each=1)
    assert train.main(words(tmp_path / "photos", tmp_path / "run", "--dry-run")) == 0
    assert "own pictures: 2 in 2 classes, none held out, since each class has one;" in capsys.readouterr().out


def test_a_comparison_that_fails_leaves_a_run_finished(source, tmp_path, capsys, monkeypatch):
    def changed(dataset):
        raise InputError("sample 3 is damaged")

    monkeypatch.setattr("jobs.training.outcome.color_baseline", changed)
    assert train.main(words(source, tmp_path / "run", *SHORT)) == 0
    found = capsys.readouterr()
    assert "finished: " in found.out and "not compared with a simple guess: sample 3 is damaged" in found.err


def test_a_dataset_is_made_once_and_the_same_command_goes_on(source, tmp_path, capsys):
    run = tmp_path / "runs" / "mine"
    assert train.main(words(source, run, *SHORT)) == 0
    first = capsys.readouterr().out
    data = Dataset.open(tmp_path / "runs" / "mine-data")
    assert "24 in 2 classes, 20% of each class held out; shorter side 40 pixels" in first
    assert (data.num_samples("train"), data.num_samples("val"), data.stored_size) == (20, 4, 40)
    assert re.search(r"held out, after the last step: top-1 [\d.]+% of 4 pictures .* nearest mean colour alone", first)
    written = (data.path / DATASET_JSON).stat().st_mtime_ns
    assert train.main(words(source, run, *SHORT)) == 0
    second = capsys.readouterr().out
    assert f"using {data.path}, made of {source} before" in second and "is finished already" in second
    assert (data.path / DATASET_JSON).stat().st_mtime_ns == written
    assert train.main(words(source, run)) == 0  # a run that has begun keeps its recipe
    assert "recipe own_pictures (the run's own)" in capsys.readouterr().out
    assert evaluate.main(["--run", str(run)]) == 0  # finds the dataset
    assert capsys.readouterr().out.endswith("n=4\n")
    assert predict.main([str(source / "flat" / "0.png"), "--run", str(run)]) == 0


def test_a_run_of_a_network_of_ones_own_goes_on_by_the_same_command(source, tmp_path, capsys):
    network = ["--model.name", "examples.own_model:SmallNet", "--model.batch-norm-group", "5"]
    own = words(source, tmp_path / "run", *network, "--global-batch-size", "15", "--num-epochs", "1")
    assert train.main(own) == 0
    capsys.readouterr()
    assert train.main(own) == 0
    assert "is finished already" in capsys.readouterr().out
    assert predict.main([str(source / "flat" / "0.png"), "--run", str(tmp_path / "run")]) == 0
    assert re.search("SmallNet is loaded from .*/examples/own_model.py", capsys.readouterr().err)
    with pytest.raises(InputError, match=r"global_batch_size=15: must be a multiple of model.batch_norm_group, 32"):
        train.parse([*words(source, tmp_path / "run"), "--model.name", "examples.own_model:SmallNet"], fifteen())


def fifteen():
    return dataclasses.replace(get_recipe("own_pictures"), global_batch_size=15)


def test_a_crop_of_the_command_line_sets_the_stored_size(source, tmp_path, capsys):
    assert train.main(words(source, tmp_path / "run", "--augmentation.crop-size", "64", *SHORT)) == 0
    assert "stored at 64 pixels, crops of 64" in capsys.readouterr().out
    assert Dataset.open(tmp_path / "run-data").stored_size == 64
    again = words(source, tmp_path / "other", "--data", str(tmp_path / "run-data"), *SHORT, "--dry-run")
    assert train.main(again) == 0
    assert "stored at 64 pixels, crops of 48" in capsys.readouterr().out


def test_pixels_that_are_smaller_than_the_crop_are_refused():
    pictures = OwnPictures(200, 4, False, 28, stores_pixels=True)
    choice = choose(pictures, has_gpu=False)
    config = dataclasses.replace(choice.config, augmentation=AugmentationConfig(crop_size=32))
    with pytest.raises(InputError, match=r"does not fit the pictures.*crop_size is 32.*stored at 28; at most 28 fits"):
        check_fits_pictures(config, "the pictures", choice.overridden(config).stored(pictures), 1)


def test_a_run_of_another_recipe_or_something_else_is_refused_before_a_dataset_is_made(source, tmp_path):
    assert train.main(words(source, tmp_path / "run", *SHORT)) == 0
    other = ["--data", str(tmp_path / "other")]
    with pytest.raises(InputError, match="run holds a run of another recipe"):
        train.main(words(source, tmp_path / "run", *other, "--recipe", "small_demo"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(InputError, match="notes is in use but holds no run"):
        train.main(words(source, tmp_path / "notes", *other, *SHORT))
    assert not (tmp_path / "other").exists()


def test_a_link_into_the_source_lies_in_the_source(source, tmp_path):
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(InputError, match="lies in --source"):
        train.main(words(source, tmp_path / "link" / "run"))
    with pytest.raises(InputError, match="lies in SOURCE"):
        shard([str(source), str(tmp_path / "link" / "out")])


def test_pictures_that_have_changed_are_refused(source, tmp_path):
    own = words(source, tmp_path / "run", "--data", str(tmp_path / "d"), *SHORT)
    assert train.main(own) == 0
    moved = tmp_path / "elsewhere"
    shutil.move(source, moved)
    assert train.main(words(moved, tmp_path / "run", "--data", str(tmp_path / "d"), *SHORT)) == 0  # the same files
    os.utime(moved / "flat" / "0.png", ns=(1, 1))
    with pytest.raises(InputError, match=r"is not what .*/d was made of \(some files were replaced or changed\)"):
        train.main(words(moved, tmp_path / "run", "--data", str(tmp_path / "d"), *SHORT))
    (moved / "flat" / "1.png").unlink()
    with pytest.raises(InputError, match=r"\(24 files then, 23 now\); to train on the dataset as it is, leave out"):
        train.main(words(moved, tmp_path / "run", "--data", str(tmp_path / "d"), *SHORT))


def test_a_dataset_that_was_interrupted_goes_on(source, tmp_path, capsys, monkeypatch):
    from pipeline.offline import sharding

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sharding, "publish", killed)
        train.main(words(source, tmp_path / "run", *SHORT))
    assert not (tmp_path / "run-data" / DATASET_JSON).exists()
    (source / "flat" / "0.png").rename(tmp_path / "0.png")
    with pytest.raises(InputError, match=r"24 files then, 23 now\); it was not completed: remove it"):
        train.main(words(source, tmp_path / "run", *SHORT))
    (tmp_path / "0.png").rename(source / "flat" / "0.png")
    capsys.readouterr()
    assert train.main(words(source, tmp_path / "run", *SHORT)) == 0
    assert "rejected: 0" in capsys.readouterr().out


def test_what_was_chosen_holds_where_there_is_a_gpu_meanwhile(source, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "_MANY", 10)
    monkeypatch.setattr(choice, "_LARGE_SIZE", 32)
    arguments = train.Arguments(source=source, run=tmp_path / "run")
    OwnSource.find(arguments, None).make_dataset()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert OwnSource.find(arguments, None).choice.config.name == "own_pictures"
    OwnSource.find(arguments, None).make_dataset()  # the same pictures
    other = dataclasses.replace(arguments, run=tmp_path / "other")
    assert OwnSource.find(other, None).choice.config.name == "owt_2014"


def test_a_dry_run_makes_nothing(source, tmp_path, capsys):
    assert train.main(words(source, tmp_path / "run", "--dry-run")) == 0
    out = capsys.readouterr().out
    assert f"would make the dataset {tmp_path / 'run-data'}" in out and "recipe own_pictures" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_a_broken_picture_among_few_is_left_out_and_files_may_be_ignored(source, tmp_path, capsys):
    (source / "flat" / "3.png").write_bytes((source / "flat" / "3.png").read_bytes()[:200])
    Image.new("RGB", (40, 40)).save(source / "beside.png")
    with pytest.raises(InputError, match="--ignore"):
        train.main(words(source, tmp_path / "run", *SHORT))
    assert train.main(words(source, tmp_path / "run", "--ignore", "beside.png", *SHORT)) == 0
    assert "rejected: 1" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--ignore left out beside.png then, beside.png no-such now"):
        train.main(words(source, tmp_path / "run", "--ignore", "beside.png", "--ignore", "no-such", *SHORT))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--source", "{tmp}/none", "--run", "{tmp}/r"],
            "none does not exist; name the folder that holds",
        ),
        (["--source", "{source}"], "--run is missing"),
        (["--source", "{source}", "--run", "{source}/r"], "--run .*/r lies in --source"),
        (["--source", "{source}", "--run", "{tmp}/r", "--data", "{source}/d"], "--data .*/d lies in --source"),
        (["--source", "{source}", "--run", "{tmp}/r", "--data", "{data}"], "was not made by --source; leave out"),
        (["--source", "{source}", "--run", "{tmp}/r", "--launcher", "torch"], "--source is not for torchrun"),
        (["--source", "{source}", "--run", "{tmp}/r", "--recipe", "mine"], "there is no recipe 'mine'"),
        (
            ["--source", "{source}", "--run", "{tmp}/r", "--dry-run", "--model.name", "torchvision/resnt18"],
            "torchvision has no such classifier; it has .*resnet18",
        ),
        (
            ["--source", "{source}", "--run", "{tmp}/r", "--launcher", "alone", "--workers", "2"],
            "--workers and --cpus-per-worker are for Ray",
        ),
        (["--source", "{source}", "--run", "{tmp}/r", "--workers", "99"], "99 workers can't share a global batch"),
        (["--data", "{data}", "--run", "{tmp}/r", "--ignore", "x"], "--ignore is for --source"),
        (["--source", "{source}", "--run", "{tmp}/r", "--workers", "0"], "--workers is 0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(arguments, message, source, raw_dataset, tmp_path):
    filled = [word.format(tmp=tmp_path, source=source, data=raw_dataset.path) for word in arguments]
    with pytest.raises(InputError, match=message):
        train.main(filled)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_source_without_training_pictures_is_refused(source, tmp_path):
    (tmp_path / "only").mkdir()
    source.rename(tmp_path / "only" / "val")
    with pytest.raises(InputError, match="only has no training pictures; put them into class folders"):
        train.main(words(tmp_path / "only", tmp_path / "run"))


def test_a_network_from_elsewhere_takes_none_of_the_recipes_switches():
    _, config = train.parse(["--data", "d", "--run", "r", "--model.name", "torchvision/resnet18"])
    assert config.name == "small_demo" and config.model.name == "torchvision/resnet18"
    _, config = train.parse(["--data", "d", "--run", "r", "--model.name", "alexnet_bn", "--model.resize-to", "224"])
    assert config.model.dropout == get_recipe("small_demo").model.dropout


def _literal_top1(dataset) -> float:
    """Classify by the nearest mean colour, one picture and one pixel sum after another, from the tars."""

    def colors(split):
        found = []
        for row in dataset.manifest(split).to_pylist():
            with tarfile.open(dataset.path / row["shard"]) as tar:
                content = tar.extractfile(f"{row['key']}.{dataset.member}").read()
            if dataset.member == "npy":
                pixels = np.load(io.BytesIO(content))
            else:
                pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            sums = [int(pixels[:, :, channel].astype(np.int64).sum()) for channel in range(3)]
            found.append(([total / (pixels.shape[0] * pixels.shape[1]) for total in sums], row["class_index"]))
        return found

    centers = {}
    for label in range(dataset.num_classes):
        own = [color for color, other in colors("train") if other == label]
        centers[label] = [sum(color[channel] for color in own) / len(own) for channel in range(3)]
    hits = 0
    for color, label in colors("val"):
        distances = {k: sum((a - b) ** 2 for a, b in zip(color, center, strict=True)) for k, center in centers.items()}
        hits += min(distances, key=distances.get) == label
    return hits / dataset.num_samples("val")


@pytest.mark.parametrize("name", ["raw_dataset", "jpeg_dataset"])
def test_the_nearest_mean_colour_is_what_a_literal_computation_gives(name, request):
    dataset = request.getfixturevalue(name)
    found = color_baseline(dataset)
    assert found.num_samples == dataset.num_samples("val")
    assert found.top1 == pytest.approx(_literal_top1(dataset))


def test_the_nearest_class_is_the_one_whose_mean_is_near():
    colors = np.array([[0, 0, 0], [20, 0, 0], [200, 0, 0], [220, 0, 0]], dtype=float)
    labels = np.array([5, 5, 2, 2])  # means at 10 and 210
    others = np.array([[109, 0, 0], [111, 0, 0], [110, 0, 0]], dtype=float)
    assert nearest_class(colors, labels, others).tolist() == [5, 2, 2]


@pytest.mark.slow  # 10 s
def test_two_hundred_pictures_are_told_apart_by_what_is_drawn(tmp_path, capsys):
    save_pictures(tmp_path / "photos", num_each=100, size=(96, 80))
    own = ["--source", str(tmp_path / "photos"), "--run", str(tmp_path / "run"), "--launcher", "alone"]
    assert train.main([*own, "--num-epochs", "10"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("held out"))
    top1, baseline = (float(text) for text in re.findall(r"([\d.]+)%", line))
    assert top1 >= 90 and baseline <= 70
    assert RunFolder.open(tmp_path / "run").config.name == "own_pictures"
