"""Evaluation: exact on any number of workers, equal to a plain computation, and written to files that agree."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from coded_source import CodedSource
from hypothesis import given
from hypothesis import strategies as st
from worker_process import run_workers

from cluster.run.config import TrainingConfig
from cluster.run.run_folder import RunFolder
from cluster.worker import evaluation_files
from cluster.worker.evaluation import Evaluation, evaluate
from cluster.worker.evaluation_files import confusion_table, evaluate_run, per_class_table, predictions_table
from cluster.worker.trained_model import load_model
from cluster.worker.training import Trainer
from cluster.worker.world import World
from jobs import evaluate as job
from model.metrics import NO_RANK
from model.optim_config import OptimizerConfig
from model.registry import ModelConfig
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.loader import EvalLoader
from pipeline.offline.sharding import ShardingConfig, shard_dataset
from pipeline.online.augmentation import AugmentationConfig, center_parameters, divisor
from pipeline.online.reference import augment, ten_crops
from pipeline.online.shard_reader import ShardReader
from pipeline.pictures.encode import EncodingConfig

ALONE = World(0, 1, torch.device("cpu"))
CONFIG = TrainingConfig(
    name="test",
    model=ModelConfig(name="alexnet_small"),
    optimizer=OptimizerConfig(learning_rate=0.01),
    augmentation=AugmentationConfig(crop_size=28),
    global_batch_size=12,
    num_epochs=2,
    precision="float64",
)
FILES = ("predictions.parquet", "per_class.parquet", "confusion.parquet")


@pytest.fixture(scope="module")
def run(raw_dataset, tmp_path_factory) -> RunFolder:
    """A short run on noise: its predictions are neither all alike nor all right."""
    run = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", CONFIG, raw_dataset)
    trainer = Trainer(raw_dataset, run, ALONE)
    trainer.run()
    trainer.close()
    return run


def _evaluated(run, dataset, crops="centre", split="train") -> Evaluation:
    model, _ = load_model(run, ALONE.device)
    return evaluate(model, dataset, split, ALONE, run, crops)


@pytest.mark.parametrize(("world_size", "crops"), [(2, "ten"), pytest.param(5, "centre", marks=pytest.mark.slow)])
def test_several_workers_write_the_same_files(run, raw_dataset, tmp_path, world_size, crops):
    evaluate_run(raw_dataset.path, run.path, "train", crops, tmp_path / "alone", ALONE)
    run_workers(world_size, "evaluate", raw_dataset.path, run.path, "train", crops, tmp_path / "together")
    for name in FILES:
        alone, together = (pq.read_table(tmp_path / folder / name) for folder in ("alone", "together"))
        if name == "predictions.parquet":
            np.testing.assert_allclose(together["probability"], alone["probability"], rtol=1e-12)
            alone, together = alone.drop("probability"), together.drop("probability")
        assert together.equals(alone), name
    alone, together = (json.loads((tmp_path / f / "result.json").read_text()) for f in ("alone", "together"))
    assert together.pop("loss") == pytest.approx(alone.pop("loss"), rel=1e-12)
    assert together == alone
    assert alone["num_samples"] == 41 and 0 < alone["top1"] < 1


def _images(run: RunFolder, dataset: Dataset, crops: str) -> np.ndarray:
    """The split's images by the specification: float32 (N, crops, 3, 28, 28)."""
    reader, basis = ShardReader(dataset, "train"), dataset.color_basis
    pixels = np.stack([reader.read(i) for i in range(reader.num_samples)])
    arguments = pixels, center_parameters(CONFIG.augmentation, basis, 32, len(pixels)), 28
    scale = divisor(CONFIG.augmentation, basis)
    return ten_crops(*arguments, scale) if crops == "ten" else augment(*arguments, scale)[:, None]


