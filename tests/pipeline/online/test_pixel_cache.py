"""Images by a kernel, from decoded or cached pixels, are those of the graph, and each picture is decoded once."""

import dataclasses
import shutil
import sys

import numpy as np
import pytest
import torch

from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.loader import EvalLoader, LoaderConfig, TrainLoader
from pipeline.online import image_makers, pixel_cache
from pipeline.online.augmentation import AugmentationConfig, AugmentationParameters
from pipeline.online.feed import Feed
from pipeline.online.image_makers import CachedImages, FinishedBatches, KernelImages
from pipeline.online.pixel_cache import PixelCache, cache_device
from pipeline.online.reference import augment
from pipeline.online.shard_reader import ShardReader

CONFIG = AugmentationConfig(crop_size=28)
ENCODINGS = ["raw", "jpeg", "original"]
GPU = torch.device("cuda")


@pytest.fixture
def dataset(request) -> Dataset:
    return request.getfixturevalue(f"{request.param}_dataset")


def _loader(dataset, **options) -> TrainLoader:
    share = {name: options.pop(name) for name in ("rank", "world_size", "samples_seen") if name in options}
    config = LoaderConfig(num_threads=1, **options)
    return TrainLoader(dataset, global_batch_size=12, seed=5, augmentation=CONFIG, config=config, **share)


def _reference_kernel(config):
    """Return a stand-in for the kernel of a GPU."""

    def crop(pixels, rows, placement_NK3, mean_N3):
        taken = pixels[: len(mean_N3)] if rows is None else pixels[rows]
        images = [
            augment(
                taken.numpy(),
                AugmentationParameters(placement_NK3[:, place].numpy(), mean_N3.numpy()),
                config.crop_size,
                config.divisor_3,
                config.mean_image_HWC,
            )
            for place in range(placement_NK3.shape[1])
        ]
        return torch.from_numpy(np.stack(images, axis=1))

    return crop


def _makers(loader, kind):
    """Return the batches that a loader would make on a GPU, with the reference in place of the kernel."""
    feed, config = Feed(loader._reader, *loader._plan()), loader._graph_config
    if kind == "kernel":
        images = KernelImages(feed, dataclasses.replace(config, normalizer="none"), _reference_kernel(config))
    else:
        feed.source = cache = PixelCache(loader._reader, config, torch.device("cpu"))
        if kind == "cache on the GPU":
            cache.device = GPU  # it is asked for row numbers
        images = CachedImages(feed, cache, config, _reference_kernel(config))
    batches = FinishedBatches(images, loader._reader.class_indices, torch.device("cpu"))
    return (batch.take("NCHW") for batch in iter(lambda: next(batches, None), None))


def _assert_equal(batch, expected):
    assert all(torch.equal(a, b) for a, b in zip(vars(batch).values(), vars(expected).values(), strict=True))


@pytest.mark.parametrize("dataset", ENCODINGS, indirect=True)
@pytest.mark.parametrize("kind", ["kernel", "cache on the GPU", "cache on the host"])
def test_the_ways_of_a_gpu_make_the_graphs_bits_in_its_order(dataset, kind):
    loader = _loader(dataset, rank=1, world_size=2, samples_seen=30)
    others = _makers(loader, kind)
    for _ in range(12):  # over several epochs of 41 samples
        _assert_equal(next(others), next(loader))
    loader.close()


@pytest.mark.parametrize("kind", ["kernel", "cache on the GPU", "cache on the host"])
def test_ten_crops_too(jpeg_dataset, kind):
    loader = EvalLoader(jpeg_dataset, "val", batch_size=4, augmentation=CONFIG, ten_crops=True)
    others = list(_makers(loader, kind))
    expected = list(loader)
    assert [len(batch.labels) for batch in others] == [4, 4, 2]
    for batch, other in zip(expected, others, strict=True):
        _assert_equal(other, batch)
    loader.close()


