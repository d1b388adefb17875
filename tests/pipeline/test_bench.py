"""The stages' bench: what it measures is the loader's own work, and its table and document tell the same figures."""

import itertools
import json

import numpy as np
import pytest

from pipeline import bench
from pipeline.command import InputError
from pipeline.loader import LoaderConfig, TrainLoader
from pipeline.online.augmentation import AugmentationConfig, draw_parameters
from pipeline.online.shard_reader import ShardReader
from pipeline.online.stage_graphs import build_augment_graph, build_decode_graph
from pipeline.system.processor import this_processor

ALL = [*bench.STAGES, bench.FULL, bench.JPEG_LIBRARY, bench.MEMORY_COPY]
FIXTURES = ["raw_dataset", "jpeg_dataset", "original_dataset"]
QUICK = ["--batch-size", "8", "--threads", "1", "--seconds", "0.01"]


@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_stage_is_measured_and_the_document_has_the_tables_figures(fixture, request, tmp_path, capsys):
    dataset = request.getfixturevalue(fixture)
    capsys.readouterr()  # what making the dataset said
    assert bench.main([str(dataset.path), *QUICK, "--json", str(tmp_path / "out" / "figures.json")]) == 0
    shown = capsys.readouterr()
    document = json.loads((tmp_path / "out" / "figures.json").read_text())
    expected = [stage for stage in ALL if stage != bench.JPEG_LIBRARY or dataset.member == "jpg"]
    assert list(document["stages"]) == expected
    assert all(measured["images_per_second"] > 0 for measured in document["stages"].values())
    assert shown.out == bench.table(document) and shown.out.startswith(f"{this_processor()}\n")
    assert [line.partition(":")[0] for line in shown.err.splitlines()] == expected
    assert (document["batch_size"], document["threads"], document["encoding"]) == (8, 1, dataset.encoding)
    rates = {stage: measured["images_per_second"] for stage, measured in document["stages"].items()}
    assert document["binding_stage"] == bench.binding_stage(rates)
    assert document["full_of_binding_stage"] == rates["full"] / rates[document["binding_stage"]]


@pytest.mark.parametrize("slowest", bench.STAGES)
def test_the_slowest_stage_binds_whatever_the_whole_and_the_ceilings_reach(slowest):
    rates = dict.fromkeys(ALL, 5.0) | dict.fromkeys(bench.STAGES, 20.0) | {slowest: 10.0}
    assert bench.binding_stage(rates) == slowest


def test_the_table_divides_by_cores_and_is_aligned():
    document = {
        "processor": "AMD EPYC (AVX2, no bfloat16)",
        "stages": {
            "read": {"images_per_second": 123456.0, "cores": 1},
            "decode": {"images_per_second": 3000.0, "cores": 4},
        },
        "binding_stage": "decode",
        "full_of_binding_stage": 0.5,
    }
    assert bench.table(document).splitlines() == [
        "AMD EPYC (AVX2, no bfloat16)",
        "        images/s  cores  per core",
        "read     123,456      1   123,456",
        "decode     3,000      4       750",
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


def test_no_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a finished dataset"):
        bench.main([str(tmp_path), *QUICK])
