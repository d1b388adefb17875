"""`--json` means the same in every command: a file, or standard output that holds nothing else."""

import json
import sys

import pytest

from pipeline.command import InputError
from pipeline.json_answer import completed, json_answer


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["D", "--json"], ["D", "--json", "-"]),
        (["--json", "--seconds", "1"], ["--json", "-", "--seconds", "1"]),
        (["D", "--json", "F"], ["D", "--json", "F"]),
        (["D", "--json", "-"], ["D", "--json", "-"]),
        (["--json"], ["--json", "-"]),
        ([], []),
    ],
)
def test_the_option_without_a_file_means_standard_output(words, expected, monkeypatch):
    assert completed(words) == expected
    monkeypatch.setattr(sys, "argv", ["command", *words])
    assert completed(None) == expected


def test_standard_output_holds_the_document_alone(capsys):
    with json_answer("-") as answer:
        sys.stdout.write("for people\n")
        answer({"value": 1})
        sys.stdout.write("for people, too\n")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"value": 1}
    assert captured.err == "for people\nfor people, too\n"


def test_a_file_holds_the_document(tmp_path, capsys):
    with json_answer(tmp_path / "deep" / "answer.json") as answer:
        sys.stdout.write("for people\n")
        answer({"value": 1})
    assert json.loads((tmp_path / "deep" / "answer.json").read_text()) == {"value": 1}
    assert capsys.readouterr().out == "for people\n"


def test_a_command_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(InputError), json_answer(tmp_path / "answer.json"):
        raise InputError("wrong")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_refused_before_anything_is_done(tmp_path):
    done = []
    with pytest.raises(InputError, match="is a folder; name a file to write"), json_answer(tmp_path):
        done.append("work")
    assert done == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("a.jpg", "does not end in .json"),
        ("answer", "does not end in .json"),
        ("data/dataset.json", "lies in .*data, which holds only its own files"),
        ("data/new/answer.json", "lies in .*data, which holds only its own files"),
        ("link/dataset.json", "lies in .*data, which holds only its own files"),
        ("table.json", "would overwrite what the command reads"),
    ],
)
def test_what_a_command_reads_is_not_overwritten(target, message, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    done = []
    with (
        pytest.raises(InputError, match=message),
        json_answer(tmp_path / target, None, tmp_path / "data", tmp_path / "table.json"),
    ):
        done.append("work")
    assert done == []


def test_what_is_not_json_is_refused(capsys):
    with pytest.raises(ValueError), json_answer("-") as answer:
        answer({"value": float("nan")})
    assert capsys.readouterr().out == ""


def test_nobody_asked(capsys):
    with json_answer(None) as answer:
        answer({"value": object()})
    assert capsys.readouterr() == ("", "")