@pytest.mark.parametrize("dataset", ENCODINGS, indirect=True)
@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_the_cache_of_a_cpu_changes_no_bit_and_decodes_each_picture_once(dataset, micro_batch_size, monkeypatch):
    decoded, decode = [], pixel_cache.Decoder.decode

    def recorded(self, sample_ids, pictures):
        decoded.extend(sample_ids.tolist())
        return decode(self, sample_ids, pictures)

    monkeypatch.setattr(pixel_cache.Decoder, "decode", recorded)
    plain, cached = _loader(dataset), _loader(dataset, cache="host", micro_batch_size=micro_batch_size)
    for _ in range(15):
        _assert_equal(next(cached), next(plain))
    cached.load_state_dict({"samples_seen": 7})
    plain.load_state_dict({"samples_seen": 7})
    _assert_equal(next(cached), next(plain))
    cached.close()
    plain.close()
    assert sorted(decoded[:41]) == list(range(41)) and max(map(decoded.count, range(41))) == 2  # once for each start


def test_a_changed_sample_is_replaced_and_the_others_are_cached(raw_dataset, tmp_path):
    shutil.copytree(raw_dataset.path, tmp_path / "copy")
    (row,) = [row for row in raw_dataset.manifest("train").to_pylist() if row["key"].endswith("7")][:1]
    with open(tmp_path / "copy" / row["shard"], "r+b") as file:
        file.seek(row["offset"] + 200)
        file.write(b"changed")
    damaged = Dataset.open(tmp_path / "copy")
    options = {"on_bad_sample": "skip-and-count"}
    plain, cached = _loader(damaged, **options), _loader(damaged, cache="host", **options)
    for _ in range(8):
        _assert_equal(next(cached), next(plain))
    assert cached.num_replaced_samples > 0
    cached.close()
    plain.close()


def test_nothing_is_read_once_all_is_there(jpeg_dataset, monkeypatch):
    asked, prefetch = [], ShardReader.prefetch

    def recorded(self, sample_ids):
        asked.extend(sample_ids.tolist())
        return prefetch(self, sample_ids)

    monkeypatch.setattr(ShardReader, "prefetch", recorded)
    cached = _loader(jpeg_dataset, cache="host")
    for _ in range(8):
        next(cached)
    num_asked = len(asked)
    assert set(asked) == set(range(41))
    monkeypatch.setattr(ShardReader, "read_batch", None)
    for _ in range(8):
        next(cached)
    assert len(asked) == num_asked
    cached.close()


@pytest.mark.parametrize(("cache", "is_refused"), [("auto", False), ("gpu", True), ("none", False)])
def test_a_gpu_without_triton_has_no_cache(raw_dataset, monkeypatch, cache, is_refused):
    """The graph is not built here: without a GPU, what would be built is looked at."""
    built = []
    monkeypatch.setattr(image_makers, "_crop_kernel", lambda config, device: None)
    monkeypatch.setattr(image_makers, "GraphImages", lambda feed, config: built.append(config))
    loader = _loader(raw_dataset)
    arguments = Feed(loader._reader, *loader._plan()), loader._reader, loader._graph_config, GPU, cache
    if is_refused:
        with pytest.raises(InputError, match="--cache gpu needs Triton"):
            image_makers._image_maker(*arguments)
    else:
        image_makers._image_maker(*arguments)
        assert [config.normalizer for config in built] == ["operator"]


def test_without_the_package_triton_a_warning_says_so(raw_dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "pipeline.online.crop_triton", raising=False)
    monkeypatch.delattr("pipeline.online.crop_triton", raising=False)
    with pytest.warns(UserWarning, match="Triton is not installed, so DALI normalises"):
        assert image_makers._crop_kernel(_loader(raw_dataset)._graph_config, GPU) is None


def test_where_pixels_are_kept(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    cpu = torch.device("cpu")
    assert cache_device("auto", 500, GPU) == cache_device("gpu", 900, GPU) == GPU
    assert cache_device("auto", 501, GPU) is cache_device("auto", 1, cpu) is cache_device("none", 1, GPU) is None
    assert cache_device("host", 1, GPU) == cache_device("host", 1, cpu) == cpu
    with pytest.raises(InputError, match=r"--cache gpu keeps 0\.0 GB of pixels per worker, and the GPU has"):
        cache_device("gpu", 901, GPU)
    with pytest.raises(
        InputError, match=r"--cache host keeps 1000000\.0 GB of pixels per worker, and this machine has"
    ):
        cache_device("host", 10**15, cpu)
