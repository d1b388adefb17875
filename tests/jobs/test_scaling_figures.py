"""`jobs/scaling_figures.py`: every figure is written, and shows what the rows and the cost model say."""

import dataclasses
import math

import numpy as np
import pytest
from matplotlib.image import imread
from scaling_rows import KIND, LAW, cells_of, make_rows

from cluster.lab.cost_model.fit import fit_cost_model
from cluster.lab.efficiency import by_cell
from cluster.lab.scaling_table import NO_EXCHANGE, write_rows
from jobs import scaling_figures
from jobs.scaling.exchange_drawing import draw_exchanges, find_panels
from jobs.scaling.step_drawing import PARTS, draw_steps, step_parts
from jobs.scaling.worker_drawing import draw_workers, links_of
from pipeline.command import InputError

WEAK = cells_of(workers=(1,), batches=(16,))
ROWS = make_rows([*cells_of(), *WEAK], noise=0.02)


def test_the_command_writes_every_figure_and_the_table(tmp_path, capsys):
    table = tmp_path / "scaling.parquet"
    write_rows(table, make_rows([*cells_of(links=(0.3,)), *WEAK], noise=0.02))
    loader = ["--loader-images-per-second-per-worker", "900"]
    assert scaling_figures.main([str(table), "-o", str(tmp_path / "figures"), *loader]) == 0
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    of = "alexnet_small-28-float32-0.5cpus"
    assert names == {f"workers-{of}-0.3gbit", f"steps-{of}", f"exchanges-{of}"}
    for path in (tmp_path / "figures").iterdir():
        assert imread(path).std() > 0.01, path.name
    printed = capsys.readouterr().out
    assert printed.count("| 4 | 64 | ") == 5
    assert "alexnet_small, 4 workers, global batch 64: hybrid and allreduce: hybrid is faster from r = " in printed


def test_rows_without_a_measured_link_have_the_figures_that_need_none(tmp_path, capsys):
    unswept = [
        dataclasses.replace(row, gigabits_per_second=0.0, link_bytes_per_second=math.nan)
        for row in make_rows(cells_of(links=(1.0,)))
    ]
    write_rows(tmp_path / "scaling.parquet", unswept)
    assert scaling_figures.main([str(tmp_path / "scaling.parquet"), "--out", str(tmp_path / "figures")]) == 0
    assert {path.stem.partition("-")[0] for path in (tmp_path / "figures").iterdir()} == {"workers", "steps"}
    assert "no figure of the exchanges: the table has no cell with" in capsys.readouterr().err


def test_links_that_were_not_shaped_have_all_figures(tmp_path, capsys):
    rows = [dataclasses.replace(row, gigabits_per_second=0.0) for row in make_rows(cells_of(links=(1.0,)))]
    write_rows(tmp_path / "scaling.parquet", rows)
    assert scaling_figures.main([str(tmp_path / "scaling.parquet"), "--out", str(tmp_path / "figures")]) == 0
    assert {path.stem.partition("-")[0] for path in (tmp_path / "figures").iterdir()} == {
        "workers",
        "steps",
        "exchanges",
    }
    assert capsys.readouterr().err == ""


def test_what_cannot_be_drawn_is_said(tmp_path):
    write_rows(tmp_path / "empty.parquet", [])
    with pytest.raises(InputError, match=r"has no rows; let jobs/scale.py finish a block"):
        scaling_figures.main([str(tmp_path / "empty.parquet"), "--out", str(tmp_path / "figures")])
    with pytest.raises(InputError, match=r"empty.parquet is a file; name a folder"):
        scaling_figures.main([str(tmp_path / "empty.parquet"), "--out", str(tmp_path / "empty.parquet")])
    with pytest.raises(InputError, match="--loader-images-per-second-per-worker is 0"):
        loader = ["--loader-images-per-second-per-worker", "0"]
        scaling_figures.main([str(tmp_path / "empty.parquet"), "--out", str(tmp_path / "figures"), *loader])


def test_throughput_and_efficiency_are_those_of_the_rows():
    rows = make_rows([*cells_of(), *WEAK])
    figure = draw_workers(KIND, rows, 1.0, LAW)
    strong, weak, strong_efficiency, weak_efficiency = figure.axes
    assert [axes.get_title() for axes in (strong, weak)] == [
        "strong scaling: global batch 64",
        "weak scaling: batch 16 per worker",
    ]

    def line(axes, color):
        (found,) = [
            one
            for one in axes.lines
            if one.get_color() == color and one.get_linestyle() == "-" and len(one.get_xdata()) > 1
        ]
        return list(found.get_xdata()), list(found.get_ydata())

    speeds = {
        (row.num_workers, row.global_batch_size, row.exchange, row.gigabits_per_second): row.images_per_second
        for row in rows
    }
    alone, two, four = (speeds[1, 64, NO_EXCHANGE, 0.0], *(speeds[number, 64, "hybrid", 1.0] for number in (2, 4)))
    assert line(strong, "#009e73") == ([1, 2, 4], pytest.approx([alone, two, four]))
    assert line(strong_efficiency, "#009e73")[1] == pytest.approx([100, 50 * two / alone, 25 * four / alone])
    assert line(weak_efficiency, "#009e73")[1] == pytest.approx([100, 25 * four / speeds[1, 16, NO_EXCHANGE, 0.0]])
    dashed = next(one for one in strong.lines if one.get_linestyle() == "--")
    assert list(dashed.get_ydata()) == pytest.approx([alone, 2 * alone, 4 * alone])


