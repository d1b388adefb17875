"""`jobs/plan.py`: from a table, from stated inputs, and from both; each figure against one worked out by hand."""

import dataclasses
import json
import math

import pytest
from scaling_rows import LAW, cells_of, make_rows

from benchmarks import cost_model
from benchmarks.record import publish
from cluster.lab.cost_model.kind import Kind
from cluster.lab.cost_model.model import CostModel, Network, Overlap, Pace
from cluster.lab.cost_model.planning import Job, find_bottleneck, predict_point, scan
from cluster.lab.scaling_table import Cell, read_rows, write_rows
from jobs import plan, scaling_figures
from jobs.scaling.plan_inputs import read_recovery
from pipeline.command import InputError

STATED = [
    "--workers", "16", "--images-per-second-per-worker", "2000", "--bandwidth", "10gbit",
    "--latency-microseconds", "20", "--batch-size-per-worker", "128",
]  # fmt: skip
MODEL = CostModel(
    kind=Kind(model="alexnet_2012", image_size=224, num_classes=1000, precision="float32"),
    pace=Pace(seconds_per_sample=1 / 2000),
    network=Network(message_seconds=20e-6),
)
JOB = Job(num_images=1_281_167, num_epochs=90, batch_size_per_worker=128, gigabits_per_second=10)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "scaling.parquet"
    write_rows(path, make_rows(cells_of(batches=(32, 64)), noise=0.02))
    return path


def _planned(arguments, tmp_path):
    assert plan.main([*arguments, "--json", str(tmp_path / "plan.json")]) == 0
    return json.loads((tmp_path / "plan.json").read_text())


def test_a_table_of_a_cluster_whose_links_were_not_shaped_has_what_a_plan_needs(tmp_path):
    rows = [dataclasses.replace(row, gigabits_per_second=0.0) for row in make_rows(cells_of(links=(1.0,)), noise=0.02)]
    write_rows(tmp_path / "scaling.parquet", rows)
    (measured,) = {row.gigabits_per_second for row in read_rows(tmp_path / "scaling.parquet")} - {0.0}
    assert measured == pytest.approx(0.9, abs=0.005)  # what the sweeps got
    arguments = ["--table", str(tmp_path / "scaling.parquet"), "--workers", "8", "--batch-size-per-worker", "16"]
    planned = _planned(arguments, tmp_path)["plan"]
    asked = Cell(
        **dataclasses.asdict(LAW.kind),
        num_workers=8,
        global_batch_size=128,
        exchange=planned["exchange"],
        gigabits_per_second=1.0,
    )
    assert planned["images_per_second"] == pytest.approx(LAW.images_per_second(asked), rel=0.05)


def test_numbers_of_workers_that_cannot_use_the_exchange_are_left_out_or_refused(tmp_path):
    arguments = [
        "--model", "alexnet_small", "--image-size", "28", "--num-classes", "10", "--exchanges", "hybrid",
        "--images-per-second-per-worker", "2000", "--bandwidth", "10gbit", "--latency-microseconds", "20",
        "--batch-size-per-worker", "128",
    ]  # fmt: skip
    with pytest.raises(InputError, match="hybrid can't be used by 600 workers with alexnet_small"):
        plan.main([*arguments, "--workers", "600"])
    found = _planned([*arguments, "--workers", "16"], tmp_path)
    assert {point["exchange"] for point in found["scan"]} == {"none", "hybrid"}


def test_the_document_of_a_single_worker_is_json(tmp_path):
    assert _planned([*STATED, "--workers", "1"], tmp_path)["binds"]["next_images_per_second"] is None
    assert "Infinity" not in (tmp_path / "plan.json").read_text()


