"""The report: each section says what the run's folder and the dataset hold, and what is absent and why."""

import base64
import dataclasses
import errno
import io
import os
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from markupsafe import Markup
from PIL import Image
from reports import evaluation_line, line, logged_run, section_of, step_line, text_of, trained_run
from runs import CONFIG

from cluster.run.ledger_proof import prove
from cluster.run.run_folder import RunFolder
from cluster.worker.evaluation_files import CONFUSION_SCHEMA, PER_CLASS_SCHEMA
from cluster.worker.prediction import Classifier
from cluster.worker.trained_model import load_model
from jobs import report
from jobs.reporting import charts, dataset_view, run_view
from jobs.reporting.dataset_view import css_color
from jobs.reporting.evaluations import latest_evaluation
from jobs.reporting.pictures import draw_filters
from pipeline.command import InputError
from pipeline.online.order import SampleOrder
from pipeline.preview import samples_of

EMPTY_CHART = Markup('<svg role="img" aria-label="none" viewBox="0 0 1 1"></svg>')
ODD = "<b>5 & more</b>"  # a class whose name is markup


@pytest.fixture(scope="module")
def run(raw_dataset, tmp_path_factory) -> RunFolder:
    return trained_run(tmp_path_factory.mktemp("runs") / "first", raw_dataset)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("report") / "report.html"
    assert report.main([str(run.path), "-o", str(out)]) == 0
    return out.read_text()


@pytest.fixture
def no_charts(monkeypatch) -> None:
    """Leave out what takes most of the time, where a test does not look at charts."""
    for module in (charts, dataset_view):
        monkeypatch.setattr(module, "draw", lambda name, label, plot: EMPTY_CHART)


def _pictures(html: str) -> list[np.ndarray]:
    contents = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))) for content in contents]


def test_the_page_loads_nothing_and_runs_nothing(page):
    assert "default-src 'none'" in page and "<script" not in page
    references = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert references and all(one.startswith(("data:", "#")) for one in references)
    assert not re.search(r"\son\w+=", page)


def test_the_charts_are_well_formed_and_share_no_id(page):
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(charts) == 6 + 1 + 3  # curves, workers, histograms
    for chart in charts:
        root = ElementTree.fromstring(chart.replace("<svg", '<svg xmlns:xlink="http://www.w3.org/1999/xlink"', 1))
        assert root.get("role") == "img" and root.get("aria-label")
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', page)) <= set(ids)
    assert not re.search(r"#010[12]|DejaVu Sans'", "".join(charts))  # what stands for colours and font was replaced
    assert "var(--s1)" in charts[0] and "var(--s2)" in charts[0]


def test_the_same_run_gives_the_same_page(run, page, tmp_path):
    report.main([str(run.path), "-o", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_text() == page


def test_the_headline_has_the_figures_of_log_and_evaluation(run, page):
    tiles = text_of(page[page.index('<dl class="tiles">') : page.index("<nav")])
    assert f"{run.result['best_val_top1'] * 100:.2f} %" in tiles
    assert "val top-1, evaluated" in tiles and "10 pictures" in tiles
    assert "samples seen 120 2.927 epochs, 10 steps of 12" in tiles
    assert "1 worker" in tiles and "alexnet_small in float64" in tiles
    assert "finished" in page[: page.index("<h1>")]


def test_the_filters_are_those_of_the_best_checkpoint(run, page):
    strips = _pictures(section_of(page, "filters"))
    model, _ = load_model(run, torch.device("cpu"))
    weights = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d)).weight.detach()
    last = weights[17].permute(1, 2, 0).numpy()  # the second of the third strip of 8
    expected = np.rint((last - last.min()) / (last.max() - last.min()) * 255)
    side, factor = len(last), 60 // len(last)
    assert len(strips) == 4 and strips[2].shape == (side * factor, 8 * (side * factor + 8) - 8, 4)
    cell = side * factor + 8
    found = strips[2][::factor, cell : cell + side * factor : factor]
    np.testing.assert_array_equal(found[..., :3], expected)
    assert (found[..., 3] == 255).all() and (strips[2][:, cell - 8 : cell, 3] == 0).all()


