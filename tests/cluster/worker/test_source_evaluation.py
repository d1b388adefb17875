"""Pictures of one's own are evaluated as if they had been sharded, and none is passed over in silence."""

import json
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cluster.run.config import TrainingConfig
from cluster.run.run_folder import RunFolder
from cluster.worker import source_evaluation
from cluster.worker.evaluation_files import evaluate_run
from cluster.worker.evaluation_options import Crops
from cluster.worker.training import Trainer
from cluster.worker.world import World
from jobs import evaluate as job
from model.optim_config import OptimizerConfig
from model.registry import ModelConfig
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.online.augmentation import AugmentationConfig
from pipeline.pictures.encode import EncodingConfig
from pipeline.sources.detect import open_source

ALONE = World(0, 1, torch.device("cpu"))
CLASSES = ("n01", "n02", "n03", "n04")
NAMES = ("tench", "crane", "crane", "drake")
NUM_TEST = 5  # pictures of each class
CONFIG = TrainingConfig(
    name="test",
    model=ModelConfig(name="alexnet_small"),
    optimizer=OptimizerConfig(learning_rate=0.01),
    augmentation=AugmentationConfig(crop_size=28),
    global_batch_size=6,
    num_epochs=1,
    precision="float64",
)
ENCODINGS = [
    EncodingConfig(encoding="raw", size=32),
    EncodingConfig(encoding="jpeg", size=32, quality=60),
    EncodingConfig(encoding="jpeg", size=32, crop="none"),
    EncodingConfig(encoding="jpeg", size=32, crop="squash"),
    EncodingConfig(encoding="original", size=32),
]


def _write(folder: Path, count: int, seed: int) -> None:
    """Write oblong pictures in several formats and modes."""
    folder.mkdir(parents=True)
    generator = np.random.Generator(np.random.Philox(seed))
    kinds = [("RGB", "jpg"), ("RGB", "png"), ("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png")]
    for number in range(count):
        mode, extension = kinds[number % len(kinds)]
        height, width = 40 + 9 * number, 81 - 6 * number
        pixels = generator.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
        picture.save(folder / f"{number}.{extension}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for seed, wnid in enumerate(CLASSES):
        _write(root / "train" / wnid, 4, seed)
        _write(root / "test" / wnid, NUM_TEST, 100 + seed)
    (root / "classes.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in zip(CLASSES, NAMES, strict=True)))
    return root


def _trained(pictures: Path, folder: Path, encoding: EncodingConfig) -> tuple[RunFolder, Dataset]:
    config = ShardingConfig(encoding=encoding, val_fraction=0.0)
    shard_dataset(open_source(pictures), folder / "dataset", config, num_workers=1)
    dataset = Dataset.open(folder / "dataset")
    run = RunFolder.create(folder / "run", CONFIG, dataset)
    trainer = Trainer(dataset, run, ALONE)
    trainer.run()
    trainer.close()
    return run, dataset


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory) -> RunFolder:
    return _trained(pictures, tmp_path_factory.mktemp("trained"), ENCODINGS[1])[0]


@pytest.fixture
def own(pictures, tmp_path) -> Path:
    """A folder of one's own: the test pictures of two classes, in folders that have the classes' names."""
    shutil.copytree(pictures / "test" / "n04", tmp_path / "own" / "drake")
    shutil.copytree(pictures / "test" / "n01", tmp_path / "own" / "n01")
    return tmp_path / "own"


def _evaluate(run: RunFolder, source: Path, out: Path, *options: str) -> tuple[dict, list[dict], list[dict]]:
    """Return result, classes and predictions of the command."""
    assert job.main(["--source", str(source), "--run", str(run.path), "--out", str(out), *options]) == 0
    tables = (pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("per_class", "predictions"))
    return json.loads((out / "result.json").read_text()), *tables


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: f"{e.encoding}-{e.crop}")
def test_the_result_is_that_of_the_same_pictures_sharded(pictures, tmp_path, encoding):
    run, dataset = _trained(pictures, tmp_path, encoding)
    for crops in ("centre", "ten"):
        _check_equal(pictures, run, dataset, tmp_path / crops, crops, is_exact=encoding.encoding != "original")