@pytest.mark.parametrize("crops", ["centre", "ten"])
def test_the_result_is_that_of_a_plain_computation(run, raw_dataset, crops):
    evaluation = _evaluated(run, raw_dataset, crops)
    model, _ = load_model(run, ALONE.device)
    labels = raw_dataset.manifest("train")["class_index"].to_pylist()
    assert evaluation.labels_N.tolist() == labels
    for index, crops_of_one in enumerate(_images(run, raw_dataset, crops)):
        with torch.inference_mode():
            logits = model(torch.from_numpy(crops_of_one).double()).numpy()
        exponentials = np.exp(logits)
        probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).mean(axis=0)
        order = np.argsort(-probabilities)
        assert evaluation.predicted_N[index] == order[0]
        assert evaluation.probabilities_N[index] == pytest.approx(probabilities[order[0]])
        assert evaluation.ranks_N[index] == order.tolist().index(labels[index])
        assert evaluation.losses_N[index] == pytest.approx(-np.log(probabilities[labels[index]]))


def test_ten_crops_are_not_the_centre_crop(run, raw_dataset):
    assert not np.allclose(_evaluated(run, raw_dataset, "ten").losses_N, _evaluated(run, raw_dataset).losses_N)


def test_a_sample_that_is_seen_twice_is_an_error(run, raw_dataset, monkeypatch):
    monkeypatch.setattr("cluster.worker.evaluation.BATCH_SIZE", 21)
    following, first = EvalLoader.__next__, []
    monkeypatch.setattr(EvalLoader, "__next__", lambda loader: (first or first.append(following(loader)) or first)[0])
    with pytest.raises(RuntimeError, match="41 samples of train were not evaluated exactly once"):
        _evaluated(run, raw_dataset)


def test_the_model_keeps_its_mode(run, raw_dataset):
    model, _ = load_model(run, ALONE.device)
    evaluate(model.train(), raw_dataset, "val", ALONE, run)
    assert model.training


class Absent(CodedSource):
    """The fourth class has no sample in `val`."""

    def list_samples(self):
        listing = super().list_samples()
        val = listing.splits["val"].slice(0, 3)
        return dataclasses.replace(listing, splits=listing.splits | {"val": val})


@pytest.fixture(scope="module")
def sparse_dataset(tmp_path_factory) -> Dataset:
    out = tmp_path_factory.mktemp("sparse")
    config = ShardingConfig(encoding=EncodingConfig(encoding="raw", size=None))
    shard_dataset(Absent(out, 12, 10, 32), out, config, num_workers=1)
    return Dataset.open(out)


def test_a_class_without_samples_has_no_error_rate(sparse_dataset):
    labels = np.array([0, 1, 2])
    evaluation = Evaluation("val", labels, np.array([0, 0, 2]), np.full(3, 0.5), np.array([0, 2, 0]), np.ones(3))
    rows = per_class_table(evaluation, sparse_dataset).to_pylist()
    assert [row["num_samples"] for row in rows] == [1, 1, 1, 0]
    assert [row["top1"] for row in rows] == [1, 0, 1, None]
    assert [row["top5"] for row in rows] == [1, 1, 1, None]
    assert rows[3]["wnid"] == "n3" and rows[3]["name"] == "class 3"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(NO_RANK, 9)), min_size=41, max_size=41))
def test_the_tables_agree_with_each_other_and_with_the_totals(raw_dataset, samples):
    labels, predicted, ranks = np.array(samples).T
    predicted = np.where(ranks == 0, labels, (labels + 1 + predicted % 3) % 4)  # right just where the rank is 0
    evaluation = Evaluation("train", labels, predicted, np.full(41, 0.5), ranks, np.ones(41))
    keys = raw_dataset.manifest(evaluation.split, ["key"])["key"]
    summary, classes = evaluation.summary(), per_class_table(evaluation, raw_dataset).to_pylist()
    confusion, predictions = confusion_table(evaluation).to_pylist(), predictions_table(evaluation, keys)
    for name, k in (("top1", 1), ("top5", 5)):
        hits = sum(round(row[name] * row["num_samples"]) for row in classes if row["num_samples"])
        assert hits == round(summary[name] * 41) == sum(0 <= rank < k for rank in ranks)
    assert sum(row["num_samples"] for row in classes) == sum(row["count"] for row in confusion) == 41
    diagonal = sum(row["count"] for row in confusion if row["class_index"] == row["predicted_class_index"])
    assert diagonal == round(summary["top1"] * 41)
    for row in classes:
        for name, k in (("top1", 1), ("top5", 5)):
            ranks_of_class = [rank for label, rank in zip(labels, ranks, strict=True) if label == row["class_index"]]
            assert round((row[name] or 0) * row["num_samples"]) == sum(0 <= rank < k for rank in ranks_of_class)
        assert row["num_samples"] == sum(c["count"] for c in confusion if c["class_index"] == row["class_index"])
    assert min(row["count"] for row in confusion) > 0
    assert predictions["key"].equals(raw_dataset.manifest("train")["key"])
    assert predictions["rank"].to_pylist() == ranks.tolist()


