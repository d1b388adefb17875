"""Prediction agrees with evaluation on the same pictures, needs no dataset, and draws what it says."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cluster.run.config import TrainingConfig
from cluster.run.run_folder import RunFolder
from cluster.worker.evaluation_files import evaluate_run
from cluster.worker.prediction import Prediction, predict
from cluster.worker.training import Trainer
from cluster.worker.world import World
from jobs import predict as job
from jobs.prediction_figure import PICTURES_PER_PAGE, draw_pages, shortened
from model.optim_config import OptimizerConfig
from model.registry import ModelConfig
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.loader import EvalLoader, LoaderConfig
from pipeline.offline.sharding import ShardingConfig, shard_dataset
from pipeline.online.augmentation import AugmentationConfig, divisor
from pipeline.pictures.encode import EncodingConfig
from pipeline.pictures.figures import write_figure
from pipeline.pictures.picture_files import evaluation_images, read_square
from pipeline.sources.detect import open_source

ALONE = World(0, 1, torch.device("cpu"))
CLASSES = ("n01", "n02", "n03")
CONFIG = TrainingConfig(
    name="test",
    model=ModelConfig(name="alexnet_small"),
    optimizer=OptimizerConfig(learning_rate=0.01),
    augmentation=AugmentationConfig(crop_size=28, subtract="mean_image"),
    global_batch_size=6,
    num_epochs=1,
    precision="float64",
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Class folders of oblong pictures in several formats and modes."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.Generator(np.random.Philox(7))
    kinds = [("RGB", "jpg"), ("RGB", "png"), ("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png")]
    for split, count in (("train", 4), ("val", 5)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                mode, extension = kinds[number]
                height, width = 20 + 9 * number, 61 - 6 * number
                pixels = generator.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
                picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
                picture.save(folder / f"{number}.{extension}")
    return root


def _dataset(pictures: Path, out: Path, encoding: EncodingConfig) -> Dataset:
    shard_dataset(open_source(pictures), out, ShardingConfig(encoding=encoding), num_workers=1)
    return Dataset.open(out)


@pytest.fixture(scope="module")
def dataset(pictures, tmp_path_factory) -> Dataset:
    return _dataset(pictures, tmp_path_factory.mktemp("jpeg") / "d", EncodingConfig(encoding="jpeg", size=32))


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> RunFolder:
    run = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", CONFIG, dataset)
    trainer = Trainer(dataset, run, ALONE)
    trainer.run()
    trainer.close()
    return run


@pytest.mark.parametrize("crops", ["centre", "ten"])
def test_the_pictures_of_a_class_folder_are_predicted_as_evaluation_predicts_them(
    run, dataset, pictures, tmp_path, crops
):
    evaluate_run(dataset.path, run.path, "val", crops, tmp_path, ALONE)
    evaluated = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    sources = dataset.manifest("val", ["source"])["source"].to_pylist()
    predictions = list(predict([pictures / "val" / source for source in sources], run, crops, ALONE.device))
    assert len(predictions) == len(evaluated) == 15
    for prediction, row in zip(predictions, evaluated, strict=True):
        assert prediction.class_indices[0] == row["predicted_class_index"]
        assert prediction.probabilities[0] == pytest.approx(row["probability"], rel=1e-9)
        assert sum(prediction.probabilities) == pytest.approx(1)  # three classes: all of them
        assert prediction.true_class_index == row["class_index"]
        assert prediction.class_indices.index(row["class_index"]) == row["rank"]


@pytest.mark.parametrize(
    "encoding",
    [
        EncodingConfig(encoding="raw", size=32),
        EncodingConfig(encoding="jpeg", size=32, quality=60),
        EncodingConfig(encoding="jpeg", size=32, crop="none"),
        EncodingConfig(encoding="original", size=32),
    ],
    ids=lambda e: f"{e.encoding}-{e.crop}",
)
@pytest.mark.parametrize("ten_crops", [False, True], ids=["centre", "ten"])
def test_a_files_images_are_those_that_evaluation_reads(pictures, tmp_path, encoding, ten_crops):
    dataset = _dataset(pictures, tmp_path / "d", encoding)
    augmentation = AugmentationConfig(crop_size=28)
    loader = EvalLoader(
        dataset, "val", batch_size=15, augmentation=augmentation, ten_crops=ten_crops, config=LoaderConfig()
    )
    read = next(loader).images.numpy()
    loader.close()
    stored = RunFolder.create(tmp_path / "run", CONFIG, dataset).encoding
    assert stored == encoding
    sources = dataset.manifest("val", ["source"])["source"].to_pylist()
    squares = [read_square(pictures / "val" / source, stored) for source in sources]
    images = evaluation_images(squares, augmentation, dataset.color_basis, None, ten_crops=ten_crops)
    if encoding.encoding == "original":
        grey_levels = np.abs(images - read) * divisor(augmentation, dataset.color_basis)[:, None, None]
        assert 0 < grey_levels.mean() < 0.5
        # The corner crops reach the square's edge, behind which DALI's filter sees more of the picture.
        assert grey_levels.max() <= (16 if ten_crops else 4.01)
    else:
        assert np.array_equal(images, read)


def test_a_run_predicts_without_its_dataset_and_an_old_run_with_it(run, dataset, pictures, tmp_path):
    image = [pictures / "val" / "n02" / "0.jpg"]
    (expected,) = predict(image, run, "centre", ALONE.device)
    for name in ("old", "lost"):
        shutil.copytree(run.path, tmp_path / name)
        document = json.loads((run.path / "config.json").read_text())
        document["dataset"]["path"] = "/nowhere" if name == "lost" else str(dataset.path)
        if name == "old":
            del document["dataset"]["class_names"], document["dataset"]["encoding"]
        (tmp_path / name / "config.json").write_text(json.dumps(document))
        (again,) = predict(image, RunFolder.open(tmp_path / name), "centre", ALONE.device)
        assert again.probabilities == expected.probabilities
        assert RunFolder.open(tmp_path / name).class_names == list(CLASSES)


def test_the_command_tells_writes_and_draws(run, pictures, tmp_path, capsys):
    elsewhere = tmp_path / "holiday.webp"
    Image.open(pictures / "val" / "n03" / "1.png").save(elsewhere, lossless=True)
    images = [str(pictures / "val" / "n01" / "0.jpg"), str(elsewhere)]
    outputs = ["--figure", str(tmp_path / "f.png"), "--json", str(tmp_path / "p.json")]
    assert job.main([*images, "--run", str(run.path), *outputs]) == 0
    told = capsys.readouterr().out
    document = json.loads((tmp_path / "p.json").read_text())
    first, second = document["predictions"]
    assert first["true_class"] == {"class_index": 0, "wnid": "n01", "name": "n01"} and second["true_class"] is None
    assert [entry["path"] for entry in (first, second)] == images
    probabilities = [entry["probability"] for entry in first["classes"]]
    assert probabilities == sorted(probabilities, reverse=True) and len(probabilities) == 3
    assert told.count("<- its folder") == 1 and f"{probabilities[0]:6.1%}" in told
    with Image.open(tmp_path / "f.png") as figure:
        assert figure.format == "PNG" and figure.width > 1000 and figure.height > 200


def _prediction(number: int, num_classes: int) -> Prediction:
    pixels = np.full((40, 40, 3), number, dtype=np.uint8)
    path = Path(f"{'long-' * 20}name-{number}.jpg")
    return Prediction(path, pixels, list(range(num_classes)), [1 / num_classes] * num_classes, number % 7)


def test_the_true_class_has_a_color_of_its_own(tmp_path):
    (page,) = draw_pages([_prediction(2, 4)], list("abcdefg"))
    write_figure(page, tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as figure:
        counts = {color: count for count, color in figure.convert("RGB").getcolors(1 << 24)}
    assert counts[0xB9, 0xD0, 0xEA] == pytest.approx(3 * counts[0xF2, 0xA9, 0xA2], rel=0.1)  # four equal bars


@pytest.mark.parametrize("num_pictures", [1, 2, 3, 4, PICTURES_PER_PAGE, PICTURES_PER_PAGE + 1])
def test_pages_hold_any_number_of_pictures(num_pictures):
    names = [f"${name}_{{ and, a long list of synonyms, " * 4 for name in "abcdefg"]
    pages = list(draw_pages([_prediction(i, 5) for i in range(num_pictures)], names))
    assert len(pages) == -(-num_pictures // PICTURES_PER_PAGE)
    shown = [axes.images[0].get_array()[0, 0, 0] for page in pages for axes in page.axes if axes.images]
    assert shown == list(range(num_pictures))
    for page in pages:
        page.canvas.draw()
        assert all(page.bbox.containsx(axes.bbox.x0) and page.bbox.containsx(axes.bbox.x1) for axes in page.axes)


def test_a_second_page_is_a_file_of_its_own(run, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jobs.prediction_figure.PICTURES_PER_PAGE", 2)
    images = [str(path) for path in sorted((pictures / "val" / "n01").iterdir())]
    job.main([*images, "--run", str(run.path), "--figure", str(tmp_path / "f.png")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f-2.png", "f-3.png", "f.png"]


def test_long_names_end_in_an_ellipsis():
    assert shortened("tench", 10) == "tench"
    assert shortened("tench, Tinca tinca", 8) == "tench…"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none.jpg"], "none.jpg can't be read: No such file"),
        (["{tmp}"], "can't be read: Is a directory"),
        (["{tmp}/none.jpg", "{tmp}/torn.jpg"], r"none.jpg can't be read.*\n.*torn.jpg is not a complete picture"),
        (["{tmp}/text.jpg"], "text.jpg is not a complete picture .undecodable"),
        (["{picture}", "--figure", "{tmp}/out.pdf"], "does not end in .png"),
        (["{picture}", "--figure", "{tmp}/folder.png"], "is a folder"),
        ([], "no picture is named"),
        (["{picture}", "--run", "{tmp}"], "holds no run"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(run, pictures, tmp_path, arguments, message):
    picture = pictures / "val" / "n01" / "0.jpg"
    (tmp_path / "torn.jpg").write_bytes(picture.read_bytes()[:-200])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.iterdir())
    filled = [argument.format(tmp=tmp_path, picture=picture) for argument in arguments]
    run_option = [] if "--run" in filled else ["--run", str(run.path)]
    with pytest.raises(InputError, match=message):
        job.main([*filled, *run_option, "--json", str(tmp_path / "p.json")])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", ["torn.jpg", "page.jpg", "none.jpg", "empty.png", "folder.jpg"])
def test_one_bad_file_costs_the_good_ones_nothing(run, pictures, tmp_path, capsys, bad, place):
    good = [pictures / "val" / "n01" / "0.jpg", pictures / "val" / "n02" / "1.png"]
    (tmp_path / "torn.jpg").write_bytes(good[0].read_bytes()[:-200])
    (tmp_path / "page.jpg").write_text("<html>404")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.jpg").mkdir()
    images = [*map(str, good)]
    images.insert(place, str(tmp_path / bad))
    outputs = ["--json", str(tmp_path / "p.json"), "--figure", str(tmp_path / "f.png")]
    assert job.main([*images, "--run", str(run.path), *outputs]) == 1
    told, document = capsys.readouterr(), json.loads((tmp_path / "p.json").read_text())
    (line,) = told.err.splitlines()
    assert line.startswith(f"error: {tmp_path / bad} ")
    assert [entry["path"] for entry in document["predictions"]] == [str(path) for path in good]
    assert list(document["refused"]) == [str(tmp_path / bad)] and (tmp_path / "f.png").exists()
    alone = list(predict(good, run, "centre", ALONE.device))
    probabilities = [[c["probability"] for c in entry["classes"]] for entry in document["predictions"]]
    np.testing.assert_allclose(probabilities, [p.probabilities for p in alone], rtol=1e-9)


def test_a_run_without_a_checkpoint_says_so(dataset, pictures, tmp_path):
    run = RunFolder.create(tmp_path, dataclasses.replace(CONFIG, seed=1), dataset)
    with pytest.raises(InputError, match="has no checkpoint yet"):
        list(predict([pictures / "val" / "n01" / "0.jpg"], run, "centre", ALONE.device))
