"""The record of the cost model's errors: what it holds, and what it compares."""

import dataclasses
import json

import pytest
from scaling_rows import cells_of, make_rows

from benchmarks import cost_model
from benchmarks.record import publish
from cluster.lab.cost_model.held_out import judge, splits
from cluster.lab.scaling_table import write_rows
from pipeline.command import InputError

OF = "alexnet_small, 28 px, float32, 0.5 CPUs per worker"


def test_the_record_sets_the_model_beside_each_baseline(tmp_path, monkeypatch, capsys):
    rows = make_rows(cells_of(), noise=0.02)
    write_rows(tmp_path / "scaling.parquet", rows)
    monkeypatch.setattr(cost_model, "publish", lambda document: publish(document, tmp_path / "records"))
    assert cost_model.main([str(tmp_path / "scaling.parquet")]) == 0
    (path,) = (tmp_path / "records").iterdir()
    document = json.loads(path.read_text())
    names = ["cost model", "linear", "amdahl", "ernest"]
    places = ["4 workers, above the others", "0.1 Gbit/s, below the others", "0.3 Gbit/s, between the others"]
    for place in [*places, "1 Gbit/s, above the others"]:
        found = [document["results"][f"{OF}; {place}: {name}"]["median_error"]["median"] for name in names]
        assert found[0] < 0.05 and found[0] < min(found[1:])
    largest = document["results"][f"{OF}; {places[0]}: cost model"]
    assert largest["cells"]["median"] == 12 and largest["choices_decided"]["median"] == 3
    bounds = [one for one in document["comparisons"] if one["to"] is None]
    assert [(one["of"].partition("; ")[2], one["at_most"], one["met"]) for one in bounds] == [
        (f"{places[0]}: cost model", 0.15, True),
        (f"{places[2]}: cost model", 0.10, True),
    ]
    assert sum(one["to"] is not None for one in document["comparisons"]) == 4 * 3
    assert document["measured_on"] == "two cores"
    assert set(document["fits"][OF]) == {"pace", "network", "overlap"}
    assert document["fits"][OF]["pace"]["loader_images_per_second"] is None
    assert len(document["errors"][f"{OF}; {places[0]}: cost model"]) == 12
    assert "4 workers, above the others: cost model" in capsys.readouterr().out


def test_links_that_were_not_shaped_are_judged_too(tmp_path, monkeypatch):
    documents = []
    rows = [dataclasses.replace(row, gigabits_per_second=0.0) for row in make_rows(cells_of(links=(1.0,)), noise=0.02)]
    write_rows(tmp_path / "scaling.parquet", rows)
    monkeypatch.setattr(cost_model, "publish", documents.append)
    assert cost_model.main([str(tmp_path / "scaling.parquet")]) == 0
    found = documents[0]["results"][f"{OF}; 4 workers, above the others: cost model"]
    assert found["median_error"]["median"] < 0.05 and found["cells"]["median"] == 4


def test_a_table_with_nothing_to_keep_out_is_refused(tmp_path):
    rows = make_rows(cells_of(workers=(1, 2), links=(1.0,)))
    write_rows(tmp_path / "scaling.parquet", rows)
    assert [verdict for split in splits(rows) for verdict in judge(split)] == []
    with pytest.raises(InputError, match="has nothing to keep out"):
        cost_model.main([str(tmp_path / "scaling.parquet")])