def test_weak_scaling_shows_no_workers_with_unlike_batches():
    cells = [cells_of(workers=(number,), batches=(batch,))[0] for number, batch in ((1, 17), (2, 34), (4, 67))]
    (speeds, _) = draw_workers(KIND, make_rows(cells), 0.0, None).axes
    assert max(max(line.get_xdata()) for line in speeds.lines) == 2


def test_the_loaders_ceiling_is_drawn_where_it_is_known():
    rows = make_rows(cells_of(links=(1.0,)))
    pace = dataclasses.replace(LAW.pace, loader_images_per_second=300.0)
    for model, expected in ((LAW, []), (dataclasses.replace(LAW, pace=pace), [[300, 600, 1200]])):
        axes = draw_workers(KIND, rows, 1.0, model).axes[0]
        assert [list(line.get_ydata()) for line in axes.lines if line.get_linestyle() == "-."] == expected


def test_a_link_of_unknown_bandwidth_has_no_ceiling_of_the_exchange():
    rows = [dataclasses.replace(row, gigabits_per_second=0.0) for row in make_rows(cells_of(links=(1.0,)))]
    for drawn, gigabits, num_lines in ((rows, 0.0, 0), (make_rows(cells_of(links=(1.0,))), 1.0, 4)):
        figure = draw_workers(KIND, drawn, gigabits, LAW)
        assert [line.get_linestyle() for line in figure.axes[0].lines].count(":") == num_lines
        assert ("exchange alone (model)" in {text.get_text() for text in figure.legends[0].texts}) == (num_lines > 0)


def test_without_one_worker_there_is_no_efficiency_to_draw():
    assert draw_workers(KIND, [row for row in ROWS if row.num_workers > 1], 1.0, LAW) is None
    assert links_of(ROWS) == [0.1, 0.3, 1.0]


def test_the_parts_of_a_step_add_up():
    cells = by_cell(make_rows(cells_of()))
    for cell, rows in cells.items():
        parts = dict(zip(PARTS, step_parts(rows, cells), strict=True))
        assert sum(parts.values()) == pytest.approx(rows[0].step_seconds), str(cell)
        assert parts["waiting for the exchange"] == pytest.approx(rows[0].blocked_seconds)
        assert parts["forward"] == pytest.approx(rows[0].forward_seconds, rel=0.3) and parts["backward"] > 0
    figure = draw_steps(KIND, make_rows(cells_of()))
    assert len(figure.axes) == 2 and all(len(axes.patches) == 13 * len(PARTS) for axes in figure.axes)


def test_exchanges_change_places_where_the_law_says():
    rows = make_rows(cells_of())
    panels = find_panels(rows, fit_cost_model(rows))
    assert [panel.cell.num_workers for panel in panels] == [2, 4]
    panel = panels[1]
    ((crossing, fastest),) = panel.crossings(("allreduce", "hybrid"), 0.01, 100)
    assert fastest == "hybrid"
    for factor, faster, slower in ((0.97, "allreduce", "hybrid"), (1.03, "hybrid", "allreduce")):
        gigabits = panel.r_gigabits / (crossing * factor)
        cells = {
            name: dataclasses.replace(panel.cell, exchange=name, gigabits_per_second=gigabits / 0.9)
            for name in (faster, slower)
        }
        assert LAW.images_per_second(cells[faster]) > LAW.images_per_second(cells[slower])


def test_a_panel_without_an_exact_exchange_is_drawn():
    rows = make_rows(cells_of(exchanges=("bf16",)))
    assert len(draw_exchanges(KIND, rows, LAW).axes) == 2


def test_points_stand_on_the_curves_of_a_law_without_noise():
    rows = make_rows(cells_of())
    model = fit_cost_model(rows)
    for panel in find_panels(rows, model):
        for cell, found in panel.cells.items():
            measured = found[0].images_per_second / panel.alone[0].images_per_second
            r = panel.r(cell)
            assert r == pytest.approx(model.exchange_ratio(cell), rel=1e-3)
            assert panel.predicted(cell.exchange, np.array([r])) == pytest.approx([measured], rel=0.01)


def test_every_panel_shows_all_of_its_points():
    law = dataclasses.replace(LAW, pace=dataclasses.replace(LAW.pace, update_seconds=0.5))  # by hybrid, less with more
    rows = make_rows(cells_of(), law)
    first, second = draw_exchanges(KIND, rows, law).axes
    highest = [max(max(line.get_ydata()) for line in axes.lines) for axes in (first, second)]
    assert highest[0] < highest[1] < second.get_ylim()[1] and second.get_ylim()[0] == 0
