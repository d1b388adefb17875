"""The jobs' command lines: wrong input gets one clear line and a status that is not 0, before anything is started."""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from coded_source import CodedSource

from cluster.run.run_folder import RunFolder
from cluster.worker.training import Trainer
from cluster.worker.world import World
from jobs import bootstrap, evaluate, train
from jobs.recipes import RECIPES, get_recipe
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.paths import CHECKOUT
from pipeline.pictures.encode import EncodingConfig

# A few steps on noise: the recipe's own learning rate would not be stable.
SHORT = dataclasses.replace(
    get_recipe("small_demo"),
    num_epochs=1,
    global_batch_size=10,
    precision="float32",
    optimizer=dataclasses.replace(get_recipe("small_demo").optimizer, learning_rate=0.001),
)
SHORT_ARGUMENTS = ["--num-epochs", "1", "--global-batch-size", "10", "--optimizer.learning-rate", "0.001"]


@pytest.fixture(scope="module")
def trained(raw_dataset, tmp_path_factory) -> RunFolder:
    run = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", SHORT, raw_dataset)
    trainer = Trainer(raw_dataset, run, World(0, 1, torch.device("cpu")))
    trainer.run()
    trainer.close()
    return run


def test_a_finished_run_says_so(trained, raw_dataset, capsys):
    assert train.main(["--data", str(raw_dataset.path), "--run", str(trained.path), *SHORT_ARGUMENTS]) == 0
    assert "is finished already: python jobs/evaluate.py" in capsys.readouterr().out


def test_the_command_that_comes_next_can_be_copied_into_a_shell(trained, raw_dataset, tmp_path, capsys):
    path = shutil.copytree(trained.path, tmp_path / "a 'run' [1]")
    assert train.main(["--data", str(raw_dataset.path), "--run", str(path), *SHORT_ARGUMENTS]) == 0
    command = capsys.readouterr().out.partition(" is finished already: ")[2]
    assert shlex.split(command)[2:] == ["--data", str(raw_dataset.path), "--run", str(path)]


