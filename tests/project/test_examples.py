"""The examples in Python, each run as it stands."""

import ast
import gc
import os
import re
import runpy
import subprocess
import sys

import pytest

from cluster.run.run_folder import RunFolder
from cluster.run.run_log import read_launches
from jobs import train
from model.registry import ModelConfig, check_image_size
from pipeline.loader import TrainLoader
from pipeline.paths import CHECKOUT

EXAMPLES = CHECKOUT / "examples"
READERS = sorted(path.name for path in (EXAMPLES / "readers").glob("*.py"))
SLOW = {"with_huggingface.py", "with_timm.py"}  # 2 s each
JPEG_ALONE = {"with_dali.py", "with_timm.py"}


def _read(script, dataset, split, monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", [script, str(dataset.path), split])
    runpy.run_path(str(EXAMPLES / "readers" / script), run_name="__main__")
    gc.collect()  # some readers leave shards open: the warning is to be raised here, where it is expected
    return capsys.readouterr().out


def _of_manifest(dataset, split) -> str:
    labels = dataset.manifest(split)["class_index"].to_pylist()
    return f"{len(labels)} samples, the last of (32, 32, 3); first labels {labels[:8]}\n"


@pytest.mark.parametrize(
    "script", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in READERS]
)
@pytest.mark.filterwarnings("default", "ignore:unclosed file:ResourceWarning")
def test_the_shards_are_read_by_other_libraries(script, jpeg_dataset, raw_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for dataset in (jpeg_dataset, *[raw_dataset] * (script not in JPEG_ALONE)):
        for split in ("train", "val"):
            assert _read(script, dataset, split, monkeypatch, capsys) == _of_manifest(dataset, split)


@pytest.mark.parametrize("script", [name for name in READERS if name not in SLOW])
@pytest.mark.parametrize("words", [[], ["none", "train"]], ids=["nothing named", "no such dataset"])
def test_a_reader_refuses_wrong_words(script, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(EXAMPLES / "readers" / script), run_name="__main__")
    errors = capsys.readouterr().err
    assert ending.value.code == 2 and ("none has no shards of train" if words else "required: dataset") in errors


def test_the_loop_of_ones_own_has_at_most_twelve_lines():
    text = (EXAMPLES / "own_loop.py").read_text()
    body = ast.parse(text).body[1:]  # without the docstring
    first = next(node.lineno for node in body if not isinstance(node, ast.Import | ast.ImportFrom))
    assert len([line for line in text.splitlines()[first - 1 :] if line.strip()]) <= 12


def _losses_and_samples(loop, num_processes, dataset, logs) -> list[tuple[float, list[int]]]:
    """Run a loop of one's own; return each step's loss and samples, those of all processes together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command += ["--log-dir", str(logs), "--redirects", "3"]  # or lines of two processes would mix
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command += [str(loop), str(dataset.path)]
    answer = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    lines = [line for log in logs.rglob("stdout.log") for line in log.read_text().splitlines()]
    steps = []
    for step in range(20):
        found = [
            re.fullmatch(rf"step {step}, rank {rank}: loss (.*), samples \[(.*)\]", line)
            for rank in range(num_processes)
            for line in lines
        ]
        matches = [match for match in found if match]
        assert len(matches) == num_processes
        samples = [int(word) for match in matches for word in match[2].split(", ")]
        steps.append((sum(float(match[1]) for match in matches), samples))
    return steps


@pytest.mark.slow  # 25 s
def test_the_loop_of_ones_own_is_the_same_on_any_number_of_processes(raw_dataset, tmp_path):
    text = (EXAMPLES / "own_loop.py").read_text()
    # In float32, 20 steps make a difference of 1e-2 out of rounding, which would hide a wrong gradient.
    for plain, double in (("num_classes)", "num_classes).double()"), ("batch.images", "batch.images.double()")):
        assert text.count(plain) == 1
        text = text.replace(plain, double)
    loop = tmp_path / "own_loop.py"
    loop.write_text(text)
    alone, shared = (_losses_and_samples(loop, number, raw_dataset, tmp_path / str(number)) for number in (1, 3))
    loader = TrainLoader(raw_dataset, global_batch_size=64)
    order = [next(loader).sample_ids.tolist() for _ in alone]
    loader.close()
    assert order == [samples for _, samples in alone] == [samples for _, samples in shared]
    assert [loss for loss, _ in shared] == pytest.approx([loss for loss, _ in alone], abs=2.1e-4)  # of 4 printed digits
    assert alone[-1][0] < alone[0][0] - 0.1


def test_the_network_of_ones_own_fits_small_and_large_pictures():
    config = ModelConfig(name="examples.own_model:SmallNet")
    for size in (16, 26, 224):
        check_image_size(config, size)


@pytest.mark.slow  # 3 s
def test_the_network_of_ones_own_trains(raw_dataset, tmp_path, capsys):
    words = ["--model.name", "examples.own_model:SmallNet", "--launcher", "alone", "--num-epochs", "4"]
    assert train.main(["--data", str(raw_dataset.path), "--run", str(tmp_path / "run"), *words]) == 0
    run = RunFolder.open(tmp_path / "run")
    assert run.config.model == ModelConfig(name="examples.own_model:SmallNet")
    assert "(examples.own_model:SmallNet)" in capsys.readouterr().out and run.result is not None
    assert [line.kind for line in read_launches(run.launches_path)] == ["launch", "finish"]
