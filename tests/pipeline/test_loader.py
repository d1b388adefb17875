"""The loader: the graph equals the reference, and no world, thread count or restart changes a bit."""

import io

import numpy as np
import pytest
import torch
from coded_source import CodedSource, coded_pixels
from PIL import Image

from cluster.worker.world import World
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.loader import Batch, EvalLoader, LoaderConfig, TrainLoader
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.online.augmentation import AugmentationConfig, center_parameters, divisor, draw_parameters
from pipeline.online.reference import augment, ten_crops
from pipeline.online.shard_reader import ShardReader
from pipeline.online.stream_order import StreamConfig
from pipeline.pictures.encode import EncodingConfig, store_picture
from pipeline.sources.detect import open_source

CONFIG = AugmentationConfig(crop_size=28)
SEED = 11


def _loader(
    dataset, batch=10, rank=0, world=1, samples_seen=0, threads=1, augmentation=CONFIG, streams=None, **options
) -> TrainLoader:
    return TrainLoader(
        dataset,
        global_batch_size=batch,
        rank=rank,
        world_size=world,
        seed=SEED,
        samples_seen=samples_seen,
        augmentation=augmentation,
        streams=streams,
        config=LoaderConfig(num_threads=threads, **options),
    )


def _take(loader, count) -> list[Batch]:
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return batches


def _join(batches: list[Batch]) -> Batch:
    columns = zip(*[(b.images, b.labels, b.sample_ids, b.positions, b.device_positions) for b in batches], strict=True)
    return Batch(*[torch.cat(column) for column in columns])


def _slice(batch: Batch, first: int, end: int) -> Batch:
    return Batch(*[getattr(batch, name)[first:end] for name in vars(batch)])


def _equal(left: Batch, right: Batch) -> bool:
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in vars(left))


def _decoded(dataset: Dataset, split: str, ids: np.ndarray) -> np.ndarray:
    reader = ShardReader(dataset, split)
    if dataset.member == "npy":
        return np.stack([reader.read(i) for i in ids])
    return np.stack([np.asarray(Image.open(io.BytesIO(reader.read(i).tobytes())).convert("RGB")) for i in ids])


def _expected(dataset: Dataset, batch: Batch) -> np.ndarray:
    positions, ids = batch.positions.numpy(), batch.sample_ids.numpy()
    epochs = positions // dataset.num_samples("train")
    parameters = draw_parameters(CONFIG, dataset.color_basis, 32, SEED, epochs, ids)
    return augment(_decoded(dataset, "train", ids), parameters, 28, divisor(CONFIG, dataset.color_basis))


def test_the_graph_equals_the_reference_on_pixels_to_the_bit(raw_dataset):
    batch = _join(_take(_loader(raw_dataset), 9))  # 90 positions: three epochs of 41 samples
    assert np.array_equal(batch.images.numpy(), _expected(raw_dataset, batch))
    assert torch.equal(
        batch.labels, torch.from_numpy(ShardReader(raw_dataset, "train").class_indices)[batch.sample_ids]
    )


@pytest.mark.parametrize("encoding", ["jpeg", "original"])
def test_the_graph_equals_pillows_decode_within_two_grey_levels(encoding, request):
    dataset = request.getfixturevalue(f"{encoding}_dataset")
    batch = _join(_take(_loader(dataset), 5))
    scale = divisor(CONFIG, dataset.color_basis)[:, None, None]
    difference = np.abs(batch.images.numpy() - _expected(dataset, batch)) * scale
    assert difference.max() <= 2.01, "both decode by libjpeg-turbo; chroma upsampling rounds differently at edges"