def _check_equal(
    pictures: Path, run: RunFolder, dataset: Dataset, tmp_path: Path, crops: Crops, is_exact: bool
) -> None:
    """Compare with the sharded pictures; those of `original` DALI and torch resize each their own way."""
    evaluate_run(dataset.path, run.path, "test", crops, tmp_path / "sharded", ALONE)
    sharded = json.loads((tmp_path / "sharded" / "result.json").read_text())
    rows = pq.read_table(tmp_path / "sharded" / "predictions.parquet").to_pylist()
    by_source = dict(zip(dataset.manifest("test", ["source"])["source"].to_pylist(), rows, strict=True))
    result, classes, predictions = _evaluate(run, pictures / "test", tmp_path / "own", "--crops", crops)
    assert result["num_samples"] == len(predictions) == 4 * NUM_TEST and len(classes) == 4
    for row in predictions:
        expected = by_source[row["key"]]
        assert row["class_index"] == expected["class_index"]
        assert row["probability"] == pytest.approx(expected["probability"], rel=1e-9 if is_exact else 0.05)
        if is_exact:
            assert (row["predicted_class_index"], row["rank"]) == (expected["predicted_class_index"], expected["rank"])
    if is_exact:
        assert (result["top1"], result["top5"]) == (sharded["top1"], sharded["top5"])
        assert result["loss"] == pytest.approx(sharded["loss"], rel=1e-9)


def test_classes_are_matched_by_wnid_or_name_and_what_lacks_is_said(run, own, tmp_path, capsys):
    result, classes, predictions = _evaluate(run, own, tmp_path / "out")
    assert [(row["wnid"], row["name"], row["num_samples"]) for row in classes] == [
        ("n01", "tench", NUM_TEST),
        ("n04", "drake", NUM_TEST),
    ]
    assert {row["key"].partition("/")[0]: row["class_index"] for row in predictions} == {"drake": 3, "n01": 0}
    assert result["absent_classes"] == ["n02", "n03"] and result["source"] == str(own)
    told = capsys.readouterr().out
    assert "no picture of 2 of its classes: n02, n03\n" in told
    assert told.endswith(f"top-5 100.00 %  n={2 * NUM_TEST}\n")


