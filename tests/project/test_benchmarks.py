"""The benchmarks' arithmetic, their records and their commands; what they measure is in benchmarks/records."""

import importlib
import json
import os
from pathlib import Path

import pytest

from benchmarks import record
from benchmarks.offline_scale import write_dataset
from benchmarks.photographs import link_photographs, list_photographs
from benchmarks.record import Comparison, markdown, publish, record_document, run_rounds
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.paths import CHECKOUT
from pipeline.system.processor import Processor

COMMANDS = sorted(
    str(path.relative_to(CHECKOUT).with_suffix("")).replace("/", ".")
    for path in (CHECKOUT / "benchmarks").rglob("*.py")
    if "run_command(main)" in path.read_text()
)
VALUES = {"ours": {"images_per_second": [90.0, 10.0, 100.0]}, "floor": {"images_per_second": [100.0, 130.0, 70.0]}}


def _document(**changed):
    document = record_document(
        name="trial",
        command="python -m benchmarks.trial PHOTOS",
        corpus="PHOTOS: none",
        quantities={"images_per_second": "of a wall clock"},
        values=VALUES,
        comparisons=[Comparison(of="ours", quantity="images_per_second", to="floor", at_least=0.95)],
        packages=["numpy", "no-such-package"],
    )
    return document | changed


def test_rounds_are_interleaved():
    calls = []
    alternatives = {name: lambda name=name: calls.append(name) or {"count": len(calls)} for name in "AB"}
    values = run_rounds(alternatives, 3)
    assert calls == list("ABABAB")
    assert values == {"A": {"count": [1.0, 3.0, 5.0]}, "B": {"count": [2.0, 4.0, 6.0]}}


@pytest.mark.parametrize(
    ("to", "bounds", "value", "met"),
    [
        (None, {}, 90.0, None),
        ("floor", {}, 0.9, None),
        ("floor", {"at_least": 0.9}, 0.9, True),
        ("floor", {"at_least": 0.91}, 0.9, False),
        ("floor", {"at_most": 0.9}, 0.9, True),
        ("floor", {"at_most": 0.89}, 0.9, False),
        ("floor", {"at_least": 0.5, "at_most": 0.6}, 0.9, False),
    ],
)
def test_a_comparison_divides_medians_and_keeps_bounds(to, bounds, value, met):
    judged = Comparison(of="ours", quantity="images_per_second", to=to, **bounds).judge(VALUES)
    assert (judged["value"], judged["met"]) == (value, met)


@pytest.mark.parametrize("form", ["", "avx2"])
def test_a_record_round_trips(form, tmp_path, capsys, monkeypatch):
    processor = Processor("AMD EPYC", ("AVX2",), (f"DNNL_MAX_CPU_ISA={form}",) if form else ())
    monkeypatch.setattr(record, "this_processor", lambda: processor)
    document = _document(date="2012-12-03T10:00:00+00:00")
    assert document["environment"]["cpu"] == str(processor)
    path = publish(document, tmp_path)
    assert path == tmp_path / f"2012-12-03-trial{'-avx2' if form else ''}.json"
    assert json.loads(path.read_text()) == document
    assert capsys.readouterr().out.partition("\n")[::2] == (f"{processor}, {os.cpu_count()} cores", markdown(document))


def test_a_record_holds_spread_rounds_and_environment():
    document = _document()
    assert document["results"]["ours"]["images_per_second"] == {
        "median": 90.0,
        "min": 10.0,
        "max": 100.0,
        "rounds": [90.0, 10.0, 100.0],
    }
    assert set(document["environment"]["packages"]) == {"numpy"}
    assert document["environment"]["cores"] >= 1


def test_a_record_names_neither_host_nor_path():
    text = json.dumps(_document())
    assert str(CHECKOUT) not in text
    assert str(Path.home()) not in text
    assert os.uname().nodename not in text


def test_the_tables_show_medians_spread_and_misses():
    results, comparisons = markdown(_document()).split("\n\n")
    assert "| ours | 90 (10 to 100) |" in results.splitlines()
    assert "| ours / floor | images_per_second | 0.9 | >= 0.95 | no |" in comparisons.splitlines()


def test_pictures_repeat_as_hard_links(tmp_path):
    original = tmp_path / "photographs" / "train" / "cat" / "1.JPEG"
    original.parent.mkdir(parents=True)
    original.write_bytes(b"picture")
    linked = link_photographs(list_photographs(tmp_path / "photographs"), tmp_path / "many", 3)
    assert len(list_photographs(linked)) == 3
    assert original.stat().st_nlink == 4


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no train/CLASS"):
        list_photographs(tmp_path)


def test_the_synthetic_manifest_is_one_that_opens(tmp_path):
    write_dataset(tmp_path / "dataset", 1500)
    manifest = Dataset.open(tmp_path / "dataset").manifest("train")
    assert manifest.num_rows == 1500
    assert manifest["shard"].unique().to_pylist() == ["train-000000.tar", "train-000001.tar"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_has_help(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main(["--help"])
    assert ended.value.code == 0
    first_line = (CHECKOUT / f"{name.replace('.', '/')}.py").read_text().partition('"""')[2].partition("\n")[0]
    assert first_line in " ".join(capsys.readouterr().out.split())


def test_the_benchmarks_are_found():
    names = {"sharding", "decoders", "offline_scale", "loading", "graphs", "mixing", "gpu.__main__", "gpu.datasets"}
    assert {f"benchmarks.{name}" for name in names} <= set(COMMANDS)


def test_the_environment_is_known_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = record.environment(["numpy"])
    assert (found["git_commit"], found["git_dirty"]) == ("", False)
    assert set(found["packages"]) == {"numpy"}