def test_evaluate_ends_with_the_result(trained, raw_dataset, capsys):
    assert evaluate.main(["--data", str(raw_dataset.path), "--run", str(trained.path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    best = trained.result["best_val_top1"] * 100
    assert last == f"top-1 {best:.2f} %  top-5 100.00 %  n=10"


def test_an_evaluation_is_a_document(trained, raw_dataset, capsys):
    assert evaluate.main(["--data", str(raw_dataset.path), "--run", str(trained.path), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.err.splitlines()[-1].startswith("top-1 ")
    assert (document["split"], document["num_samples"], document["crops"]) == ("val", 10, "centre")
    assert document["top1"] == trained.result["best_val_top1"] and document["run"] == str(trained.path)


def test_evaluate_reads_the_split_it_is_told(trained, raw_dataset, capsys):
    assert evaluate.main(["--data", str(raw_dataset.path), "--run", str(trained.path), "--split", "train"]) == 0
    assert capsys.readouterr().out.endswith("n=41\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere", "--run", "{tmp}/r"], "/nowhere does not exist"),
        (["--data", "{tmp}", "--run", "{tmp}/r"], "has no dataset.json"),
        (["--data", "{data}"], "--run is missing"),
        (["--data", "{data}", "--run", "{tmp}/r", "--recipe", "alexnet"], "no recipe 'alexnet'; there are small_demo"),
        (["--data", "{data}", "--run", "{tmp}/r", "--workers", "0"], "--workers is 0"),
        (["--data", "{data}", "--run", "{tmp}/r", "--micro-batch-size", "0"], "--micro-batch-size is 0; .* at least 1"),
        (["--data", "{data}", "--run", "{tmp}/r", "--workers", "129"], "129 workers can't share a global batch of 128"),
        (["--data", "{data}", "--run", "{tmp}/r", "--recipe", "krizhevsky_2012"], "crop_size is 224"),
        (["--data", "{data}", "--run", "{tmp}/r", "--seed", "-1"], "seed=-1"),
        (["--data", "{data}", "--run", "{run}"], "holds a run of another recipe"),
        (
            ["--data", "{data}", "--run", "{tmp}/r", *"--exchange factors --gradient-compression bf16".split()],
            "--exchange factors does not go with --gradient-compression bf16; leave one of them out",
        ),
        (
            ["--data", "{data}", "--run", "{tmp}/r", *"--exchange hybrid --local-sgd-steps 4".split()],
            "--exchange hybrid does not go with --local-sgd-steps 4; leave one of them out",
        ),
        (
            ["--data", "{data}", "--run", "{tmp}/r", *"--launcher alone --cache gpu".split()],
            "cache is `gpu`, but a worker",
        ),
        (
            ["--data", "{data}", "--run", "{tmp}/r", *"--launcher alone --decode mixed".split()],
            "is `mixed`, but a worker",
        ),
    ],
)
def test_train_refuses(arguments, message, raw_dataset, trained, tmp_path):
    filled = [a.format(tmp=tmp_path, data=raw_dataset.path, run=trained.path) for a in arguments]
    with pytest.raises(InputError, match=message):
        train.main(filled)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--optimizer.learning-rat", "1"], "learning-rat"),
        (["--optimizer.learning-rate", "-1"], "learning_rate=-1.0: must be above 0"),
        (["--num-epochs", "many"], "many"),
    ],
)
def test_a_wrong_override_is_named(override, message, raw_dataset, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--data", str(raw_dataset.path), "--run", str(tmp_path), *override])
    assert ended.value.code != 0
    assert message in capsys.readouterr().err


def test_overrides_reach_the_recipe():
    arguments, config = train.parse(["--recipe", "krizhevsky_2012", "--optimizer.learning-rate", "0.5", "--seed", "3"])
    assert arguments.recipe == "krizhevsky_2012"
    base = get_recipe("krizhevsky_2012")
    expected = dataclasses.replace(base, seed=3, optimizer=dataclasses.replace(base.optimizer, learning_rate=0.5))
    assert config == expected


def test_an_optimizer_is_chosen_on_the_command_line():
    chosen = "--optimizer.name adam --optimizer.betas 0.8 0.9 --optimizer.decay-biases False --optimizer.schedule poly"
    arguments = ["--optimizer.no-nesterov", "--optimizer.reference-batch-size", "128", *chosen.split()]
    _, config = train.parse(arguments)
    found = config.optimizer
    assert (found.name, found.betas, found.decay_biases, found.schedule) == ("adam", (0.8, 0.9), False, "poly")
    assert found.reference_batch_size == 128


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_the_run_folder(name, raw_dataset, tmp_path):
    config = dataclasses.replace(get_recipe(name), precision="float32")
    assert RunFolder.create(tmp_path, config, raw_dataset).config == config


def test_a_path_relative_to_an_uploaded_copy_is_refused(tmp_path, monkeypatch):
    upload = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0"
    upload.mkdir(parents=True)
    monkeypatch.chdir(upload)
    with pytest.raises(InputError, match=r"--data d is relative, but a job .* give an absolute path"):
        train.main(["--data", "d", "--run", "/r"])


@pytest.mark.parametrize("damage", ["missing", "empty", "classes"])
def test_evaluate_refuses(damage, trained, raw_dataset, tmp_path):
    if damage == "missing":
        with pytest.raises(InputError, match="holds no run"):
            evaluate.main(["--data", str(raw_dataset.path), "--run", str(tmp_path)])
    elif damage == "empty":
        run = tmp_path / "run"
        shutil.copytree(trained.path, run, ignore=shutil.ignore_patterns("checkpoints"))
        with pytest.raises(InputError, match="has no checkpoint yet"):
            evaluate.main(["--data", str(raw_dataset.path), "--run", str(run)])
    else:
        source = FewerClasses(tmp_path, 20, 4, 32)
        shard_dataset(source, tmp_path / "d", ShardingConfig(encoding=EncodingConfig(encoding="raw", size=None)), 1)
        with pytest.raises(InputError, match=r"was trained on 4 classes, .* has 3 classes"):
            evaluate.main(["--data", str(tmp_path / "d"), "--run", str(trained.path)])
        with pytest.raises(InputError, match=r"was trained on 4 classes, .* has 3 classes"):
            RunFolder.resume(trained.path, SHORT, Dataset.open(tmp_path / "d"))


class FewerClasses(CodedSource):
    """Three classes instead of four."""

    def list_samples(self):
        listing = super().list_samples()
        splits = {name: table.filter(table["class_index"].to_numpy() < 3) for name, table in listing.splits.items()}
        return dataclasses.replace(listing, classes=listing.classes[:3], splits=splits)


def test_a_command_ends_with_one_line_and_no_traceback(tmp_path):
    command = [sys.executable, CHECKOUT / "jobs" / "evaluate.py", "--data", tmp_path, "--run", tmp_path]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1


def test_a_wrong_interpreter_is_told_what_to_do(tmp_path):
    # Without site-packages (-S) this interpreter has nothing that a job needs.
    command = [sys.executable, "-S", CHECKOUT / "jobs" / "train.py"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 2
    assert "lacks torch, pyarrow" in answer.stderr and "make setup" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_without_dali_the_two_choices_are_named(monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "_is_installed", lambda name: name != "nvidia.dali")
    with pytest.raises(SystemExit) as ended:
        bootstrap.check_interpreter()
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert "lacks nvidia.dali;" in line and "[cuda13]" in line and "[cuda12]" in line and line.count("\n") == 1


WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from jobs import evaluate, train
from pipeline.command import run_command
run_command({"train": train, "evaluate": evaluate}[sys.argv.pop(1)].main)
"""


@pytest.mark.parametrize("launcher", [pytest.param("alone", marks=pytest.mark.slow), "ray"])
def test_only_the_launcher_on_ray_needs_ray(launcher, raw_dataset, tmp_path):
    command = [sys.executable, "-c", WITHOUT_RAY]
    paths = ["--data", raw_dataset.path, "--run", tmp_path / "run"]
    run = ["train", *paths, *SHORT_ARGUMENTS, "--stuck-after-epochs", "100", "--launcher", launcher]
    answer = subprocess.run([*command, *run], capture_output=True, text=True, cwd=CHECKOUT)
    if launcher == "alone":
        assert answer.returncode == 0, answer.stderr
        answer = subprocess.run([*command, "evaluate", *paths], capture_output=True, text=True, cwd=CHECKOUT)
        assert answer.returncode == 0, answer.stderr
        command += ["evaluate", *map(str, paths), "--workers", "2"]
        answer = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)
    assert answer.returncode == 2 and " lacks ray; run `make setup`" in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert (tmp_path / "run").exists() == (launcher == "alone")