@pytest.mark.parametrize("name", ["heron", "crane", "N01", "tench "])
def test_classes_that_the_run_does_not_know_are_refused_or_counted(run, own, pictures, tmp_path, capsys, name):
    shutil.copytree(pictures / "test" / "n02", own / name)
    told = rf"{run.path} was not trained on 1 of the classes of .*: {name}; rename the folders to its 4 wnids or names "
    if name == "N01":  # two folders whose names differ by case alone
        shutil.rmtree(own / "n01")
    with pytest.raises(InputError, match=rf"{told}\(n01, .*\), or leave them out: --unknown-classes skip"):
        _evaluate(run, own, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result, _, _ = _evaluate(run, own, tmp_path / "out", "--unknown-classes", "skip")
    assert result["skipped_classes"] == {name: NUM_TEST}
    assert f"skipped, since the run does not know their classes ({name}): {NUM_TEST}\n" in capsys.readouterr().out


def test_a_source_of_unknown_classes_alone_is_refused_in_any_case(run, pictures, tmp_path):
    for name in "abcdefg":
        shutil.copytree(pictures / "test" / "n02", tmp_path / "own" / name)
    with pytest.raises(
        InputError, match=r"not trained on 7 of the classes of .*: a, b, c, d, e and 2 more; rename"
    ) as caught:
        _evaluate(run, tmp_path / "own", tmp_path / "out", "--unknown-classes", "skip")
    assert "--unknown-classes skip" not in str(caught.value)


def test_two_folders_of_one_class_are_refused(run, own, pictures, tmp_path):
    shutil.copytree(pictures / "test" / "n04", own / "n04")
    with pytest.raises(InputError, match="has the classes drake and n04, which both mean n04; bring them into one"):
        _evaluate(run, own, tmp_path / "out")


@pytest.mark.parametrize("split", ["test", "val", "validation", "train"])
def test_a_source_with_one_split_is_read(run, own, tmp_path, split):
    (tmp_path / "with").mkdir()
    own.rename(tmp_path / "with" / split)
    result, classes, _ = _evaluate(run, tmp_path / "with", tmp_path / "out")
    assert (result["num_samples"], len(classes)) == (2 * NUM_TEST, 2)


def test_of_several_splits_one_has_to_be_named(run, pictures, tmp_path):
    with pytest.raises(InputError, match="has the splits train, test; name one: --split test"):
        _evaluate(run, pictures, tmp_path / "out")
    result, _, _ = _evaluate(run, pictures, tmp_path / "out", "--split", "train")
    assert (result["split"], result["num_samples"]) == ("train", 16)
    with pytest.raises(InputError, match="has no split 'val'; it has train, test"):
        _evaluate(run, pictures, tmp_path / "out", "--split", "val")


def test_a_source_is_read_by_one_thread(run, own, tmp_path, monkeypatch):
    # Threads that shared a Parquet file crashed, or waited for each other for ever.
    kind, threads = type(open_source(own)), set()
    read = kind.read
    monkeypatch.setattr(kind, "read", lambda *args: threads.add(threading.get_ident()) or read(*args))
    _evaluate(run, own, tmp_path / "out")
    assert threads == {threading.get_ident()}


def _warned() -> None:
    warnings.warn("odd EXIF", stacklevel=1)


def test_warnings_of_decoders_reject_no_picture_and_are_shown_again_afterwards(run, own, tmp_path, monkeypatch):
    before = list(warnings.filters)
    whole = source_evaluation.square_of
    monkeypatch.setattr(source_evaluation, "square_of", lambda *args: _warned() or whole(*args))
    result, _, _ = _evaluate(run, own, tmp_path / "out")
    assert result["num_samples"] == 2 * NUM_TEST and list(warnings.filters) == before


@pytest.mark.parametrize("batch_size", [3, 250])
def test_pictures_that_cannot_be_decoded_are_named_and_counted(run, own, tmp_path, monkeypatch, capsys, batch_size):
    monkeypatch.setattr("cluster.worker.source_evaluation.BATCH_SIZE", batch_size)
    _, _, whole = _evaluate(run, own, tmp_path / "whole")
    (own / "drake" / "0a.jpg").write_text("<html>")
    (own / "n01" / "torn.jpg").write_bytes((own / "n01" / "0.jpg").read_bytes()[:-200])
    for number in range(4):
        (own / "n01" / f"1{number}.png").touch()
    result, classes, predictions = _evaluate(run, own, tmp_path / "out")
    assert set(result["rejected"]) == {"drake/0a.jpg", "n01/torn.jpg", *(f"n01/1{number}.png" for number in range(4))}
    assert [row["key"] for row in predictions] == [row["key"] for row in whole]
    assert [row["probability"] for row in predictions] == pytest.approx([row["probability"] for row in whole])
    assert [row["sample_id"] for row in predictions] == list(range(2 * NUM_TEST))
    assert sum(row["num_samples"] for row in classes) == result["num_samples"] == 2 * NUM_TEST
    told = capsys.readouterr().out
    assert "rejected, since they can't be decoded: 6, namely drake/0a.jpg (" in told and " and 1 more\n" in told


def test_a_source_of_which_nothing_can_be_decoded_is_refused(run, tmp_path):
    (tmp_path / "own" / "n01").mkdir(parents=True)
    (tmp_path / "own" / "n01" / "a.jpg").write_text("<html>")
    with pytest.raises(InputError, match=r"no picture of .* can be decoded: n01/a\.jpg \(.*\); name another --source"):
        _evaluate(run, tmp_path / "own", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_that_the_layout_would_pass_over_is_refused_unless_ignored(run, own, tmp_path):
    (own / "n01" / "0.jpg").rename(own / "n01" / "0.jpg_original")
    with pytest.raises(InputError, match="--ignore"):
        _evaluate(run, own, tmp_path / "out")
    result, _, _ = _evaluate(run, own, tmp_path / "out", "--ignore", "*.jpg_original")
    assert result["num_samples"] == 2 * NUM_TEST - 1


def test_the_folder_is_named_after_the_source(run, own):
    assert job.main(["--source", str(own), "--run", str(run.path)]) == 0
    assert (run.evaluations_path / "source-own-centre" / "result.json").exists()
    (run.evaluations_path / "source-own-centre" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds notes\.txt, which is not of an evaluation"):
        job.main(["--source", str(own), "--run", str(run.path)])


def test_no_evaluation_of_another_source_or_split_is_replaced(run, own, pictures, tmp_path, monkeypatch):
    def evaluated(source: Path | str, *options: str) -> dict:
        assert job.main(["--source", str(source), "--run", str(run.path), *options]) == 0
        name = "-".join(["source", Path(source).name, *options[1:], "centre"])
        return json.loads((run.evaluations_path / name / "result.json").read_text())

    for split in ("train", "test"):
        assert evaluated(pictures, "--split", split)["split"] == split
    first, second = tmp_path / "first" / "holiday", tmp_path / "second" / "holiday"
    shutil.copytree(own, first)
    shutil.copytree(own, second)
    monkeypatch.chdir(first.parent)
    for source in ("holiday", first):
        assert evaluated(source)["source"] == str(first)
    with pytest.raises(
        InputError, match=rf"source-holiday-centre holds the evaluation of {first}; name another .*--out"
    ):
        evaluated(second)
    _evaluate(run, second, run.evaluations_path / "source-holiday-centre")  # as asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "{own}", "--data", "{own}"], "--data and --source exclude each other; leave one out"),
        (["--source", "{own}", "--workers", "2"], "--source is evaluated by this process alone; leave out --workers"),
        (["--data", "{own}", "--ignore", "x"], "--ignore and --unknown-classes are for --source; leave them out"),
        (["--data", "{own}", "--unknown-classes", "skip"], "are for --source; leave them out"),
        (["--source", "{own}/none"], "none does not exist; name the folder that holds the pictures"),
    ],
)
def test_wrong_options_are_named(run, own, options, message):
    with pytest.raises(InputError, match=message):
        job.main([*(option.format(own=own) for option in options), "--run", str(run.path)])