def test_the_command_writes_to_the_run_folder_which_stays_a_run(run, raw_dataset, capsys):
    assert job.main(["--data", str(raw_dataset.path), "--run", str(run.path), "--crops", "ten"]) == 0
    folder = run.path / "evaluations" / "val-ten"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "result.json"])
    result = json.loads((folder / "result.json").read_text())
    assert result["crops"] == "ten" and result["split"] == "val" and result["num_samples"] == 10
    assert result["recipe"] == "test" and result["dataset_sha256"] == raw_dataset.sha256
    assert result["step"] == load_model(run, ALONE.device)[1]
    lines = capsys.readouterr().out.splitlines()
    expected = f"top-1 {result['top1'] * 100:.2f} %  top-5 {result['top5'] * 100:.2f} %  n=10"
    assert lines[-1] == expected and lines[-2] == f"written to {folder}"
    assert lines[-3].startswith("worst classes by top-1: class ") and lines[-3].count("%") == 4
    assert RunFolder.resume(run.path, CONFIG, raw_dataset).result["num_steps"] == 7


def test_an_evaluation_that_fails_leaves_no_result(run, raw_dataset, tmp_path, monkeypatch):
    arguments = raw_dataset.path, run.path, "val", "centre", tmp_path, ALONE
    evaluate_run(*arguments)
    monkeypatch.setattr(evaluation_files, "confusion_table", lambda evaluation: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate_run(*arguments)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(("name", "content"), [("notes.txt", "mine"), ("result.json", "{}"), ("result.json", "mine")])
def test_files_of_somebody_else_are_not_replaced(name, content, run, raw_dataset, tmp_path):
    (tmp_path / ".DS_Store").write_text("hidden files are nobody's")
    command = ["--data", str(raw_dataset.path), "--run", str(run.path), "--out", str(tmp_path)]
    assert job.main(command) == 0
    assert job.main(command) == 0  # its own are
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=r"holds .*, which is not of an evaluation; name a folder of its own"):
        job.main(command)
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "--workers is 0"),
        (["--split", "test"], "has no split 'test'; it has train, val"),
        (["--out", "{run}"], r"holds .*, which is not of an evaluation; name a folder of its own"),
        (["--out", "{data}"], "holds .*, which is not of an evaluation"),
        (["--out", "{run}/config.json"], "is a file; name a folder"),
    ],
)
def test_wrong_input_is_named(run, raw_dataset, arguments, message):
    filled = [argument.format(run=run.path, data=raw_dataset.path) for argument in arguments]
    with pytest.raises(InputError, match=message):
        job.main(["--data", str(raw_dataset.path), "--run", str(run.path), *filled])


def test_a_diverged_model_is_wrong_everywhere_and_gets_no_files(raw_dataset, tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, raw_dataset)
    trainer = Trainer(raw_dataset, run, ALONE)
    torch.nn.init.constant_(next(trainer.learner.model.parameters()), float("nan"))
    trainer.save_checkpoint()
    trainer.close()
    assert _evaluated(run, raw_dataset).summary()["top5"] == 0
    with pytest.raises(InputError, match="gives NaN or infinity for 10 samples: its training diverged"):
        job.main(["--data", str(raw_dataset.path), "--run", str(run.path)])
    assert not run.evaluations_path.exists()