def test_filters_of_blue_first_networks_are_shown_red_first(run):
    model, step = load_model(run, torch.device("cpu"))
    bgr = dataclasses.replace(run.config, model=dataclasses.replace(run.config.model, channel_order="bgr"))
    turned = RunFolder(run.path, run.document | {"recipe": bgr.to_json()})
    pictures = []
    for one in (run, turned):
        uri = draw_filters(model, one, step).strips[0].uri
        pictures.extend(_pictures(f'<img src="{uri}">'))
    np.testing.assert_array_equal(pictures[0][..., 2::-1], pictures[1][..., :3])


def test_a_network_without_colour_filters_has_none(run):
    assert draw_filters(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3)), run, 1) is None


def test_predictions_are_the_models_own(run, raw_dataset, page):
    section = section_of(page, "predictions")
    looks = re.findall(r"<article.*?</article>", section, flags=re.DOTALL)
    assert len(looks) == 8
    table = pq.read_table(run.evaluations_path / "val-centre" / "predictions.parquet").to_pylist()
    right = [row for row in table if row["class_index"] == row["predicted_class_index"]]
    assert section.count(">wrong<") == min(len(table) - len(right), max(4, 8 - len(right)))
    samples = list(samples_of(raw_dataset, "val", np.arange(10)))
    stored = {sample.square_HWC.tobytes(): sample for sample in samples}
    classifier = Classifier(run, torch.device("cpu"))
    for look in looks:
        sample = stored[_pictures(look)[0].tobytes()]
        ((classes, probabilities),) = classifier.best_classes([sample.square_HWC])
        expected = " ".join(f"class {index} {p * 100:.1f} %" for index, p in zip(classes, probabilities, strict=True))
        verdict = "right" if classes[0] == sample.row["class_index"] else "wrong"
        assert text_of(look) == f"{verdict} class {sample.row['class_index']} {expected}"


def test_the_worst_confusions_are_those_of_the_evaluation(run, page):
    section = text_of(section_of(page, "errors"))
    rows = pq.read_table(run.evaluations_path / "val-centre" / "confusion.parquet").to_pylist()
    wrong = [row for row in rows if row["class_index"] != row["predicted_class_index"]]
    worst = max(wrong, key=lambda row: row["count"])
    pair = f"class {worst['class_index']} seen as class {worst['predicted_class_index']}"
    first = section.index("Worst confusions")
    assert re.match(rf"Worst confusions class \d seen as class \d {worst['count']} ·", section[first:])
    assert pair in section and "val, centre crop , 10 pictures" in section


def test_the_sheet_shows_what_the_seed_draws(raw_dataset, page):
    pictures = _pictures(section_of(page, "input"))
    assert len(pictures) == 6 * 4
    ids = SampleOrder(41, CONFIG.seed).sample_ids(np.arange(6))
    for place, sample in enumerate(samples_of(raw_dataset, "train", ids)):
        np.testing.assert_array_equal(pictures[4 * place], sample.square_HWC)
        assert {picture.shape for picture in pictures[4 * place + 1 : 4 * place + 4]} == {(28, 28, 3)}


def test_the_eigenbasis_is_drawn(raw_dataset, page):
    basis = raw_dataset.color_basis
    rows = re.findall(r'<div class="swatches".*?</div>', page, flags=re.DOTALL)
    assert len(rows) == 3
    for index, row in enumerate(rows):
        colors = re.findall(r"background: ([^\"]+)", row)
        moved = basis.mean_3 + 2 * np.sqrt(basis.eigenvalues_3[index]) * basis.eigenvectors_33[:, index]
        assert len(colors) == 7 and colors[3] == css_color(basis.mean_3) and colors[5] == css_color(moved)
    assert f"eigenvalue {basis.eigenvalues_3[0]:.4g}" in page


