"""The checks for a GPU: their dry run, and that none of them affects the others."""

import contextlib
import json
import math
import os
import re
import subprocess
import sys

import odd_checks
import psutil
import pytest
import torch

from benchmarks.gpu import aims, datasets, decoding, end_to_end, layers, soaks, steps
from benchmarks.gpu.__main__ import Arguments, main
from benchmarks.gpu.checks import CHECKS, DATASETS
from benchmarks.gpu.results import aims_table
from benchmarks.gpu.results import main as results_command
from benchmarks.gpu.trial import Failed, Trial
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.online.pixel_cache import PixelCache
from pipeline.paths import CHECKOUT

WITHOUT_DALI = 'import sys\nsys.modules["nvidia"] = sys.modules["ray"] = None\n'  # importing them fails
# Check -> names of figures that must hold numbers.
FIGURES = {
    "datasets": (),
    "machine": (
        "device copy TB/s, read and written",
        "bfloat16 matrix product TFLOP/s",
        "microseconds per kernel launch",
    ),
    "step": (*steps._ALTERNATIVES, "owt 256, torch's dropout"),
    "lrn": (
        "bfloat16, channels_last: relative error forward, backward",
        "(2, 96, 9, 9) ours: milliseconds forward and backward",
    ),
    "dropout": ("units whose mask differs from the CPU's", "batches of 4"),
    "dali": ("seconds to the first batch", "largest difference, grey levels"),
    "parity": tuple(f"{encoding} NHWC float32, operator, decoded by the CPU" for encoding in datasets.ENCODINGS),
    "soak": ("batches", "largest difference of a weighted sum"),
    "end_to_end": (aims.COMPUTING, aims.LOADING, aims.SLOWER, aims.TRAINING, aims.TRAINING_CACHED, end_to_end.ON_NOISE),
    "cache": ("raw, cache host", "jpeg, cache host"),
    "loader": (
        "loader, JPEG",
        "loader, JPEG, cache host",
        "DALI's own reader, raw",
        "raw, 1024",
        "original decoded by the CPU, 256",
        "jpeg: images/s of each stage on the CPU",
    ),
    "memory": ("images/s",),
    "train": ("small 8, jpeg",),
    "pytest": ("status",),
    "sync": (aims.WATCHED_TRAINING, "loss"),
    "evaluate": ("CPU float32, centre", "largest difference of a loss", "fraction of equal predictions"),
    "profile": ("2012 256",),
    "ddp": ("sum over gloo", "parameters with a gradient"),
    "compile": ("owt 1024",),
}


def _run(command, folder, **variables):
    path = os.pathsep.join([str(CHECKOUT), *filter(None, [variables.pop("PYTHONPATH", None)])])
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(folder)} | variables
    return subprocess.run([sys.executable, *command], cwd=CHECKOUT, env=environment, capture_output=True, text=True)


