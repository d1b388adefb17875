"""The stages' bench: what it measures is the loader's own work, and its table and document tell the same figures."""

import itertools
import json
import shutil

import numpy as np
import pytest

from pipeline import bench
from pipeline.bench_stages import CPU_DECODE, FULL, JPEG_LIBRARY, MEMORY_COPY, PCIE_COPY, STAGES
from pipeline.command import InputError
from pipeline.loader import LoaderConfig, TrainLoader
from pipeline.online.augmentation import AugmentationConfig, draw_parameters
from pipeline.online.shard_reader import ShardReader
from pipeline.online.stage_graphs import build_augment_graph, build_decode_graph
from pipeline.system.processor import this_processor

ALL = [*STAGES, FULL, JPEG_LIBRARY, MEMORY_COPY]
FIXTURES = ["raw_dataset", "jpeg_dataset", "original_dataset"]
QUICK = ["--batch-size", "8", "--threads", "1", "--seconds", "0.01"]


@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_stage_is_measured_and_the_document_has_the_tables_figures(fixture, request, tmp_path, capsys):
    dataset = request.getfixturevalue(fixture)
    capsys.readouterr()  # what making the dataset said
    assert bench.main([str(dataset.path), *QUICK, "--json", str(tmp_path / "out" / "figures.json")]) == 0
    shown = capsys.readouterr()
    document = json.loads((tmp_path / "out" / "figures.json").read_text())
    expected = [stage for stage in ALL if stage != JPEG_LIBRARY or dataset.member == "jpg"]
    assert list(document["stages"]) == expected
    assert all(measured["images_per_second"] > 0 for measured in document["stages"].values())
    assert shown.out == bench.table(document) and shown.out.startswith(f"{this_processor()}\n")
    assert [line.partition(":")[0] for line in shown.err.splitlines()] == expected
    assert (document["batch_size"], document["threads"], document["encoding"]) == (8, 1, dataset.encoding)
    rates = {stage: measured["images_per_second"] for stage, measured in document["stages"].items()}
    assert document["binding_stage"] == bench.binding_stage(rates)
    assert document["full_of_binding_stage"] == rates["full"] / rates[document["binding_stage"]]


@pytest.mark.parametrize("slowest", STAGES)
def test_the_slowest_stage_binds_whatever_the_whole_and_the_ceilings_reach(slowest):
    rates = dict.fromkeys(ALL, 5.0) | dict.fromkeys(STAGES, 20.0) | {slowest: 10.0}
    assert bench.binding_stage(rates) == slowest


def test_the_table_divides_by_cores_and_is_aligned():
    document = {
        "processor": "AMD EPYC (AVX2, no bfloat16)",
        "stages": {
            "read": {"images_per_second": 123456.0, "cores": 1},
            "decode": {"images_per_second": 3000.0, "cores": 4},
            "augment": {"images_per_second": 90000.0, "cores": 0},
        },
        "binding_stage": "decode",
        "full_of_binding_stage": 0.5,
    }
    assert bench.table(document).splitlines() == [
        "AMD EPYC (AVX2, no bfloat16)",
        "         images/s  cores  per core",
        "read      123,456      1   123,456",
        "decode      3,000      4       750",
        "augment    90,000      -         -",
        "decode binds: alone it reaches 3,000 images/s, the full loader 50% of that",
    ]