def test_dataset_recipe_versions_and_proof_are_there(run, page):
    dataset = text_of(section_of(page, "dataset"))
    assert "train 41 pictures in 3 shards" in dataset and "classes 4 stored as raw, 32x32 pixels" in dataset
    recipe = text_of(section_of(page, "recipe"))
    assert "optimizer.learning_rate 0.01" in recipe and f"torch {torch.__version__.partition('+')[0]}" in recipe
    proof = text_of(section_of(page, "proof"))
    assert proof.startswith(
        "Proof by the sample ledger proven Each of the 41 samples was consumed exactly once in each of 2"
    )
    assert prove(run).sha256 in proof


def test_a_fault_of_the_ledger_is_said_in_red_and_in_the_last_line(run, tmp_path, capsys, no_charts):
    copy = shutil.copytree(run.path, tmp_path / "run")
    (part,) = (copy / "ledger").glob("steps-*.parquet")
    part.unlink()
    assert report.main([str(copy), "-o", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("not proven: the sample ledger of run shows a fault")
    section = section_of((tmp_path / "r.html").read_text(), "proof")
    assert "not proven" in text_of(section) and 'class="card proof fault"' in section


def test_what_needs_the_dataset_says_that_it_is_out_of_reach(run, raw_dataset, tmp_path, no_charts):
    copy = shutil.copytree(run.path, tmp_path / "run")
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace(str(raw_dataset.path), "/nowhere/data"))
    report.main([str(copy), "-o", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    for name in ("predictions", "input", "dataset"):
        assert "The dataset /nowhere/data is out of reach" in section_of(page, name)
    assert _pictures(section_of(page, "filters")) and "eigenvalue" in page
    report.main([str(copy), "-o", str(tmp_path / "r.html"), "--data", str(raw_dataset.path)])
    assert "out of reach" not in (tmp_path / "r.html").read_text()


def test_another_dataset_is_not_taken_for_the_runs_own(run, jpeg_dataset, tmp_path, no_charts):
    report.main([str(run.path), "-o", str(tmp_path / "r.html"), "--data", str(jpeg_dataset.path)])
    assert "is not the dataset that this run was trained on" in section_of((tmp_path / "r.html").read_text(), "dataset")


@pytest.mark.parametrize("metrics", [[], [line("start", 3, step=0, world_size=2)]], ids=["nothing", "workers"])
def test_a_run_that_has_just_begun_gives_a_page(metrics, raw_dataset, tmp_path, no_charts):
    run = logged_run(tmp_path / "run", raw_dataset, metrics, [line("launch", 0, num_workers=2)])
    assert report.main([str(run.path), "-o", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "just begun" in page and "has logged no step yet" in section_of(page, "curves")
    assert "has no checkpoint yet" in section_of(page, "filters")
    assert "has no checkpoint yet" in section_of(page, "errors")
    assert "has not logged a step yet" in section_of(page, "proof")


def test_an_unfinished_run_of_an_old_version_gives_a_page(raw_dataset, tmp_path):
    lines = [re.sub(r', "time": [\d.]+', "", text) for text in (step_line(1, 0), step_line(4, 0, [1.0] * 3))]
    run = logged_run(tmp_path / "run", raw_dataset, lines)
    document = (run.path / "config.json").read_text()
    (run.path / "config.json").write_text(re.sub(r'"num_samples": 41,\s*|"format_version": 2,\s*', "", document))
    assert report.main([str(run.path), "-o", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "not finished" in page and "step 4 of 10" in page
    assert "do not say when workers began" in section_of(page, "workers")


def test_an_error_that_ended_the_run_is_said_first(raw_dataset, tmp_path, no_charts):
    lines = [line("start", 1, step=0, world_size=1), line("failure", 9, step=3, message="the loss became NaN")]
    run = logged_run(tmp_path / "run", raw_dataset, lines)
    report.main([str(run.path), "-o", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    assert '<p class="status bad">failed</p>' in page
    assert "The run was ended by an error at step 3: the loss became NaN" in text_of(page[: page.index("<nav")])


@pytest.mark.parametrize(("wait", "says"), [(0.38, "Input-bound: 38 %"), (0.02, "Not input-bound: 2.0 %")])
def test_the_curves_say_whether_data_hold_up_the_step(wait, says, raw_dataset, tmp_path, no_charts):
    lines = [step_line(1, 1, data_wait_fraction=0.95), *(step_line(s, s, data_wait_fraction=wait) for s in (2, 3, 4))]
    run = logged_run(tmp_path / "run", raw_dataset, lines)
    report.main([str(run.path), "-o", str(tmp_path / "r.html")])
    curves = text_of(section_of((tmp_path / "r.html").read_text(), "curves"))
    assert says in curves and (f"python -m pipeline.bench {raw_dataset.path}" in curves) == says.startswith("Input")


@pytest.mark.parametrize(("top1", "is_said"), [(0.2, True), (0.9, False)])
def test_the_curves_say_whether_the_pictures_were_learnt_by_heart(top1, is_said, raw_dataset, tmp_path, no_charts):
    lines = [*(step_line(step, step, top1=0.95) for step in range(1, 11)), evaluation_line(10, 11, top1)]
    run = logged_run(tmp_path / "run", raw_dataset, lines)
    report.main([str(run.path), "-o", str(tmp_path / "r.html")])
    curves = text_of(section_of((tmp_path / "r.html").read_text(), "curves"))
    assert ("Overfitting: top-1 is 95.0% on the training pictures and 20.0% on the 10 held out" in curves) == is_said
    assert ("more pictures help" in curves) == ("Overfitting" in curves) == is_said


def test_names_are_text_not_markup(run, tmp_path, no_charts):
    copy = shutil.copytree(run.path, tmp_path / ODD.replace("/", "-"))
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"class 1"', f'"{ODD}"'))
    report.main([str(copy), "-o", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    assert "<b>5" not in page and "&lt;b&gt;5 &amp; more&lt;" in page


def test_a_long_run_gives_a_page_of_bounded_size(raw_dataset, tmp_path):
    lines = [step_line(step * 20, step, [1 / step + 0.1 * (step % 7)] * 20) for step in range(1, 5001)]
    lines += [evaluation_line(step * 100, 10_000, 0.5) for step in range(1, 1001)]
    run = logged_run(tmp_path / "run", raw_dataset, lines)
    report.main([str(run.path), "-o", str(tmp_path / "r.html")])
    curves = section_of((tmp_path / "r.html").read_text(), "curves")
    assert len(curves) < 250_000


def test_runs_are_compared_and_only_what_differs_is_listed(run, raw_dataset, tmp_path):
    lines = [line("start", 0, step=0, world_size=2), *(step_line(step, step, [2.0]) for step in range(1, 6))]
    faster = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, learning_rate=0.5))
    other = logged_run(tmp_path / "second", raw_dataset, [*lines, evaluation_line(5, 6, 0.25)], config=faster)
    assert report.main([str(run.path), str(other.path), "-o", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    table = page[page.index('id="differences"') : page.index('id="curves"')]
    fields = re.findall(r'<th scope="row">(.*?)</th>', table)
    assert [text_of(field) for field in fields] == ["recipe optimizer.learning_rate", "workers number"]
    assert "optimizer.<wbr>learning_<wbr>rate" in fields[0]  # it may break there, and within no word
    assert re.findall(r"<td[^>]*>(.*?)</td>", table) == ["0.01", "0.5", "1", "2"]
    results = page[page.index('id="results"') : page.index('id="differences"')]
    assert "25.00 %" in results and "no step in common" in results
    assert page.count('<details class="run">') == 2 and 'aria-label="Loss of first and second over epochs"' in page


def test_equal_runs_differ_in_nothing_and_have_one_order(run, tmp_path, no_charts):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    report.main([str(run.path), str(copy), "-o", str(tmp_path / "new" / "r.html")])
    page = (tmp_path / "new" / "r.html").read_text()
    assert "Nothing: recipes, datasets, versions and workers are equal" in page and ">the same</td>" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "-o", "{tmp}/report.pdf"], r"does not end in \.html"),
        (["{run}", "-o", "{tmp}/folder.html"], "is a folder"),
        (["{run}", "-o", "{run}/config.json/r.html"], r"config\.json is a file"),
        (["{tmp}", "-o", "{tmp}/r.html"], "holds no run"),
        (["{run}", "{tmp}/none", "-o", "{tmp}/r.html"], "holds no run"),
        (["{run}/config.json", "-o", "{tmp}/r.html"], r"config\.json holds no run"),
        (["{run}", "-o", "{tmp}/r.html", "--data", "{tmp}/none"], "none does not exist"),
        (["{run}", "-o", "{tmp}/r.html", "--data", "{tmp}"], r"has no dataset\.json"),
        (["{run}", "{run}", "-o", "{tmp}/r.html"], "is named twice"),
        (["-o", "{tmp}/r.html"], "no run is named"),
    ],
)
def test_wrong_input_is_named(arguments, message, run, tmp_path):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match=message):
        report.main([argument.format(run=run.path, tmp=tmp_path) for argument in arguments])
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_the_most_frequent_confusions_of_the_latest_evaluation_come_first(run, tmp_path):
    copy = RunFolder.open(shutil.copytree(run.path, tmp_path / "run"))
    later = shutil.copytree(copy.evaluations_path / "val-centre", copy.evaluations_path / "a-later-one")
    classes = pq.read_table(later / "per_class.parquet").to_pylist()
    for row, num_samples, top1 in zip(classes, (10, 20, 40, 0), (0.5, 0.25, 1.0, None), strict=True):
        row |= {"num_samples": num_samples, "top1": top1, "top5": top1}
    pairs = [(0, 0, 5), (0, 1, 2), (0, 2, 3), (1, 0, 15), (1, 1, 5), (2, 2, 40)]
    rows = [dict(zip(CONFUSION_SCHEMA.names, pair, strict=True)) for pair in pairs]
    pq.write_table(pa.Table.from_pylist(rows, CONFUSION_SCHEMA), later / "confusion.parquet")
    pq.write_table(pa.Table.from_pylist(classes, PER_CLASS_SCHEMA), later / "per_class.parquet")
    os.utime(later / "result.json", (2e9, 2e9))
    found = latest_evaluation(copy)
    assert found.folder == later and found.num_classes == 3
    assert [(one.true_name, one.predicted_name, one.count, one.fraction) for one in found.confusions] == [
        ("class 1", "class 0", 15, 0.75),
        ("class 0", "class 2", 3, 0.3),
        ("class 0", "class 1", 2, 0.2),
    ]
    assert [(one.name, one.top1) for one in found.worst] == [("class 1", 0.25), ("class 0", 0.5)]
    content = (later / "confusion.parquet").read_bytes()
    (later / "confusion.parquet").write_bytes(content[: len(content) // 2])
    assert latest_evaluation(copy).folder.name == "val-centre"
    (later / "confusion.parquet").write_bytes(content)
    (later / "result.json").unlink()  # as while it is written anew
    assert latest_evaluation(copy).folder.name == "val-centre"


def test_a_dataset_that_goes_out_of_reach_costs_only_its_sections(run, tmp_path, no_charts, monkeypatch):
    def is_gone(*arguments):
        raise OSError(errno.ESTALE, "Stale file handle", "/data/manifest")

    monkeypatch.setattr(run_view, "view_dataset", is_gone)
    assert report.main([str(run.path), "-o", str(tmp_path / "r.html")]) == 0
    section = text_of(section_of((tmp_path / "r.html").read_text(), "dataset"))
    assert "/data/manifest can't be read: Stale file handle" in section and "Component 1" in section