def test_from_stated_inputs_alone(tmp_path, capsys):
    found = _planned([*STATED, "--price-per-hour", "2", "--bytes-per-image", "30000"], tmp_path)
    asked = found["plan"]
    assert asked["images_per_second"] == pytest.approx(predict_point(MODEL, JOB, 16).images_per_second)
    hours = 1_281_167 * 90 / asked["images_per_second"] / 3600
    assert (asked["hours"], asked["price"]) == (pytest.approx(hours), pytest.approx(hours * 16 * 2))
    low, high = asked["images_per_second_interval"]
    assert low < asked["images_per_second"] == high
    assert found["disk_bytes"] == 1_281_167 * 30_000
    assert found["loader_images_per_second_per_worker"] == pytest.approx(asked["images_per_second"] / 16)
    assert {each["source"] for each in found["inputs"]} == {"stated", "assumed"}
    assert [point["num_workers"] for point in found["scan"]] == list(range(1, 17))
    assert found["fastest"]["hours"] == min(point["hours"] for point in found["scan"])
    assert found["cheapest"]["price"] == min(point["price"] for point in found["scan"])
    assert min(found["exchanges"], key=found["exchanges"].get) == asked["exchange"]
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("16 workers, global batch 2,048") for line in lines)
    assert sum(line.split()[:1] in ([str(2**power)] for power in range(5)) for line in lines[-6:]) == 5


def test_from_a_table(table, tmp_path, capsys):
    found = _planned(
        ["--table", str(table), "--workers", "8", "--bandwidth", "1gbit", "--global-batch-size", "64"], tmp_path
    )
    cell = dataclasses.replace(
        cells_of(workers=(8,), links=(1.0,))[1], exchange=found["plan"]["exchange"]
    )  # fmt: skip
    assert found["plan"]["images_per_second"] == pytest.approx(LAW.images_per_second(cell), rel=0.06)
    low, high = found["plan"]["images_per_second_interval"]
    assert low < found["plan"]["images_per_second"] < high
    assert "4 workers, kept out of a fit" in found["interval"]
    sources = {each["name"]: each["source"] for each in found["inputs"]}
    assert (sources["computation"], sources["overlap"], sources["bandwidth"]) == ("measured", "measured", "stated")
    assert "1 to 4 workers, 8 to 64 samples per worker, 0.1 to 1 Gbit/s" in capsys.readouterr().out


def test_what_is_stated_replaces_what_was_measured(table, tmp_path):
    arguments = ["--table", str(table), "--workers", "8", "--bandwidth", "1gbit", "--global-batch-size", "64"]
    found = _planned([*arguments, "--images-per-second-per-worker", "5", "--latency-microseconds", "1"], tmp_path)
    sources = {each["name"]: each["source"] for each in found["inputs"]}
    assert (sources["computation"], sources["message"], sources["overlap"]) == ("stated", "stated", "measured")
    waiting = 1 + LAW.overlap.tail * math.sqrt(2 * math.log(8))  # for the slowest; the link is fast enough
    assert found["plan"]["images_per_second"] == pytest.approx(5 * 8 / waiting, rel=0.02)


def test_what_is_neither_measured_nor_stated_is_assumed(tmp_path):
    def sources(*arguments):
        return {each["name"]: each["source"] for each in _planned([*STATED, *arguments], tmp_path)["inputs"]}

    names = ("model", "image size", "classes", "precision", "epochs", "training images")
    found = sources()
    assert [found[name] for name in names] == ["assumed"] * 6 and found["batch"] == "stated"
    stated = ["--model", "caffenet", "--image-size", "227", "--num-classes", "10", "--precision", "float32"]
    found = sources(*stated, "--epochs", "90", "--num-images", "1000")
    assert [found[name] for name in names] == ["stated"] * 6


def test_a_fixed_time_that_one_batch_per_worker_cannot_show_is_assumed(table, tmp_path):
    def fixed_times(path):
        arguments = ["--table", str(path), "--workers", "8", "--bandwidth", "1gbit", "--batch-size-per-worker", "16"]
        inputs = _planned(arguments, tmp_path)["inputs"]
        return [(each["value"], each["source"]) for each in inputs if each["name"] == "fixed time of a step"]

    cells = [cell for number in (1, 2, 4) for cell in cells_of((number,), (16 * number,), (1.0,))]
    write_rows(tmp_path / "weak.parquet", make_rows(cells))
    assert (fixed_times(tmp_path / "weak.parquet"), fixed_times(table)) == ([("0 s", "assumed")], [])


@pytest.fixture
def two_machines(tmp_path):
    """A table whose second kind of machine is twice as slow."""
    slow = dataclasses.replace(LAW, pace=dataclasses.replace(LAW.pace, fixed_seconds=0.02, seconds_per_sample=0.004))
    rows = make_rows(cells_of(links=(0.3, 1.0)))
    rows += [dataclasses.replace(row, machine="a laptop") for row in make_rows(cells_of(links=(0.3, 1.0)), slow)]
    write_rows(tmp_path / "scaling.parquet", rows)
    return tmp_path / "scaling.parquet"


