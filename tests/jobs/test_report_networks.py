"""A report of a network that can't be built or restored here says so, and shows all else."""

import dataclasses
import shutil

import pytest
from reports import logged_run, section_of, step_line, text_of, trained_run
from runs import CONFIG

from cluster.run.run_folder import RunFolder
from jobs import report
from model.registry import ModelConfig


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (None, "there is no module elsewhere; start from the folder that holds it"),
        ("raise TypeError('no such luck')", "can't be built: TypeError: no such luck"),
    ],
    ids=["gone", "broken"],
)
def test_a_network_of_ones_own_that_cannot_be_built_leaves_the_rest(
    code, reason, raw_dataset, tmp_path, monkeypatch, capsys
):
    config = dataclasses.replace(CONFIG, model=ModelConfig(name="elsewhere:Net", batch_norm_group=12))
    run = logged_run(tmp_path / "run", raw_dataset, [step_line(1, 1)], config=config)
    run.checkpoints.save({"model": {}, "step": 1}, 1)
    monkeypatch.syspath_prepend(tmp_path)
    if code is not None:
        (tmp_path / "elsewhere.py").write_text(code)
    assert report.main([str(run.path), "-o", str(tmp_path / "r.html")]) == 0
    assert ("is loaded from" in capsys.readouterr().err) == (code is not None)
    page = (tmp_path / "r.html").read_text()
    for name in ("filters", "predictions"):
        assert reason in text_of(section_of(page, name))
    assert "1 of 10" in page


def test_a_checkpoint_of_another_network_is_said(raw_dataset, tmp_path):
    run = trained_run(tmp_path / "first", raw_dataset)
    copy = shutil.copytree(run.path, tmp_path / "run")
    other = dataclasses.replace(run.config, model=ModelConfig(name="alexnet_owt"))
    run_of_other = RunFolder(copy, run.document | {"recipe": other.to_json()})
    run_of_other.operate_as(other)
    report.main([str(copy), "-o", str(tmp_path / "r.html")])
    assert "does not fit the network alexnet_owt" in section_of((tmp_path / "r.html").read_text(), "filters")
