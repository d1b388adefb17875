"""What a report says of short, damaged and unusual runs, and that its figures and differences are exact."""

import dataclasses
import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure
from reports import line, logged_run, section_of, step_line, text_of, trained_run
from runs import CONFIG

from cluster.run.ledger_parts import LedgerError
from cluster.run.ledger_proof import Consumption
from jobs import report
from jobs.reporting import charts, dataset_view, proof, step_time
from jobs.reporting.comparison import differences
from jobs.reporting.reading import read_record
from jobs.reporting.words import NONE, breakable, sentence, signed
from pipeline.command import InputError
from pipeline.format.color import ColorBasis
from pipeline.online.stream_order import StreamConfig
from pipeline.summary import Histogram

EMPTY_CHART = Markup('<svg role="img" aria-label="none" viewBox="0 0 1 1"></svg>')


@pytest.fixture(scope="module")
def run(raw_dataset, tmp_path_factory):
    return trained_run(tmp_path_factory.mktemp("runs") / "run", raw_dataset)


@pytest.fixture
def no_charts(monkeypatch) -> None:
    for module in (charts, dataset_view, step_time):
        monkeypatch.setattr(module, "draw", lambda name, label, plot: EMPTY_CHART)


@pytest.fixture
def drawn(monkeypatch) -> dict:
    """Axes of each chart by its name, as they were drawn."""
    axes_of = {}

    def draw(name, label, plot):
        axes_of[name] = Figure().subplots()
        plot(axes_of[name])
        return EMPTY_CHART

    for module in (charts, dataset_view, step_time):
        monkeypatch.setattr(module, "draw", draw)
    return axes_of


def _page(tmp_path, *arguments) -> str:
    assert report.main([*map(str, arguments), "-o", str(tmp_path / "r.html")]) == 0
    return (tmp_path / "r.html").read_text()


def test_a_single_step_is_seen_in_each_chart_and_gives_no_verdict(raw_dataset, tmp_path, drawn):
    run = logged_run(tmp_path / "run", raw_dataset, [step_line(1, 1, data_wait_fraction=0.9)])
    page = _page(tmp_path, run.path)
    for name in ("loss", "top1", "learning-rate", "images-per-second", "data-wait-fraction"):
        assert drawn[f"run1-{name}"].lines[0].get_marker() == "o"
    for area in drawn["run1-step-time"].collections:
        assert area.get_paths()[0].vertices[:, 0].min() == 0  # from the beginning of the step to its end
        assert area.get_paths()[0].vertices[:, 0].max() == pytest.approx(12 / 41)
    assert "nput-bound" not in section_of(page, "curves")
    tiles = text_of(page[page.index('<dl class="tiles">') : page.index("<nav")])
    assert "1 step of 12" in tiles and "images per second" not in tiles  # the first step is slow


def test_a_run_just_begun_changes_nothing_of_the_runs_beside_it(raw_dataset, tmp_path, drawn):
    lines = [step_line(step, step, [step % 2]) for step in range(1, 61)]
    paths = [logged_run(tmp_path / name, raw_dataset, lines[:n]).path for name, n in (("long", 60), ("short", 2))]
    page = _page(tmp_path, *paths)
    alone, beside = drawn["run1-loss"].lines[0], drawn["all-loss"].lines[0]
    assert alone.get_ydata().tolist() == beside.get_ydata().tolist() and len(beside.get_ydata()) == 58
    assert "Training: mean of the last 12 to 36 samples" in page
    assert not {line.get_clip_on() for axes in drawn.values() for line in axes.lines} - {False}
    results = re.findall(r'<td data-label="([^"]+)"[^>]*>(.*?)</td>', page)
    assert [text for name, text in results if name in ("images/s", "step, ms", "data wait")] == [
        *("120", "100", "25.0 %"),
        *(NONE, NONE, NONE),
    ]
    steps = page[page.index('<ul class="steps">') :].partition("</ul>")[0]
    assert "long" in steps and "short" not in steps


def test_the_step_time_begins_where_the_first_logged_step_began(raw_dataset, tmp_path, drawn):
    run = logged_run(tmp_path / "run", raw_dataset, [step_line(6, 1, [1.0] * 2), step_line(8, 2, [1.0] * 2)])
    charts_of = step_time.step_time_chart(read_record(run.path, "run"), "one")
    assert charts_of.title == "Step time, ms"
    assert drawn["one-step-time"].collections[0].get_paths()[0].vertices[:, 0].min() == pytest.approx(4 * 12 / 41)