@pytest.mark.parametrize(
    "command",
    [
        lambda path, *more: plan.main(
            ["--table", str(path), "--workers", "4", "--bandwidth", "1gbit", "--global-batch-size", "64", *more]
        ),
        lambda path, *more: scaling_figures.main([str(path), "--out", str(path.parent / "figures"), *more]),
        lambda path, *more: cost_model.main([str(path), *more]),
    ],
    ids=["plan", "figures", "benchmark"],
)
def test_machines_are_not_mixed(command, two_machines, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost_model, "publish", lambda document: publish(document, tmp_path / "records"))
    with pytest.raises(InputError, match="several kinds of machines: a laptop; two cores; choose by --machine"):
        command(two_machines)
    with pytest.raises(InputError, match="--machine H100 matches no machine"):
        command(two_machines, "--machine", "H100")
    assert command(two_machines, "--machine", "laptop") == 0
    assert "warning" not in capsys.readouterr().err


def test_a_plan_is_that_of_the_named_machine(two_machines, tmp_path):
    arguments = ["--table", str(two_machines), "--workers", "1", "--bandwidth", "1gbit", "--global-batch-size", "64"]
    fast, slow = (_planned([*arguments, "--machine", name], tmp_path)["plan"] for name in ("cores", "laptop"))
    seconds = [one["step"]["compute_seconds"] for one in (fast, slow)]
    assert seconds == pytest.approx([0.01 + 64 * 0.002, 0.02 + 64 * 0.004])


def test_the_dataset_says_what_a_picture_takes(jpeg_dataset, tmp_path):
    found = _planned([*STATED, "--data", str(jpeg_dataset.path), "--num-images", "1000"], tmp_path)
    shards = list(jpeg_dataset.path.glob("train-*.tar"))
    size = sum(shard.stat().st_size for shard in shards) / jpeg_dataset.num_samples("train")
    assert found["disk_bytes"] == pytest.approx(1000 * size)


def test_what_binds_and_what_would_bind_next():
    cell = predict_point(MODEL, JOB, 16).cell
    slow = dataclasses.replace(cell, exchange="allreduce", gigabits_per_second=0.1)
    found = find_bottleneck(MODEL, slow)
    assert (found.resource, found.next_resource) == ("exchange", "computation")
    assert found.next_images_per_second == pytest.approx(16 * 2000)
    starved = dataclasses.replace(MODEL, pace=dataclasses.replace(MODEL.pace, loader_images_per_second=500.0))
    found = find_bottleneck(starved, dataclasses.replace(cell, gigabits_per_second=100))
    assert (found.resource, found.next_resource) == ("loader", "computation")
    fast = dataclasses.replace(slow, gigabits_per_second=100)
    uneven = {tail: dataclasses.replace(MODEL, overlap=Overlap(tail=tail)) for tail in (0.3, 0.5)}
    found = find_bottleneck(uneven[0.3], fast)
    assert (found.resource, found.next_resource) == ("computation", "exchange")
    found = find_bottleneck(uneven[0.5], fast)
    assert (found.resource, found.next_resource) == ("slowest worker", "computation")
    tail = dataclasses.replace(MODEL, pace=dataclasses.replace(MODEL.pace, update_seconds=1.0))
    assert find_bottleneck(tail, cell.without_exchange).resource == "update"


def test_interruptions_cost_what_a_drill_measured(tmp_path, capsys):
    drill = tmp_path / "drill.json"
    events = [
        {"event": name, "first_step_seconds": took} for name, took in (("worker", 10), ("node", 18), ("join", 99))
    ]
    drill.write_text(json.dumps({"events": events}))
    assert read_recovery(drill) == 14
    calm = _planned(STATED, tmp_path)["plan"]["hours"]
    spot = ["--interruptions-per-hour", "0.5", "--drill", str(drill), "--checkpoint-seconds", "60"]
    found = _planned([*STATED, *spot], tmp_path)
    assert found["plan"]["hours"] == pytest.approx(calm / (1 - 16 * 0.5 * (14 + 30) / 3600))
    assert ("restart", "measured") in {(each["name"], each["source"]) for each in found["inputs"]}
    assert "8 interruptions per hour of 44 s each take 9.8% of it" in capsys.readouterr().out