def _wait_for_end(pid):
    """Wait until a killed process is gone; the test's own time limit ends a wait in vain."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait()


def _numbers(figure):
    if isinstance(figure, dict):
        return [number for item in figure.values() for number in _numbers(item)]
    if isinstance(figure, list):
        return [number for item in figure for number in _numbers(item)]
    return [figure] if isinstance(figure, int | float) else []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_of_all_checks_finds_nothing_wrong(tmp_path, capsys):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(WITHOUT_DALI)
    checks, measured = {}, set()
    for phase, variables in (("compute", {"PYTHONPATH": str(tmp_path / "hook")}), ("dali", {})):
        out = tmp_path / phase
        options = ["--dry-run", "--phase", phase, "--data", str(tmp_path / "data"), "--out", str(out)]
        answer = _run(["-m", "benchmarks.gpu", *options, "--budget", "800"], tmp_path, **variables)
        found = json.loads((out / "results.json").read_text())["checks"]
        assert {name: check["error"] for name, check in found.items() if not check["ok"]} == {}
        assert answer.returncode == 0, answer.stderr
        record = json.loads((out / "record.json").read_text())
        assert record["dry_run"] and set(record["checks"].values()) == {"ok"}
        assert results_command([str(out / "record.json")]) == 0
        shown = capsys.readouterr().out
        assert all(f"| {alternative} |" in shown for alternative in record["results"])
        assert aims_table(record) in shown and aims_table(record) in answer.stdout
        texts = (out / "record.json").read_text(), shown
        hidden = str(tmp_path), str(CHECKOUT), os.uname().nodename
        assert not any(name in text for text in texts for name in hidden)
        checks |= found
        measured |= {index for index, aim in enumerate(record["comparisons"]) if aim["value"] is not None}
    assert set(checks) == set(CHECKS) | {"datasets"} == set(FIGURES)
    assert measured == set(range(len(aims.AIMS)))
    for name, figures in FIGURES.items():
        for figure in figures:
            numbers = _numbers(checks[name]["figures"][figure])
            assert numbers and all(map(math.isfinite, numbers)), (name, figure)
        # An error of one case among several is a figure too.
        assert not re.search(r"\w+(Error|Failed): ", json.dumps(checks[name]["figures"])), name
    assert checks["loader"]["figures"]["raw, 1024"]["images/s"] > 0
    assert checks["ddp"]["figures"]["parameters with a gradient"] == 16
    assert checks["parity"]["figures"]["raw NHWC float32, operator, decoded by the CPU"][aims.LARGEST_DIFFERENCE] == 0
    assert {"results.json", "record.json", "log.txt", "profile.txt", "pytest.txt"} == {
        path.name for phase in ("compute", "dali") for path in (tmp_path / phase).iterdir()
    }
    assert not [*tmp_path.glob("gpu-checks-*")]  # nothing of them is left


def test_a_check_that_fails_crashes_or_hangs_does_not_affect_the_next(tmp_path):
    out = tmp_path / "out"
    answer = _run([odd_checks.__file__, "--dry-run", "--out", str(out)], tmp_path)
    assert (answer.returncode, answer.stderr) == (1, "")
    checks = json.loads((out / "results.json").read_text())["checks"]
    assert list(checks) == [run.__name__ for run in odd_checks.ODD]
    assert {name: (check["ok"], check["error"]) for name, check in checks.items()} == {
        "fails": (False, "the pictures differ"),
        "lacks_a_module": (False, "ModuleNotFoundError: No module named 'no_such_module'"),
        "crashes": (False, "its process ended by SIGSEGV; see log.txt"),
        "exits": (False, "its process ended with status 7; see log.txt"),
        "hangs": (False, "killed at its limit of 3 s"),
        "leaves_a_process": (True, ""),
        "works": (True, ""),
    }
    assert checks["fails"]["figures"] == {"found": 0.33333}
    assert checks["crashes"]["figures"] == {"found": "something"}
    assert checks["works"]["figures"] == {"is dry": True}
    for name in ("hangs", "leaves_a_process"):
        _wait_for_end(checks[name]["figures"]["child"])
    lines = answer.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["OK" if check["ok"] else "FAIL", name] for name, check in checks.items()
    ]
    assert lines[-1].startswith("2 OK, 5 failed, 0 skipped")
    log = (out / "log.txt").read_text()
    assert "a word for the log" in log and "No module named 'no_such_module'" in log
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_plan_fits_into_the_budget():
    assert DATASETS.seconds + sum(check.seconds for check in CHECKS.values()) <= Arguments().budget == 360


def test_without_a_gpu_nothing_but_a_dry_run_begins(tmp_path):
    answer = _run(["-m", "benchmarks.gpu", "--out", str(tmp_path / "out")], tmp_path, CUDA_VISIBLE_DEVICES="")
    assert answer.returncode == 2 and answer.stdout == ""
    assert re.fullmatch(r"error: no GPU can be used \(.+\); try the checks on a CPU with --dry-run\n", answer.stderr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "parity", "speed"], "there is no check 'speed'; --only takes machine, step,"),
        (["--only", "parity", "--phase", "compute"], "--only parity belongs to the phase dali; leave out --phase"),
        (["--budget", "9"], "--budget is 9; it must be at least 10 seconds"),
        (["--budget", "nan"], "--budget is nan; it must be"),
        (["--budget", "inf"], "--budget is inf; it must be"),
        (["--seconds", "0"], "--seconds is 0; it must be above 0"),
        (["--seconds", "inf"], "--seconds is inf; it must be"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        main(["--dry-run", "--out", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_datasets_are_made_once(tmp_path, capsys):
    command = [str(tmp_path / "data"), "--train-per-class", "2", "--val-per-class", "1", "--workers", "1"]
    assert datasets.main(command) == 0
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.*")}
    for encoding in datasets.ENCODINGS:
        dataset = Dataset.open(tmp_path / "data" / encoding)
        assert (dataset.encoding, dataset.num_samples("train"), dataset.stored_size) == (encoding, 20, 256)
    capsys.readouterr()
    assert datasets.main(command) == 0
    assert capsys.readouterr().out == f"datasets: {tmp_path / 'data'}\n"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.*")} == made
    with pytest.raises(InputError, match="--workers is 0; it must be at least 1"):
        datasets.main([str(tmp_path / "other"), "--workers", "0"])
    assert not (tmp_path / "other").exists()


def _trial(tmp_path, **changes):
    values = {"is_dry": False, "seconds": 1.0, "planned_end": math.inf, "deadline": math.inf}
    folders = dict.fromkeys(("data", "out", "scratch"), tmp_path)
    return Trial(**(values | folders | changes))


@pytest.fixture
def data(tmp_path, jpeg_dataset, raw_dataset, original_dataset):
    """A folder with small datasets."""
    for dataset in (jpeg_dataset, raw_dataset, original_dataset):
        (tmp_path / dataset.encoding).symlink_to(dataset.path)
    return tmp_path


def test_parity_names_each_graph_whose_pictures_differ(data, monkeypatch):
    trial, run = _trial(data, is_dry=True), decoding._run
    decoding.check_parity(trial)
    names = [name for name in trial.figures if name.startswith(datasets.ENCODINGS)]
    assert len(names) == len(datasets.ENCODINGS) * len(decoding._FORMS)
    levels = 2 / decoding._DIVISOR_3.mean()
    monkeypatch.setattr(decoding, "_run", lambda *fed: run(*fed) + levels * (fed[-1].normalizer == "operator"))
    with pytest.raises(Failed) as failed:
        decoding.check_parity(trial)
    assert all(f"{name}: " in str(failed.value) for name in names)
    rounds = trial.figures["rounds"]
    assert rounds[aims.SAME_DECODER][aims.LARGEST_DIFFERENCE] == [pytest.approx(2, rel=0.01)]
    forms = (figures for name, figures in trial.figures.items() if name.startswith(datasets.ENCODINGS))
    assert all(figures[aims.LARGEST_DIFFERENCE] == pytest.approx(2, rel=0.01) for figures in forms)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (soaks.check_soak, "1 of 4 batches not equal to the CPU's, beginning with batch 2"),
        (
            soaks.check_cache,
            "raw, cache host: 1 of 6 batches not equal to the uncached ones, beginning with batch 2; jpeg",
        ),
    ],
)
def test_soaks_name_the_first_batch_that_differs(check, message, data, monkeypatch):
    trial, weighted_sums = _trial(data, is_dry=True), soaks._weighted_sums
    check(trial)

    def with_a_wrong_batch(*arguments, num_products):
        sums = weighted_sums(*arguments, num_products=num_products)
        sums[2] += num_products
        return sums

    monkeypatch.setattr(soaks, "_weighted_sums", with_a_wrong_batch)
    with pytest.raises(Failed, match=message):
        check(trial)


def test_cached_pictures_that_differ_in_one_bit_are_found(data, monkeypatch):
    gather, trial = PixelCache.read_batch, _trial(data, is_dry=True)

    def with_a_wrong_bit(cache, sample_ids_N):
        pictures = gather(cache, sample_ids_N)
        pictures[0] = pictures[0] ^ 1
        return pictures

    monkeypatch.setattr(PixelCache, "read_batch", with_a_wrong_bit)
    with pytest.raises(Failed, match="raw, cache host: 6 of 6 batches"):
        soaks.check_cache(trial)


def test_dropout_counts_the_units_that_differ(tmp_path, monkeypatch):
    mask = layers.keep_mask
    flipped = torch.arange(4097) == 3  # one unit of each sample
    monkeypatch.setattr(layers, "keep_mask", lambda *a, **options: mask(*a, **options) ^ flipped)
    with pytest.raises(Failed, match="the masks of 5 units differ from the CPU's"):
        layers.check_dropout(_trial(tmp_path, is_dry=True, seconds=0.0))


@pytest.mark.parametrize("check", [layers.check_lrn, layers.check_dropout])
def test_the_layers_fail_where_their_kernels_do_not_run(tmp_path, monkeypatch, check):
    monkeypatch.setattr(layers, "triton_runs_on", lambda device: False)
    with pytest.raises(Failed, match="Triton's kernels do not run on this GPU"):
        check(_trial(tmp_path, is_dry=False))


def test_lrn_that_is_wrong_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(layers._TOLERANCES, torch.bfloat16, 1e-9)  # below one rounding
    with pytest.raises(Failed, match=r"^bfloat16, channels_last: relative error forward, backward .*, not below 1e-09"):
        layers.check_lrn(_trial(tmp_path, is_dry=True, seconds=0.0))
