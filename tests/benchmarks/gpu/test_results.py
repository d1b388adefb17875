"""The record as Markdown, for docs/results.md."""

import json

import pytest

from benchmarks.gpu import aims, record
from benchmarks.gpu.card import parsed
from benchmarks.gpu.record import session_record
from benchmarks.gpu.results import main, rendered
from pipeline.command import InputError

CARD = "NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB, 5, 16, 1980 MHz, 700.00 W"
ROUNDS = {
    aims.STEP: {aims.IMAGES: [40000.0, 41000.0, 42000.0], aims.MILLISECONDS: [6.4, 6.2, 6.1]},
    aims.STEP_WITHOUT_LRN: {aims.IMAGES: [50000.0, 51000.0, 52000.0], aims.MILLISECONDS: [5.0, 5.1, 5.2]},
    aims.WATCHED_TRAINING: {aims.WAITS: [0.0]},
}


@pytest.fixture
def document(monkeypatch):
    monkeypatch.setattr(record, "describe_card", lambda: parsed(CARD))
    checks = {
        "step": {"ok": True, "error": "", "figures": {"rounds": ROUNDS, "owt 1024": "no time"}},
        "parity": {"ok": False, "error": "/home/someone/data differs", "figures": {}},
        "compile": {"ok": None, "error": "no time left of --budget", "figures": {}},
    }
    return session_record(checks, "python -m benchmarks.gpu --budget 360 --seconds 1", is_dry=False)


def test_the_record_has_medians_spread_aims_and_the_card(document):
    assert document["results"][aims.STEP][aims.MILLISECONDS] == {
        "median": 6.2,
        "min": 6.1,
        "max": 6.4,
        "rounds": [6.4, 6.2, 6.1],
    }
    assert document["card"]["name"] == "NVIDIA H100 80GB HBM3" and document["card"]["memory.total"] == "81559 MiB"
    assert [aim["met"] for aim in document["comparisons"] if aim["met"] is not None] == [False, True]
    assert document["checks"] == {"step": "ok", "parity": "failed", "compile": "skipped"}
    assert (document["benchmark"], document["dry_run"]) == ("gpu", False)
    assert "someone" not in json.dumps(document)


def test_the_markdown_has_card_aims_and_a_table_for_each_set_of_quantities(document, tmp_path, capsys):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(document))
    assert main([str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown == rendered(document)
    assert shown.startswith("NVIDIA H100 80GB HBM3, driver 580.65.06; ")
    assert "Checks ok: step; failed: parity; skipped: compile." in shown
    rows = shown.splitlines()
    assert f"| {aims.STEP} / {aims.STEP_WITHOUT_LRN} | milliseconds_per_step | 1.22 | <= 1.15 | no |" in rows
    assert f"| {aims.TRAINING} | cores_beside_dali | not measured | <= 2 | - |" in rows
    assert f"| {aims.STEP} | 41,000 (40,000 to 42,000) | 6.2 (6.1 to 6.4) |" in rows
    assert rows.count("|  | images_per_second | milliseconds_per_step |") == 1
    assert rows[-3:] == ["|  | waits_per_step |", "| --- | --- |", f"| {aims.WATCHED_TRAINING} | 0 |"]
    assert "dry run" not in shown


def test_a_dry_run_says_so(document):
    assert rendered(document | {"dry_run": True, "card": {}}).startswith(
        "A dry run on a CPU: its figures mean nothing."
    )
    assert "no card; " in rendered(document | {"card": {}})


@pytest.mark.parametrize(
    ("content", "message"), [("{", "can't be read"), ("[]", "is not a record"), ('{"results": {}}', "is not a record")]
)
def test_what_is_no_record_is_refused(content, message, tmp_path):
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(InputError, match=message):
        main([str(tmp_path / "record.json")])
    with pytest.raises(InputError, match="can't be read"):
        main([str(tmp_path / "absent.json")])
