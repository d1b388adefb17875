"""The precision of a run fits the hardware: chosen once, recorded, kept, and said."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import ALONE, CONFIG

from cluster.run.run_folder import RunFolder
from cluster.worker import precision
from cluster.worker.emulation import Emulation, Trial, node_emulation
from cluster.worker.precision import Choice, bfloat16_emulation, choose_precision, emulations_of_all
from cluster.worker.trained_model import load_model
from cluster.worker.training import Trainer
from jobs import evaluate, predict, train
from pipeline.paths import CHECKOUT
from pipeline.system.processor import Processor, this_processor

# The libraries leave alone what a processor with AVX2 alone does not have.
AVX2_FORM = {
    "DNNL_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NUMBA_CPU_NAME": "haswell",
}
SLOW = Emulation("node a", 36.4)
OPTIONS = ["--launcher", "alone", "--global-batch-size", "12", "--augmentation.crop-size", "28"]
OPTIONS += ["--optimizer.learning-rate", "0.001", "--stuck-after-epochs", "100"]


@pytest.mark.parametrize(
    ("requested", "recorded", "emulations", "expected"),
    [
        ("auto", None, [], Choice("bfloat16")),
        ("auto", None, [SLOW], Choice("float32", "node a emulates bfloat16, up to 36 times slower than float32")),
        ("auto", "float32", [], Choice("float32")),
        ("auto", "float64", [SLOW], Choice("float64")),
        ("float32", None, [], Choice("float32")),
        ("float64", None, [SLOW], Choice("float64")),
        ("bfloat16", None, [], Choice("bfloat16")),
    ],
)
def test_a_precision_is_chosen_from_recipe_run_and_devices(requested, recorded, emulations, expected):
    assert choose_precision(requested, recorded, emulations) == expected


@pytest.mark.parametrize(
    ("requested", "recorded"), [("bfloat16", None), ("auto", "bfloat16"), ("bfloat16", "bfloat16")]
)
def test_bfloat16_that_is_asked_for_or_recorded_is_kept_with_a_warning_of_the_factor(requested, recorded):
    choice = choose_precision(requested, recorded, [SLOW])
    assert choice.precision == "bfloat16"
    (line,) = choice.warnings
    assert line.startswith("node a emulates bfloat16, up to 36 times slower than float32; ")


@pytest.mark.parametrize(
    ("has_bfloat16", "slowdown", "emulates"), [(True, 0.5, False), (True, 3.1, True), (False, 0.9, True)]
)
def test_a_cpu_must_have_the_instructions_and_the_libraries_use_them(has_bfloat16, slowdown, emulates, monkeypatch):
    processor = Processor("any", ("AVX2", "bfloat16") if has_bfloat16 else ("AVX2",))
    monkeypatch.setattr(precision, "this_processor", lambda: processor)
    monkeypatch.setattr(precision, "bfloat16_slowdown", lambda: slowdown)
    assert (bfloat16_emulation(torch.device("cpu")) is not None) == emulates


@pytest.mark.parametrize(("capability", "emulates"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_a_gpu_is_judged_by_its_compute_capability(capability, emulates, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = bfloat16_emulation(torch.device("cuda", 0))
    assert (found is not None) == emulates
    assert not emulates or str(found) == "this machine's GPU emulates bfloat16, as GPUs of compute capability 7.5 do"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("9.0\n9.0\n", None),
        ("8.0\n10.0\n", None),
        ("8.6\n7.5\n", "node a emulates bfloat16, as GPUs of compute capability 7.5 do"),
        ("NVIDIA-SMI has failed\n", "node a emulates bfloat16, by what is known: its GPU could not be identified"),
        (None, "node a emulates bfloat16, by what is known: its GPU could not be identified"),
    ],
)
def test_a_node_with_gpus_is_judged_by_what_nvidias_tool_says(answer, expected, tmp_path, monkeypatch):
    if answer is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\nprintf '{answer}'\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = node_emulation("node a", 1, None)
    assert found is None if expected is None else str(found).startswith(expected)


def test_a_processor_of_a_known_kind_is_not_tried_again(monkeypatch):
    processor = Processor("any", ("AVX2",))
    tried = []
    monkeypatch.setattr("cluster.worker.emulation.this_processor", lambda: processor)
    monkeypatch.setattr(precision, "try_processor", lambda: tried.append(1) or Trial(processor, None))
    known = Trial(processor, Emulation("this machine's CPU", 36.4))
    assert node_emulation("node a", 0, known) == SLOW and not tried
    other = dataclasses.replace(known, processor=Processor("any", ("AVX2",), ("DNNL_MAX_CPU_ISA=SSE41",)))
    assert node_emulation("node a", 0, other) is None and tried


def test_the_least_of_all_workers_counts(monkeypatch):
    own = [None, Emulation("x", 12.0), Emulation("a GPU")]
    told = torch.zeros(3, 2, dtype=torch.float64)

    def exchange(self, values):
        told.add_(values)
        return told

    monkeypatch.setattr("cluster.worker.world.World.sum", exchange)
    for rank, emulation in enumerate(own):
        monkeypatch.setattr(precision, "bfloat16_emulation", lambda device, emulation=emulation: emulation)
        found = emulations_of_all(dataclasses.replace(ALONE, rank=rank, world_size=3))
    assert found == [Emulation("worker 1", 12.0), Emulation("worker 2")]


def test_this_processor_is_told_to_be_native_where_it_is():
    processor = this_processor()
    if processor.limits or not processor.has_bfloat16:
        assert bfloat16_emulation(torch.device("cpu")) is not None
    else:
        assert bfloat16_emulation(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("slowdown", "text"),
    [
        (None, "x emulates bfloat16"),
        (1.0, "x computes in bfloat16 no faster than in float32"),
        (36.4, "x emulates bfloat16, up to 36 times slower than float32"),
    ],
)
def test_an_emulation_says_what_was_measured(slowdown, text):
    assert str(Emulation("x", slowdown)) == text


def test_the_trial_leaves_threads_and_random_numbers_as_they_are():
    state, num_threads = torch.get_rng_state(), torch.get_num_threads()
    assert precision.bfloat16_slowdown() > 0
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == num_threads


def test_a_precision_that_is_not_resolved_reaches_neither_a_run_nor_a_model(raw_dataset, tmp_path):
    with pytest.raises(ValueError, match="must be resolved before a run begins"):
        RunFolder.create(tmp_path / "run", dataclasses.replace(CONFIG, precision="auto"), raw_dataset)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="must be resolved before a model runs"):
        precision.forward_context("auto", ALONE.device)


def _allow_tf32(is_allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = is_allowed


@pytest.fixture
def _tf32_allowed():
    """Let cuDNN and cuBLAS take TF32, as cuDNN does by default for convolutions."""
    backends = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    _allow_tf32(True)
    for backend in backends:
        backend.fp32_precision = "tf32"
    yield
    _allow_tf32(False)
    for backend, precision_before in zip(backends, before, strict=True):
        backend.fp32_precision = precision_before


def _float32_precisions() -> tuple[str, str]:
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32  # noqa: B018  # the compiler must be able to
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64"])
def test_a_trained_model_computes_float32_without_tf32(name, raw_dataset, tmp_path, _tf32_allowed):
    assert _float32_precisions() == ("tf32", "tf32")
    config = dataclasses.replace(CONFIG, precision=name)
    Trainer(raw_dataset, RunFolder.create(tmp_path / "run", config, raw_dataset), ALONE).close()
    assert _float32_precisions() == ("ieee", "ieee")


def test_a_loaded_model_computes_float32_without_tf32(bfloat16_run, _tf32_allowed):
    load_model(bfloat16_run, ALONE.device)
    assert _float32_precisions() == ("ieee", "ieee")


def test_a_loaded_model_has_the_bits_of_the_checkpoint(raw_dataset, tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, raw_dataset)
    trainer = Trainer(raw_dataset, run, ALONE)
    for _ in range(2):  # the first one's learning rate is 0
        trainer.make_step()
    trainer.save_checkpoint()
    trainer.close()
    model, _ = load_model(run, ALONE.device)
    for name, weights in run.checkpoints.load_latest()["model"].items():
        assert weights.dtype == torch.float64 and torch.equal(model.state_dict()[name], weights), name


def in_avx2_form(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=CHECKOUT, env=os.environ | AVX2_FORM, capture_output=True, text=True, timeout=200
    )


def recorded(run: Path) -> str:
    return json.loads((run / "config.json").read_text())["recipe"]["precision"]


@pytest.mark.slow  # 9 s
def test_without_bfloat16_a_run_takes_float32_and_says_why(raw_dataset, tmp_path):
    paths = ["--data", raw_dataset.path, "--run", tmp_path / "run"]
    answer = in_avx2_form("jobs/train.py", *paths, *OPTIONS, "--num-epochs", "1")
    assert answer.returncode == 0, answer.stderr
    first = answer.stdout.splitlines()[0]
    assert first.startswith("training small_demo (alexnet_small) in float32 (this machine emulates bfloat16, up to ")
    assert recorded(tmp_path / "run") == "float32"
    assert "step 3/3" in answer.stdout


@pytest.mark.slow  # 5 s
def test_without_bfloat16_an_explicit_one_is_a_warning_with_the_factor(raw_dataset, tmp_path):
    paths = ["--data", raw_dataset.path, "--run", tmp_path / "run"]
    answer = in_avx2_form("jobs/train.py", *paths, *OPTIONS, "--precision", "bfloat16", "--dry-run")
    assert answer.returncode == 0
    assert " in bfloat16 on " in answer.stdout
    warning = answer.stderr.splitlines()[-1]
    assert warning.startswith("warning: this machine emulates bfloat16, up to ") and "--precision float32" in warning
    assert int(warning.split("up to ")[1].split(" times")[0]) > 1


@pytest.fixture(scope="module")
def bfloat16_run(raw_dataset, tmp_path_factory) -> RunFolder:
    """A finished run whose precision was bfloat16."""
    augmentation = dataclasses.replace(CONFIG.augmentation, crop_size=28)
    config = dataclasses.replace(CONFIG, precision="bfloat16", num_epochs=0.5, augmentation=augmentation)
    run = RunFolder.create(tmp_path_factory.mktemp("bfloat16") / "run", config, raw_dataset)
    trainer = Trainer(raw_dataset, run, ALONE)
    trainer.run()
    trainer.close()
    return run


@pytest.mark.parametrize("emulates", [True, False])
def test_another_machine_evaluates_in_what_fits_it(bfloat16_run, raw_dataset, tmp_path, monkeypatch, capsys, emulates):
    found = Emulation("this machine's CPU", 36.4) if emulates else None
    monkeypatch.setattr(precision, "bfloat16_emulation", lambda device: found)
    used = []
    monkeypatch.setattr(
        "cluster.worker.evaluation.forward_context",
        lambda chosen, device: used.append(chosen) or precision.forward_context(chosen, device),
    )
    paths = ["--data", str(raw_dataset.path), "--run", str(bfloat16_run.path), "--out", str(tmp_path / "out")]
    assert evaluate.main(paths) == 0
    said = "this machine's CPU emulates bfloat16, up to 36 times slower than float32: computing in float32"
    assert (said in capsys.readouterr().out) == emulates
    expected = "float32" if emulates else "bfloat16"
    assert set(used) == {expected}
    assert json.loads((tmp_path / "out" / "result.json").read_text())["precision"] == expected


def test_another_machine_predicts_in_what_fits_it(bfloat16_run, tmp_path, monkeypatch, capsys):
    from PIL import Image

    Image.new("RGB", (40, 40), (200, 90, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(precision, "bfloat16_emulation", lambda device: Emulation("this machine's CPU", 36.4))
    assert predict.main([str(tmp_path / "a.png"), "--run", str(bfloat16_run.path)]) == 0
    assert capsys.readouterr().out.startswith("this machine's CPU emulates bfloat16, up to 36 times slower")


def test_a_resumed_run_keeps_what_was_recorded(raw_dataset, tmp_path, monkeypatch, capsys):
    arguments = ["--data", str(raw_dataset.path), "--run", str(tmp_path / "run"), *OPTIONS]
    monkeypatch.setattr(precision, "bfloat16_emulation", lambda device: None)
    assert train.main([*arguments, "--num-epochs", "1"]) == 0
    assert recorded(tmp_path / "run") == "bfloat16"
    (tmp_path / "run" / "result.json").unlink()  # as if it had been lost just before its end
    monkeypatch.setattr(precision, "bfloat16_emulation", lambda device: Emulation("this machine's CPU", 36.4))
    assert train.main([*arguments, "--num-epochs", "1"]) == 0
    assert recorded(tmp_path / "run") == "bfloat16"
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: this machine emulates bfloat16, up to 36 times slower than float32; ")
    assert "finished: " in captured.out