def test_damaged_checkpoints_are_not_taken_for_missing_ones(run, tmp_path, no_charts):
    copy = shutil.copytree(run.path, tmp_path / "run")
    for path in (copy / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is torn or was modified"):
        page = _page(tmp_path, copy)
    for name in ("filters", "predictions"):
        assert f"No checkpoint of {copy} is intact; restore" in section_of(page, name)


def test_commands_name_the_dataset_where_it_is_now(run, raw_dataset, tmp_path, no_charts):
    copy = shutil.copytree(run.path, tmp_path / "run")
    shutil.rmtree(copy / "evaluations")
    moved = shutil.copytree(raw_dataset.path, tmp_path / "moved")
    errors = text_of(section_of(_page(tmp_path, copy, "--data", moved), "errors"))
    assert errors.endswith(f"python jobs/evaluate.py --data {moved} --run {copy}")


def test_differences_are_found_beyond_the_digits_that_are_shown(raw_dataset, tmp_path):
    def record(name: str, rate: float, num_epochs: float):
        optimizer = dataclasses.replace(CONFIG.optimizer, learning_rate=rate)
        config = dataclasses.replace(CONFIG, optimizer=optimizer, num_epochs=num_epochs)
        return read_record(logged_run(tmp_path / name, raw_dataset, [], config=config).path, name)

    found = differences([record("a", 0.01, 3), record("b", 0.010000001, 3.0), record("c", 0.5, 3)])
    assert [(one.field, one.values) for one in found] == [
        ("optimizer.learning_rate", ["0.01", "0.010000001", "0.5"]),
    ]


def test_hashes_are_shortened_in_the_table_of_differences(raw_dataset, jpeg_dataset, tmp_path):
    datasets = (raw_dataset, jpeg_dataset)
    records = [read_record(logged_run(tmp_path / str(i), one, []).path, str(i)) for i, one in enumerate(datasets)]
    (hashes,) = [one for one in differences(records) if one.field == "sha256"]
    assert hashes.values == [one.sha256[:12] for one in datasets]


def test_values_that_are_known_by_their_bin_only_are_told_as_such(drawn):
    source = Histogram(np.array([2048]), np.array([9]), 1024)
    stored = Histogram(np.array([5000, 5100]), np.array([4, 5]))
    chart = dataset_view._histogram_chart("Size", {"source": source, "stored": stored}, "size", 1000, "kB")
    assert [entry.text for entry in chart.legend] == ["source: all 2.05 to 3.07", "stored"]
    chart = dataset_view._histogram_chart("Size", {"source": source}, "one", 1000, "kB")
    assert [entry.text for entry in chart.legend] == ["source: all 2.05 to 3.07"] and drawn["one"].patches
    wide = Histogram(np.array([2048, 4096]), np.array([4, 5]), 1024)
    dataset_view._histogram_chart("Size", {"source": wide, "stored": stored}, "both", 1, "kB")
    bars = drawn["both"].patches[0].get_data()
    assert bars.edges[np.flatnonzero(bars.values)].tolist() == [2048, 4096]  # the bins are where the pictures are


def test_a_folder_that_is_not_writable_is_named_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=rf"{tmp_path} is not writable"):
        report.main([str(run.path), "-o", str(tmp_path / "r.html")])


def test_names_in_any_direction_of_writing_stay_apart(run, tmp_path, no_charts):
    section = section_of(_page(tmp_path, run.path), "input")
    assert len(re.findall(r'<figcaption><bdi>class \d</bdi> <bdi dir="ltr" class="soft">', section)) == 6


def test_reasons_begin_like_sentences_but_names_stay_as_they_are():
    assert sentence("the dataset is out of reach") == "The dataset is out of reach"
    assert sentence("alexnet_small has no filters") == "alexnet_small has no filters"
    assert sentence("/runs/a has no checkpoint") == "/runs/a has no checkpoint"


def test_a_batch_is_not_read_as_a_total(run, tmp_path, no_charts):
    page = _page(tmp_path, run.path)
    assert "steps without gap 10, of 12 samples each" in text_of(section_of(page, "proof"))
    assert "<dt>optimizer.<wbr>bias_<wbr>learning_<wbr>rate_<wbr>factor</dt>" in page


def test_axes_have_thousands_separated_and_no_padded_zeros(tmp_path, raw_dataset):
    lines = [line("start", 0, step=0, world_size=1), *(step_line(n, n, images_per_second=150_000.0) for n in (1, 2))]
    page = _page(tmp_path, logged_run(tmp_path / "run", raw_dataset, lines).path)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", page)
    assert "150,000" in texts and "0.1" in texts and not any(re.fullmatch(r"\d+\.\d*0", text) for text in texts)


