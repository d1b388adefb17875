"""The two main commands without arguments: the embedded default, said in the first line."""

import functools

import pytest

from jobs import evaluate, train
from jobs.training import job
from pipeline import embedded, shard
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.synthesize import synthesize


def test_both_commands_work_on_the_embedded_default(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = functools.partial(synthesize, classes=2, train_per_class=4, val_per_class=2, max_side=80)
    monkeypatch.setattr(shard, "synthesize", small)
    arguments, config = train.parse([])
    assert config.name == "synthetic_demo" and train.parse(["--data", "d"])[1].name == "small_demo"
    # The training command makes the dataset if it is not there yet, as the sharding command does.
    assert job.find_paths(arguments) == (embedded.dataset_folder(), embedded.run_folder())
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith("no --data given: training on the embedded synthetic mini-ImageNet in ")
    assert second.startswith("no SOURCE given: sharding the embedded synthetic mini-ImageNet into ")
    dataset = Dataset.open(embedded.dataset_folder())
    assert (dataset.num_samples("train"), dataset.num_samples("val"), dataset.stored_size) == (8, 4, 32)
    assert shard.main([]) == 0
    assert "the dataset is already there; train on it with" in capsys.readouterr().out
    assert job.find_paths(arguments)[0] == embedded.dataset_folder()


def test_a_dataset_of_another_version_is_told_of_and_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = functools.partial(synthesize, classes=2, train_per_class=4, val_per_class=2, max_side=80)
    monkeypatch.setattr(shard, "synthesize", small)
    old = embedded.dataset_folder().parent / "dataset"
    old.mkdir(parents=True)
    (old / "dataset.json").write_text("{}")
    assert shard.main([]) == 0
    assert f"{old} was left by another version and is not used; you may remove it" in capsys.readouterr().out
    assert Dataset.open(embedded.dataset_folder()).stored_size == 32
    assert (old / "dataset.json").read_text() == "{}"


def test_archives_half_renamed_by_a_killed_run_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = functools.partial(synthesize, classes=2, train_per_class=4, val_per_class=2, max_side=80)
    monkeypatch.setattr(shard, "synthesize", small)
    embedded.source_folder().mkdir(parents=True)
    (embedded.source_folder() / "ILSVRC2012_img_train.tar").write_bytes(b"")
    assert shard.main([]) == 0
    assert Dataset.open(embedded.dataset_folder()).num_samples("train") == 8


def test_evaluate_without_arguments_looks_there_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match=f"{embedded.run_folder()} holds no run"):
        evaluate.main([])
