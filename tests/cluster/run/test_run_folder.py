"""A run folder is a run's identity: what decides its numbers can't change, how it is operated may."""

import dataclasses
import importlib.metadata
import json
import subprocess

import pytest
from runs import ALONE, CONFIG

from cluster.run import run_folder
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Changed, Finished, Launched, read_launches
from cluster.worker.training import train as train_here
from jobs import train
from model.optim_config import OptimizerConfig
from pipeline.command import InputError

OPERATION = {
    "checkpoint_interval": 100,
    "checkpoint_seconds": 9.0,
    "num_checkpoints": 5,
    "stuck_after_epochs": 9.0,
    "evaluations_per_epoch": 0.5,
}
OPERATION["on_bad_sample"] = "skip-and-count"


@pytest.fixture
def run(raw_dataset, tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", CONFIG, raw_dataset)


def edited(run: RunFolder, **changes) -> None:
    """Change `config.json`; None removes an entry of the recipe."""
    path = run.path / "config.json"
    document = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            del document["recipe"][name]
        else:
            document[name] = value
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("field", OPERATION)
def test_how_a_run_is_operated_may_change_at_a_resume(field, run, raw_dataset):
    config = dataclasses.replace(CONFIG, **{field: OPERATION[field]})
    resumed = RunFolder.resume(run.path, config, raw_dataset)
    assert resumed.changes_to(config) == {field: [getattr(CONFIG, field), OPERATION[field]]}
    resumed.operate_as(config)
    assert RunFolder.open(run.path).config == config
    assert resumed.changes_to(config) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": OptimizerConfig(learning_rate=0.01, schedule="plateau", warmup=0.2)},
        {"early_stop_patience": 3},
    ],
    ids=["plateau", "early stop"],
)
def test_how_often_val_is_read_belongs_to_the_identity_where_something_hangs_on_it(changes, raw_dataset, tmp_path):
    config = dataclasses.replace(CONFIG, **changes)
    RunFolder.create(tmp_path / "run", config, raw_dataset)
    other = dataclasses.replace(config, evaluations_per_epoch=2.0)
    with pytest.raises(InputError, match=r"another recipe \(evaluations_per_epoch 1.0 -> 2.0\)"):
        RunFolder.resume(tmp_path / "run", other, raw_dataset)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gradient_compression", "bf16"),
        ("local_sgd_steps", 8),
        ("powersgd_rank", 2),
        ("powersgd_start", 0.5),
    ],
)
def test_a_lossy_exchange_belongs_to_the_identity(field, value, raw_dataset, tmp_path):
    is_of_powersgd = field.startswith("powersgd")
    config = dataclasses.replace(CONFIG, gradient_compression="powersgd") if is_of_powersgd else CONFIG
    RunFolder.create(tmp_path / "run", config, raw_dataset)
    other = dataclasses.replace(config, **{field: value})
    with pytest.raises(InputError, match=rf"another recipe \({field} {getattr(config, field)} -> {value}\)"):
        RunFolder.resume(tmp_path / "run", other, raw_dataset)


@pytest.mark.parametrize(
    "field", ["num_checkpoints", "on_bad_sample", "decode", "gradient_compression", "local_sgd_start"]
)
def test_a_folder_from_before_a_field_existed_is_resumed(field, run, raw_dataset):
    edited(run, **{field: None})
    assert RunFolder.resume(run.path, CONFIG, raw_dataset).config == CONFIG


def test_a_folder_without_a_format_version_is_the_first_one(run, raw_dataset):
    path = run.path / "config.json"
    document = json.loads(path.read_text())
    assert document.pop("format_version") == 2
    path.write_text(json.dumps(document))
    assert RunFolder.resume(run.path, CONFIG, raw_dataset) is not None


def test_a_folder_of_a_later_version_is_refused(run, raw_dataset):
    edited(run, format_version=3)
    with pytest.raises(InputError, match="has format version 3, but this program reads up to 2; update this program"):
        RunFolder.resume(run.path, CONFIG, raw_dataset)


@pytest.mark.parametrize("document", [[], "x", {"format_version": "2"}, {"format_version": None}])
def test_a_config_of_something_else_is_refused(document, run, raw_dataset):
    (run.path / "config.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"config.json was not written by this program; choose another run folder"):
        RunFolder.resume(run.path, CONFIG, raw_dataset)


def test_workers_that_see_another_config_end_with_a_word(run, raw_dataset, monkeypatch):
    same = dict.fromkeys(["optimizer"], None)
    assert RunFolder.open(run.path).digest == run.digest
    edited(run, optimizer=same)
    assert RunFolder.open(run.path).digest != run.digest
    monkeypatch.setattr("cluster.worker.world.World.agrees", lambda world, value: False)
    with pytest.raises(InputError, match=r"the workers see different files .*config.json; is it a shared folder\?"):
        train_here(raw_dataset.path, run.path, ALONE)


def test_the_precision_is_kept_where_the_recipe_leaves_the_choice(run, raw_dataset):
    asked = dataclasses.replace(CONFIG, precision="auto")
    assert RunFolder.resume(run.path, asked, raw_dataset).config.precision == "float64"
    with pytest.raises(InputError, match=r"another recipe \(precision float64 -> float32\)"):
        RunFolder.resume(run.path, dataclasses.replace(CONFIG, precision="float32"), raw_dataset)


def test_a_changed_checkpoint_interval_is_followed_and_logged(raw_dataset, tmp_path, capsys):
    command = ["--data", str(raw_dataset.path), "--run", str(tmp_path / "run"), "--launcher", "alone"]
    command += ["--global-batch-size", "10", "--optimizer.learning-rate", "0.001", "--num-epochs", "0.5"]
    assert train.main(command) == 0
    (tmp_path / "run" / "result.json").unlink()  # as if it had been lost just before its end
    assert train.main([*command, "--checkpoint-interval", "7"]) == 0
    assert "checkpoint_interval 500 -> 7 from here on\n" in capsys.readouterr().out
    launched, changed = Launched(num_workers=1), Changed(changes={"checkpoint_interval": [500, 7]})
    lines = read_launches(tmp_path / "run" / "launches.jsonl")
    assert lines == [launched, Finished(), changed, launched, Finished()]


def test_a_run_needs_neither_ray_nor_an_installed_distribution(raw_dataset, tmp_path, monkeypatch):
    known = importlib.metadata.version

    def version(name):
        if name in ("alexnet-at-scale", "ray"):
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    versions = RunFolder.create(tmp_path / "run", CONFIG, raw_dataset).document["versions"]
    assert "torch" in versions and versions.keys().isdisjoint({"ray", "alexnet-at-scale"})


def test_the_commit_is_noted_and_whether_it_had_changes(raw_dataset, tmp_path, monkeypatch):
    def git(*words: str) -> None:
        options = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *options, *words], cwd=checkout, check=True, capture_output=True)

    def noted(name: str) -> dict:
        document = RunFolder.create(tmp_path / name, CONFIG, raw_dataset).document
        return {key: value for key, value in document.items() if key.startswith("git_")}

    checkout = tmp_path / "checkout"
    checkout.mkdir()
    monkeypatch.setattr(run_folder, "CHECKOUT", checkout)
    assert noted("elsewhere") == {"git_commit": None, "git_has_changes": None}
    git("init", "-q")
    (checkout / "module.py").write_text("1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = noted("clean")
    assert len(clean["git_commit"]) == 40 and clean["git_has_changes"] is False
    (checkout / "notes.txt").write_text("not the project's\n")
    assert noted("untracked") == clean
    (checkout / "module.py").write_text("2\n")
    assert noted("changed") == clean | {"git_has_changes": True}