class OblongSource(CodedSource):
    """Smooth pictures of 60x44 and 44x60 pixels."""

    def read(self, file, offset, num_bytes):
        size = (60, 44) if offset % 2 else (44, 60)
        image = Image.fromarray(coded_pixels(offset, 8)).resize(size, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        return buffer.getvalue()


@pytest.mark.parametrize(("encoding", "crop"), [("original", "centre"), ("jpeg", "none")])
def test_whole_pictures_of_any_shape_are_brought_to_the_centred_square(tmp_path, encoding, crop):
    stored = EncodingConfig(encoding=encoding, size=32, crop=crop)
    shard_dataset(OblongSource(tmp_path, 40, 10, 32, False), tmp_path / "d", ShardingConfig(encoding=stored), 1)
    dataset = Dataset.open(tmp_path / "d")
    assert len(dataset.manifest("train")["width"].unique()) == 2
    batch = _join(_take(_loader(dataset), 4))
    reader, basis = ShardReader(dataset, "train"), dataset.color_basis
    ids = batch.sample_ids.numpy()
    square = EncodingConfig(encoding="raw", size=32)
    squares = np.stack([store_picture(reader.read(i).tobytes(), square).pixels_HWC for i in ids])
    parameters = draw_parameters(CONFIG, basis, 32, SEED, batch.positions.numpy() // 40, ids)
    expected = augment(squares, parameters, 28, divisor(CONFIG, basis))
    difference = np.abs(batch.images.numpy() - expected) * divisor(CONFIG, basis)[:, None, None]
    # A resize at most: DALI's and torch's antialiased cubic round differently. Stored at their size: the decoders' two.
    assert difference.max() <= (4 if encoding == "original" else 2.01) and difference.mean() < 0.5


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_mean_image_is_cut_like_the_crop_and_subtracted_to_the_bit(raw_dataset, layout):
    augmentation = AugmentationConfig(crop_size=28, subtract="mean_image")
    batch = _join(_take(_loader(raw_dataset, augmentation=augmentation, layout=layout), 5))
    basis, ids = raw_dataset.color_basis, batch.sample_ids.numpy()
    parameters = draw_parameters(augmentation, basis, 32, SEED, batch.positions.numpy() // 41, ids)
    pixels, scale = _decoded(raw_dataset, "train", ids), divisor(augmentation, basis)
    expected = augment(pixels, parameters, 28, scale, raw_dataset.mean_image_HWC)
    assert np.array_equal(batch.images.numpy(), expected)
    assert abs(float(batch.images.mean())) < 0.1, "the mean picture is not subtracted"


def test_pictures_of_different_sizes_have_no_mean_image_to_subtract(tmp_path):
    for number, size in enumerate([8, 9] * 10):
        path = tmp_path / "in" / "class" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((size, size), 50).convert("RGB").save(path)
    source = open_source(tmp_path / "in")
    config = ShardingConfig(encoding=EncodingConfig(encoding="raw", size=None))
    shard_dataset(source, tmp_path / "out", config, 1)
    with pytest.raises(InputError, match="has no mean image: its pictures differ in size"):
        _ = Dataset.open(tmp_path / "out").mean_image_HWC


def test_channels_last_holds_the_same_numbers(raw_dataset):
    plain, last = (_take(_loader(raw_dataset, layout=layout), 1)[0] for layout in ("NCHW", "NHWC"))
    assert torch.equal(plain.images, last.images) and plain.images.shape == last.images.shape
    assert plain.images.is_contiguous() and last.images.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_is_the_single_one_rounded(raw_dataset):
    single, half = (_take(_loader(raw_dataset, output_type=kind), 1)[0] for kind in ("float32", "float16"))
    assert half.images.dtype == torch.float16
    assert torch.equal(single.images.half(), half.images)


@pytest.mark.parametrize("subtract", ["mean", "mean_image"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("crop_size", [28, 27])
def test_ten_crops_are_corners_and_centre_and_their_mirrors(raw_dataset, subtract, layout, crop_size):
    augmentation = AugmentationConfig(crop_size=crop_size, subtract=subtract)
    loader = EvalLoader(
        raw_dataset,
        "val",
        batch_size=4,
        augmentation=augmentation,
        ten_crops=True,
        config=LoaderConfig(layout=layout),
    )
    batch = _join(list(loader))
    assert batch.images.shape == (10, 10, 3, crop_size, crop_size)
    center = center_parameters(augmentation, raw_dataset.color_basis, 32, 10)
    pixels, scale = _decoded(raw_dataset, "val", np.arange(10)), divisor(augmentation, raw_dataset.color_basis)
    mean_image = raw_dataset.mean_image_HWC if subtract == "mean_image" else None
    assert np.array_equal(batch.images.numpy(), ten_crops(pixels, center, crop_size, scale, mean_image))
    corner = pixels[0, :crop_size, 32 - crop_size :].astype(np.float32)
    corner -= mean_image[:crop_size, 32 - crop_size :] if mean_image is not None else center.mean_N3[0]
    expected = (corner * (np.float32(1) / scale)).transpose(2, 0, 1)
    np.testing.assert_allclose(batch.images[0, 1].numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(batch.images[0, 6].numpy(), expected[..., ::-1], rtol=1e-6)


def test_evaluation_reads_each_sample_once_by_any_world(raw_dataset):
    for world in (1, 2, 3, 12):
        loaders = [
            EvalLoader(raw_dataset, "val", batch_size=3, rank=r, world_size=world, augmentation=CONFIG)
            for r in range(world)
        ]
        batch = _join([batch for loader in loaders for batch in loader])
        assert batch.sample_ids.tolist() == list(range(10))
        center = center_parameters(CONFIG, raw_dataset.color_basis, 32, 10)
        pixels = _decoded(raw_dataset, "val", np.arange(10))
        assert np.array_equal(
            batch.images.numpy(), augment(pixels, center, 28, divisor(CONFIG, raw_dataset.color_basis))
        )


@pytest.mark.parametrize("fixture", ["raw_dataset", "jpeg_dataset"])
def test_four_ranks_and_another_thread_count_give_the_same_bits(fixture, request):
    dataset = request.getfixturevalue(fixture)
    alone = _take(_loader(dataset, threads=3), 6)
    ranks = [_take(_loader(dataset, rank=rank, world=4), 6) for rank in range(4)]
    for step, whole in enumerate(alone):
        assert _equal(whole, _join([batches[step] for batches in ranks]))


def test_a_loader_resumes_at_any_sample_on_another_world(raw_dataset):
    straight = _join(_take(_loader(raw_dataset, batch=12), 10))
    first = _loader(raw_dataset, batch=12)
    before = [next(first) for _ in range(3)]
    state = first.state_dict()
    first.close()
    assert state == {"samples_seen": 36}
    # Another global batch from here on: 28 is uneven over three ranks.
    ranks = [_loader(raw_dataset, batch=28, rank=r, world=3, samples_seen=36) for r in range(3)]
    after = [next(loader) for _ in range(3) for loader in ranks]
    assert _equal(straight, _join(before + after))


def test_load_state_dict_goes_back(raw_dataset):
    loader = _loader(raw_dataset)
    batches = [next(loader) for _ in range(4)]
    loader.load_state_dict({"samples_seen": 20})
    assert _equal(next(loader), batches[2])
    assert loader.samples_seen == 30
    loader.close()


def test_a_closed_loader_goes_on_where_it_was(raw_dataset):
    straight = _take(_loader(raw_dataset), 4)
    loader = _loader(raw_dataset)
    before = [next(loader) for _ in range(2)]
    loader.close()
    after = _take(loader, 2)
    assert all(_equal(left, right) for left, right in zip(straight, before + after, strict=True))


def test_two_loaders_do_not_disturb_each_other(raw_dataset):
    alone = _take(_loader(raw_dataset), 4)
    loader = _loader(raw_dataset)
    for expected in alone:
        assert _equal(next(loader), expected)
        assert len(list(EvalLoader(raw_dataset, "val", batch_size=5, augmentation=CONFIG))) == 2
    loader.close()


def test_a_batch_owns_its_memory(raw_dataset):
    loader = _loader(raw_dataset)
    first = next(loader)
    kept = first.images.clone()
    for _ in range(6):
        next(loader)
    assert torch.equal(first.images, kept)
    loader.close()


def _copy(dataset: Dataset, folder) -> Dataset:
    import shutil

    shutil.copytree(dataset.path, folder)
    return Dataset.open(folder)


def test_a_changed_byte_is_reported_with_shard_and_key(raw_dataset, tmp_path):
    dataset = _copy(raw_dataset, tmp_path / "copy")
    row = dataset.manifest("train").to_pylist()[5]
    path = dataset.path / row["shard"]
    content = bytearray(path.read_bytes())
    content[row["offset"] + 1000] ^= 1
    path.write_bytes(content)
    loader = _loader(dataset, batch=41)
    with pytest.raises(InputError, match=f"sample {row['key']} of .*{row['shard']} has changed"):
        next(loader)


def _spoil(dataset: Dataset, sample_ids: list[int]) -> None:
    rows = dataset.manifest("train").to_pylist()
    for sample_id in sample_ids:
        path = dataset.path / rows[sample_id]["shard"]
        content = bytearray(path.read_bytes())
        content[rows[sample_id]["offset"] + 1000] ^= 1
        path.write_bytes(content)


def test_changed_samples_are_replaced_by_the_next_whole_one_and_counted_on_request(raw_dataset, tmp_path):
    dataset = _copy(raw_dataset, tmp_path / "copy")
    _spoil(dataset, [5, 6, 40])
    whole, ranks = (
        _loader(raw_dataset),
        [_loader(dataset, rank=rank, world=2, on_bad_sample="skip-and-count") for rank in range(2)],
    )
    replaced = {5: 7, 6: 7, 40: 0}
    for _ in range(5):  # 50 positions: an epoch of 41 and the first of the next
        expected, batch = next(whole), _join([next(loader) for loader in ranks])
        ids = [replaced.get(i, i) for i in expected.sample_ids.tolist()]
        assert batch.sample_ids.tolist() == ids and torch.equal(batch.positions, expected.positions)
        assert batch.labels.tolist() == ShardReader(raw_dataset, "train").class_indices[ids].tolist()
        assert np.array_equal(batch.images.numpy(), _expected(raw_dataset, batch))
    assert sum(loader.num_replaced_samples for loader in ranks) >= 3
    for loader in (whole, *ranks):
        loader.close()


def test_a_dataset_without_a_single_whole_sample_is_given_up(raw_dataset, tmp_path):
    dataset = _copy(raw_dataset, tmp_path / "copy")
    _spoil(dataset, list(range(41)))
    with pytest.raises(InputError, match="no sample is as it was written"):
        next(_loader(dataset, on_bad_sample="skip-and-count"))


def test_streams_read_every_epoch_whole_on_any_world(raw_dataset):
    streams = StreamConfig(num_streams=3, window_size=4)
    straight = _join(_take(_loader(raw_dataset, batch=12, streams=streams), 7))
    assert np.array_equal(straight.images.numpy(), _expected(raw_dataset, straight))
    order = straight.positions.argsort()
    assert straight.positions[order].tolist() == list(range(84))
    assert sorted(straight.sample_ids[order][:41].tolist()) == list(range(41))
    ranks = [_take(_loader(raw_dataset, batch=12, rank=r, world=5, streams=streams), 7) for r in range(5)]
    for step in range(7):
        assert _equal(_join([batches[step] for batches in ranks]), _slice(straight, 12 * step, 12 * step + 12))
    with pytest.raises(InputError, match="num_streams is 4; it must be 1 to 3"):
        _loader(raw_dataset, streams=StreamConfig(num_streams=4))


def test_a_missing_shard_is_named(raw_dataset, tmp_path):
    dataset = _copy(raw_dataset, tmp_path / "copy")
    (dataset.path / "train-000001.tar").unlink()
    with pytest.raises(InputError, match=r"shard .*train-000001.tar can't be read"):
        next(_loader(dataset, batch=41))


def test_only_a_gpu_decodes_mixed():
    with pytest.raises(ValueError, match="decode='mixed': needs device='gpu'"):
        LoaderConfig(decode="mixed")
    with pytest.raises(InputError, match="a worker has no GPU; train with --decode cpu"):
        World(0, 1, torch.device("cpu")).loader_config("mixed")
    assert World(0, 1, torch.device("cuda", 1)).loader_config("cpu").decode == "cpu"


def test_more_workers_than_samples_in_a_batch_are_refused(raw_dataset):
    with pytest.raises(InputError, match="global batch of 2 can't be shared by 3 workers"):
        _loader(raw_dataset, batch=2, world=3)


def test_a_crop_larger_than_the_pictures_is_refused(raw_dataset):
    with pytest.raises(InputError, match="crop_size is 224"):
        _loader(raw_dataset, augmentation=AugmentationConfig(crop_size=224))


@pytest.mark.gpu
def test_the_gpu_graph_equals_the_reference(raw_dataset):
    loader = TrainLoader(
        raw_dataset, global_batch_size=10, seed=SEED, augmentation=CONFIG, config=LoaderConfig(device="gpu")
    )
    batch = next(loader)
    assert batch.images.is_cuda and batch.labels.is_cuda
    np.testing.assert_allclose(batch.images.cpu().numpy(), _expected(raw_dataset, batch), rtol=0, atol=1e-6)
    loader.close()


@pytest.mark.gpu
def test_a_gpu_gets_the_cpus_pixels_where_the_cpu_decodes(jpeg_dataset):
    images = []
    for options in ({"device": "cpu"}, {"device": "gpu", "decode": "cpu"}):
        loader = TrainLoader(
            jpeg_dataset, global_batch_size=10, seed=SEED, augmentation=CONFIG, config=LoaderConfig(**options)
        )
        images.append(next(loader).images.cpu().numpy())
        loader.close()
    np.testing.assert_allclose(images[0], images[1], rtol=0, atol=1e-6)