@pytest.mark.parametrize(
    ("change", "verdict", "text"),
    [
        ({}, "fault", "the runs differ"),
        ({"streams": StreamConfig(window_size=9)}, "fault", "the runs differ"),  # without streams it means nothing
        ({"streams": StreamConfig(num_streams=2)}, "absent", "other streams"),
        ({"seed": 7}, "absent", "another seed"),
    ],
)
def test_another_order_is_a_fault_only_where_the_same_was_asked_for(
    change, verdict, text, raw_dataset, tmp_path, monkeypatch
):
    def compare(first, second):
        raise LedgerError("the runs differ")

    monkeypatch.setattr(proof, "compare", compare)
    configs = {"first": CONFIG, "other": dataclasses.replace(CONFIG, **change)}
    first, other = (logged_run(tmp_path / name, raw_dataset, [], config=config) for name, config in configs.items())
    assert proof.prove_order(first, other) == proof.Proof(verdict, text)


def test_a_run_whose_workers_have_not_begun_has_a_dash_for_them(raw_dataset, tmp_path):
    lines = [line("start", at, step=0, world_size=number) for at, number in ((0, 2), (9, 2), (20, 1))]
    logs = {"begun": lines, "new": []}
    records = [read_record(logged_run(tmp_path / name, raw_dataset, log).path, name) for name, log in logs.items()]
    assert [(one.field, one.values) for one in differences(records)] == [
        ("number", ["2, then 1", NONE]),
        ("exchange", ["allreduce", NONE]),
    ]


@pytest.mark.parametrize(("numbers", "says"), [((2, 1), "up to 2 workers"), ((2, 2), "; 2 workers")])
def test_the_headline_says_whether_all_workers_trained_all_the_time(numbers, says, raw_dataset, tmp_path, no_charts):
    lines = []
    for at, number in zip((0, 10), numbers, strict=True):
        lines += [line("start", at, step=at, world_size=number), step_line(at + 1, at + 5)]
    page = _page(tmp_path, logged_run(tmp_path / "run", raw_dataset, lines).path)
    assert says in text_of(page[: page.index("<nav")])


@pytest.mark.parametrize(
    ("num_wrong", "says"),
    [(4, "All 4 classes that have pictures."), (1, "The lowest 1 of 4 classes that have pictures.")],
)
def test_the_worst_classes_say_of_how_many(num_wrong, says, run, tmp_path, no_charts):
    copy = shutil.copytree(run.path, tmp_path / "run")
    path = copy / "evaluations" / "val-centre" / "per_class.parquet"
    table = pq.read_table(path)
    rows = [row | {"num_samples": 2, "top1": 0.5 if i < num_wrong else 1.0} for i, row in enumerate(table.to_pylist())]
    pq.write_table(pa.Table.from_pylist(rows[:4], table.schema), path)
    assert says in text_of(section_of(_page(tmp_path, copy), "errors"))


def test_the_noise_around_grey_pictures_is_no_variance():
    basis = ColorBasis(255, np.full(3, 0.5), np.full((3, 3), 0.1), np.array([0.3, 3e-17, -1e-18]), np.eye(3))
    _, *noise = dataset_view.components(basis)
    assert [(one.eigenvalue, one.share, set(one.swatches)) for one in noise] == [(0, 0, {"rgb(128 128 128)"})] * 2


@pytest.mark.parametrize(
    ("num_steps", "text"),
    [
        (4, "40 of the 41 samples were consumed, none twice."),
        (10, "Each of the 41 samples was consumed exactly once in each of 2 whole epochs; 18 samples of the next"),
    ],
)
def test_the_proof_of_less_than_an_epoch_leaves_open_whether_more_follows(num_steps, text, monkeypatch, run):
    monkeypatch.setattr(proof, "prove", lambda run: Consumption(num_steps, 0, 10, 41, {1: num_steps}, "0" * 64))
    assert proof.prove_run(run).text.startswith(text)


def test_names_and_paths_break_between_their_words_and_numbers_do_not():
    texts = {"a_b": "a_<wbr>b", "/d/x.y": "/<wbr>d/<wbr>x.<wbr>y", "0.005": "0.005", "<i>": "&lt;i&gt;"}
    assert {text: breakable(text) for text in texts} == texts


def test_numbers_have_a_minus_sign():
    assert [signed(number, 2) for number in (0.597, -0.427, 0.0)] == ["+0.60", "\N{MINUS SIGN}0.43", "+0.00"]