@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_stages_one_after_another_give_the_loaders_bits(fixture, request):
    dataset = request.getfixturevalue(fixture)
    config, size, num_images = AugmentationConfig(), dataset.stored_size, 12
    loader = TrainLoader(dataset, global_batch_size=num_images, seed=3, config=LoaderConfig(num_threads=1))
    batch = next(loader)
    loader.close()
    ids = batch.sample_ids.numpy()
    reader = ShardReader(dataset, "train")
    contents = [reader.read(sample_id) for sample_id in ids.tolist()]
    decode = build_decode_graph(itertools.repeat(contents), loader._graph_config)
    pixels_NHWC = np.array(decode.run()[0].as_array())
    assert pixels_NHWC.shape == (num_images, size, size, 3)
    parameters = draw_parameters(config, dataset.color_basis, size, 3, np.zeros_like(ids), ids)
    fed = (pixels_NHWC, *parameters.values())
    augment = build_augment_graph(itertools.repeat(fed), loader._graph_config)
    assert np.array_equal(augment.run()[0].as_array(), batch.images.numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["--threads", "0"], "--threads is 0; it must be at least 1"),
        (["--seconds", "0"], "--seconds is 0.0; it must be above 0"),
        (["--seconds", "nan"], "--seconds is nan; it must be above 0"),
    ],
)
def test_arguments_that_cannot_be_measured_with_are_refused(options, message, raw_dataset):
    with pytest.raises(InputError, match=message):
        bench.main([str(raw_dataset.path), *options])


def test_a_folder_is_no_file_for_the_figures(raw_dataset, tmp_path, capsys):
    with pytest.raises(InputError, match="is a folder; name a file to write"):
        bench.main([str(raw_dataset.path), *QUICK, "--json", str(tmp_path)])
    assert capsys.readouterr().err == ""  # before anything was measured


def test_a_changed_picture_ends_the_measurement(raw_dataset, tmp_path):
    copy = tmp_path / "dataset"
    shutil.copytree(raw_dataset.path, copy)
    for shard in copy.glob("train-*.tar"):
        content = bytearray(shard.read_bytes())
        content[1000] ^= 1  # in the pixels of its first picture
        shard.write_bytes(content)
    with pytest.raises(InputError, match="a picture has changed since it was written"):
        bench.main([str(copy), *QUICK])


def test_no_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a finished dataset"):
        bench.main([str(tmp_path), *QUICK])


def test_without_a_gpu_nothing_is_measured_for_one(raw_dataset, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=r"--device gpu: this machine has no GPU that can be used; leave it out"):
        bench.main([str(raw_dataset.path), *QUICK, "--device", "gpu"])
    assert capsys.readouterr().err == ""


def test_the_cores_of_a_gpus_stages_are_those_of_the_host(raw_dataset, monkeypatch):
    monkeypatch.setattr(bench, "_gpu_name", lambda: "NVIDIA H100")
    arguments = bench.Arguments(dataset=raw_dataset.path, device="gpu", threads=1)
    document = bench.figures(raw_dataset, arguments, dict.fromkeys([*STAGES, FULL, CPU_DECODE, PCIE_COPY], 2.0))
    cores = {stage: measured["cores"] for stage, measured in document["stages"].items()}
    assert cores == {"read": 1, "parameters": 1, "decode": 1, "augment": 0, FULL: 1, CPU_DECODE: 1, PCIE_COPY: 0}
    assert document["processor"] == f"NVIDIA H100, {this_processor()}"


def test_queued_work_is_waited_for_within_the_measurement(monkeypatch):
    now, queued = 0.0, 0

    def step():
        nonlocal now, queued
        now, queued = now + 1, queued + 1

    def wait():
        nonlocal now, queued
        now, queued = now + 9 * queued, 0  # the GPU takes nine seconds for each

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    assert bench._images_per_second(step, batch_size=20, seconds=5, wait=wait) == 20 / 10
    assert bench._images_per_second(step, batch_size=20, seconds=5) == 20 / 1


@pytest.mark.gpu
@pytest.mark.parametrize("fixture", FIXTURES)
def test_a_gpu_is_measured(fixture, request, tmp_path):
    dataset = request.getfixturevalue(fixture)
    figures = tmp_path / "figures.json"
    assert bench.main([str(dataset.path), *QUICK, "--device", "gpu", "--json", str(figures)]) == 0
    stages = json.loads(figures.read_text())["stages"]
    expected = [*STAGES, FULL, *([CPU_DECODE] if dataset.member == "jpg" else []), PCIE_COPY]
    assert list(stages) == expected and all(measured["images_per_second"] > 0 for measured in stages.values())
