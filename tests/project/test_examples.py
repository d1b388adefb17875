"""The examples in Python, each run as it stands."""

import ast
import gc
import os
import runpy
import subprocess
import sys

import pytest

from cluster.run.run_folder import RunFolder
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


def test_the_loop_of_ones_own_has_at_most_twelve_lines():
    text = (EXAMPLES / "own_loop.py").read_text()
    body = ast.parse(text).body[1:]  # without the docstring
    first = next(node.lineno for node in body if not isinstance(node, ast.Import | ast.ImportFrom))
    assert len([line for line in text.splitlines()[first - 1 :] if line.strip()]) <= 12


@pytest.mark.slow  # 15 s
def test_the_loop_of_ones_own_runs_under_torchrun(raw_dataset, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    command += ["--log-dir", str(tmp_path), "--redirects", "3"]  # or lines of two processes would mix
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command += [str(EXAMPLES / "own_loop.py"), str(raw_dataset.path)]
    answer = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    lines = [line for log in tmp_path.rglob("stdout.log") for line in log.read_text().splitlines()]
    loader = TrainLoader(raw_dataset, global_batch_size=64)
    for step, batch in zip(range(20), loader, strict=False):
        found = [line for rank in (0, 1, 2) for line in lines if line.startswith(f"step {step}, rank {rank}: ")]
        samples = [int(word) for line in found for word in line.partition("samples [")[2].rstrip("]").split(", ")]
        assert samples == batch.sample_ids.tolist()
    loader.close()


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