def test_where_interruptions_leave_nothing_it_is_said(tmp_path, capsys):
    spot = ["--interruptions-per-hour", "10", "--restart-seconds", "100", "--checkpoint-seconds", "0"]
    found = _planned([*STATED, *spot], tmp_path)
    assert found["plan"]["hours"] is None and found["fastest"]["num_workers"] < 4
    assert "it never ends" in capsys.readouterr().out
    with pytest.raises(InputError, match="never ends on any number of workers"):
        plan.main([*STATED, "--interruptions-per-hour", "100", "--restart-seconds", "100"])


def test_the_cheapest_in_time(tmp_path, capsys):
    found = _planned([*STATED, "--within-hours", "4"], tmp_path)
    slower = [point for point in found["scan"] if point["num_workers"] < found["cheapest"]["num_workers"]]
    assert found["cheapest"]["hours"] <= 4 and all(point["hours"] > 4 for point in slower)
    assert _planned([*STATED, "--within-hours", "0.01"], tmp_path)["cheapest"] is None
    assert "none ends within 0.01 h" in capsys.readouterr().out


def test_many_workers_are_scanned_in_equal_ratios():
    points = scan(MODEL, JOB, 5000)
    numbers = [point.cell.num_workers for point in points]
    assert numbers[:5] == [1, 2, 3, 4, 5] and numbers[-1] == 5000 and len(numbers) < 256
    strong = dataclasses.replace(JOB, global_batch_size=100, batch_size_per_worker=None)
    assert scan(MODEL, strong, 5000)[-1].cell.num_workers <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0", "--epochs", "0"], r"--workers is 0; it must be at least 1\n--epochs is 0"),
        (["--workers", "4"], "give either --global-batch-size or --batch-size-per-worker"),
        (["--workers", "4", "--global-batch-size", "2"], "leaves some of 4 workers without a sample"),
        (["--workers", "4", "--global-batch-size", "64"], "speed of a worker is unknown; give --table"),
        ([*STATED[:4], "--global-batch-size", "64"], "bandwidth of a worker's link is unknown"),
        ([*STATED[:6], "--global-batch-size", "64"], "latency of a worker's link is unknown"),
        ([*STATED, "--bandwidth", "fast"], "fast is not a bandwidth"),
        ([*STATED, "--bandwidth", "0gbit"], "must be more than 0"),
        ([*STATED, "--image-size", "20"], "--model alexnet_2012, --image-size 20"),
        ([*STATED, "--model", "resnet"], "--model resnet"),
        ([*STATED, "--interruptions-per-hour", "1"], "what an interruption costs is unknown"),
        (
            [*STATED, "--interruptions-per-hour", "1", "--drill", "none.json"],
            "none.json can't be read as the drill.json",
        ),
        ([*STATED, "--drill", "a", "--restart-seconds", "1"], "say the same twice"),
        ([*STATED, "--table", "none.parquet"], "none.parquet is not there"),
    ],
)
def test_bad_input_is_one_line_per_cause(arguments, message):
    with pytest.raises(InputError, match=message):
        plan.main(arguments)


def test_a_table_that_leaves_a_choice_names_it(table, tmp_path):
    both = tmp_path / "both.parquet"
    other = dataclasses.replace(LAW.kind, precision="bfloat16")
    rows = make_rows(cells_of(links=(0.1, 1.0))) + make_rows(cells_of(links=(1.0,), kind=other))
    write_rows(both, rows)
    arguments = ["--workers", "4", "--global-batch-size", "64", "--table"]
    with pytest.raises(InputError, match=r"fits several: .*bfloat16.*; choose by --model, --precision"):
        plan.main([*arguments, str(both)])
    assert plan.main([*arguments, str(both), "--precision", "bfloat16"]) == 0
    with pytest.raises(InputError, match=r"unknown; give --bandwidth, such as 10gbit; the table has 0.1gbit, 1gbit"):
        plan.main([*arguments, str(both), "--precision", "float32"])
    with pytest.raises(InputError, match="has no rows of this model and precision; it holds alexnet_small"):
        plan.main([*arguments, str(table), "--model", "caffenet"])
