"""The contact sheet shows what training reads: its order, its crops, its colour noise."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coded_source import CodedSource, coded_pixels
from PIL import Image

from pipeline import preview
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.format.color import ColorBasis
from pipeline.loader import TrainLoader
from pipeline.offline.shard_plan import ShardingConfig
from pipeline.offline.sharding import shard_dataset
from pipeline.online.augmentation import AugmentationConfig, divisor, draw_parameters
from pipeline.online.order import permutation
from pipeline.online.reference import augment
from pipeline.online.shard_reader import ShardReader
from pipeline.paths import CHECKOUT
from pipeline.pictures.contact_sheet import Cell, Row, draw_sheet, fit
from pipeline.pictures.encode import EncodingConfig, store_picture

CONFIG = AugmentationConfig()
ENLARGED = 8  # pictures of 32x32 in cells of 256


class WideSource(CodedSource):
    """Pictures that are half as wide again as they are high."""

    def read(self, file: str, offset: int, num_bytes: int) -> bytes:
        pixels_HWC = np.concatenate([coded_pixels(offset, 32), coded_pixels(offset + 5000, 32)[:, :16]], axis=1)
        buffer = io.BytesIO()
        Image.fromarray(pixels_HWC).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()


@pytest.fixture(scope="module")
def whole_dataset(tmp_path_factory) -> Dataset:
    """41 training and 10 validation pictures of 48x32, stored whole, to be read as squares of 32."""
    folder = tmp_path_factory.mktemp("whole")
    stored = EncodingConfig(encoding="original", size=32)
    shard_dataset(WideSource(folder, 41, 10, 32, False), folder, ShardingConfig(encoding=stored), num_workers=1)
    return Dataset.open(folder)


def _arguments(dataset: Dataset, **options) -> preview.Arguments:
    return preview.Arguments(dataset=dataset.path, out=Path("sheet.png"), **options)


def _sheet(dataset: Dataset, out: Path, *options: str) -> np.ndarray:
    assert preview.main([str(dataset.path), str(out), *options]) == 0
    with Image.open(out) as image:
        return np.asarray(image)


def _place(sheet_HWC: np.ndarray, picture_HWC: np.ndarray) -> tuple[int, int]:
    """Return (top, left) of the one place where the sheet shows exactly these pixels."""
    height, width, _ = picture_HWC.shape
    red, green, blue = (sheet_HWC[..., i] == picture_HWC[0, 0, i] for i in range(3))
    places = [
        (top, left)
        for top, left in np.argwhere(red & green & blue).tolist()
        if np.array_equal(sheet_HWC[top : top + height, left : left + width], picture_HWC)
    ]
    assert len(places) == 1, f"shown {len(places)} times"
    return places[0]


def _enlarged(pixels_HWC: np.ndarray) -> np.ndarray:
    return pixels_HWC.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)


def _square(dataset: Dataset, split: str, sample_id: int) -> np.ndarray:
    content = ShardReader(dataset, split).read(sample_id)
    if dataset.member == "npy":
        return content
    return store_picture(content.tobytes(), EncodingConfig(encoding="raw", size=32)).pixels_HWC


@pytest.mark.parametrize("fixture", ["raw_dataset", "jpeg_dataset", "whole_dataset"])
def test_the_cells_are_the_references_crops_in_the_order_of_training(fixture, request, tmp_path):
    dataset, seed, epoch = request.getfixturevalue(fixture), 7, 2
    options = ["--seed", str(seed), "--epoch", str(epoch), "--samples", "4", "--crops", "2"]
    sheet_HWC = _sheet(dataset, tmp_path / "sheet.png", *options)
    places = []
    for sample_id in permutation(seed, epoch, 41)[:4]:
        square_HWC, epochs = _square(dataset, "train", sample_id), np.array([epoch, epoch + 1])
        drawn = draw_parameters(CONFIG, dataset.color_basis, 32, seed, epochs, np.array([sample_id, sample_id]))
        mean_free_NCHW = augment(np.stack([square_HWC] * 2), drawn, 28, np.ones(3, dtype=np.float32))
        crops_NHWC = mean_free_NCHW.transpose(0, 2, 3, 1) + dataset.color_basis.mean_3 * 255
        places += [_place(sheet_HWC, _enlarged(np.uint8(np.rint(crop).clip(0, 255)))) for crop in crops_NHWC]
    assert places == sorted(places)
    assert [left for _, left in places] == [left for _, left in places[:2]] * 4
    assert len({top for top, _ in places}) == 4


def test_the_crops_are_what_the_loader_feeds_the_model(raw_dataset):
    loader = TrainLoader(raw_dataset, global_batch_size=4, seed=3, samples_seen=41)
    batch = next(loader)
    loader.close()
    samples = list(preview.read_samples(raw_dataset, _arguments(raw_dataset, seed=3, epoch=1, samples=4)))
    assert [sample.sample_id for sample in samples] == batch.sample_ids.tolist()
    basis = raw_dataset.color_basis
    for sample, image_CHW in zip(samples, batch.images.numpy(), strict=True):
        drawn = draw_parameters(CONFIG, basis, 32, 3, np.array([1]), np.array([sample.sample_id]))
        shown_HWC = preview.displayable_crops(sample.square_HWC, drawn, 28, basis)[0]
        fed_HWC = (image_CHW.transpose(1, 2, 0) * divisor(CONFIG, basis) + basis.mean_3 * 255).clip(0, 255)
        assert np.abs(shown_HWC - fed_HWC).max() < 0.501  # rounded to whole grey levels


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_captions_name_the_samples_in_the_order_of_training(split, raw_dataset):
    ids = permutation(5, 1, raw_dataset.num_samples(split))[:6]
    table = raw_dataset.manifest(split).take(ids).to_pydict()
    arguments = _arguments(raw_dataset, split=split, seed=5, epoch=1, samples=6, noise_samples=0)
    captions = [row.cells[0].caption for row in preview.sheet_rows(raw_dataset, arguments) if row.cells]
    assert [caption[0] for caption in captions] == [f"key {key}, 32x32" for key in table["key"]]
    assert [caption[1] for caption in captions] == [f"class {i}: class {i}" for i in table["class_index"]]
    assert [caption[2] for caption in captions] == table["source"]


def test_a_caption_names_offsets_mirror_and_noise(raw_dataset):
    arguments = _arguments(raw_dataset, samples=8, crops=1, noise_samples=0)
    captions = [row.cells[1].caption for row in preview.sheet_rows(raw_dataset, arguments) if row.cells]
    ids, basis = permutation(0, 0, 41)[:8], raw_dataset.color_basis
    drawn = draw_parameters(CONFIG, basis, 32, 0, np.zeros(8, dtype=np.int64), ids)
    assert {0, 1} == set(drawn.placement_N3[:, 2].tolist())
    for index, caption in enumerate(captions):
        left, top, mirror = drawn.placement_N3[index]
        mirrored = "mirrored" if mirror else "not mirrored"
        assert caption[0] == f"epoch 0: x {left}, y {top}, {mirrored}"
        noise_3 = [float(word) for word in caption[1].split()[1:4]]
        np.testing.assert_allclose(noise_3, basis.mean_3 * 255 - drawn.mean_N3[index], atol=0.0501)


def test_notes_are_shown_where_there_are_any(raw_dataset):
    pixels_HWC = np.zeros((32, 32, 3), dtype=np.uint8)
    row = {"key": "00000000", "class_index": 1, "source": "a/b.JPEG", "notes": "png,alpha"}
    sample = preview.Sample(0, row, pixels_HWC, pixels_HWC)
    assert preview.stored_caption(sample, raw_dataset)[3:] == ["notes: png,alpha"]


def test_a_whole_picture_is_shown_whole_beside_crops_of_its_square(whole_dataset, tmp_path):
    sheet_HWC = _sheet(whole_dataset, tmp_path / "sheet.png", "--samples", "1", "--noise-samples", "0")
    (sample,) = preview.read_samples(whole_dataset, _arguments(whole_dataset, samples=1))
    assert sample.whole_HWC.shape == (32, 48, 3)
    assert np.array_equal(sample.square_HWC, sample.whole_HWC[:, 8:40])
    _place(sheet_HWC, sample.whole_HWC.repeat(256 // 48, axis=0).repeat(256 // 48, axis=1))


@pytest.mark.parametrize("convention", ["fb", "cuda-convnet"])
@pytest.mark.parametrize("component", [0, 1, 2])
def test_the_noise_moves_all_pixels_by_multiples_of_a_sigma_along_one_component(convention, component):
    vectors_33 = np.linalg.qr(np.array([[0.57, 0.6, 0.2], [0.58, 0.1, -0.8], [0.58, -0.7, 0.5]]))[0]
    basis = ColorBasis(255, np.array([0.48, 0.45, 0.41]), np.eye(3), np.array([0.22, 0.05, 0.01]), vectors_33)
    config = AugmentationConfig(color_noise_convention=convention)
    parameters = preview.noise_parameters(config, basis, 32, component)
    grey_HWC = np.full((32, 32, 3), 128, dtype=np.uint8)
    moved_N3 = preview.displayable_crops(grey_HWC, parameters, 28, basis).astype(int)[:, 5, 5] - 128
    value = basis.eigenvalues_3[component]
    sigma_3 = 0.1 * (value if convention == "fb" else np.sqrt(value)) * vectors_33[:, component] * 255
    expected_N3 = np.outer([-3, -2, -1, 0, 1, 2, 3], sigma_3)
    assert np.abs(expected_N3).max() > 0.6
    assert np.abs(moved_N3 - expected_N3).max() < 0.501  # whole grey levels
    assert np.array_equal(moved_N3, -moved_N3[::-1])


def test_the_noise_is_shown_for_the_first_samples_from_minus_three_to_three_sigma(raw_dataset, tmp_path):
    sheet_HWC = _sheet(raw_dataset, tmp_path / "sheet.png", "--samples", "3", "--noise-samples", "2")
    basis, places = raw_dataset.color_basis, []
    for sample_id in permutation(0, 0, 41)[:2]:
        centre_HWC = _square(raw_dataset, "train", sample_id)[2:30, 2:30]
        for component in range(3):
            for sigmas in (-3, -2, -1, 1, 2, 3):
                alpha_13 = 0.1 * sigmas * np.eye(3)[component : component + 1]
                moved_HWC = np.rint(centre_HWC + basis.noise(alpha_13, "fb")[0]).clip(0, 255).astype(np.uint8)
                places.append(_place(sheet_HWC, moved_HWC.repeat(4, axis=0).repeat(4, axis=1)))
    assert places == sorted(places) and len({top for top, _ in places}) == 6


def test_the_conventions_differ(raw_dataset, tmp_path):
    one, other = (
        _sheet(raw_dataset, tmp_path / f"{name}.png", "--color-noise-convention", name)
        for name in ("fb", "cuda-convnet")
    )
    assert one.shape == other.shape and not np.array_equal(one, other)


def test_the_same_arguments_give_the_same_bytes(raw_dataset, tmp_path):
    command = [sys.executable, "-m", "pipeline.preview", str(raw_dataset.path), str(tmp_path / "one.png")]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    _sheet(raw_dataset, tmp_path / "folder" / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "folder" / "two.png").read_bytes()


def test_the_picture_is_replaced_whole_or_not_at_all(raw_dataset, tmp_path, monkeypatch):
    out = tmp_path / "sheet.png"
    out.write_bytes(b"the one before")

    def fail_half_way(image, file, name):
        file.write(b"half a picture")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Image.Image, "save", fail_half_way)
    with pytest.raises(InputError, match=r"sheet\.png can't be written \(No space left on device\); name another"):
        preview.main([str(raw_dataset.path), str(out)])
    assert out.read_bytes() == b"the one before" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "0"], "--samples is 0; it must be 1 to 41"),
        (["--samples", "42"], "--samples is 42; it must be 1 to 41"),
        (["--samples", "11", "--split", "val"], "--samples is 11; it must be 1 to 10"),
        (["--crops", "0"], "--crops is 0; it must be 1 to 12"),
        (["--noise-samples", "-1"], "--noise-samples is -1; it must be 0 to"),
        (["--seed", "-1"], "--seed is -1; it must be 0 to"),
        (["--epoch", "-1"], "--epoch is -1; it must be 0 to"),
        (["--split", "test"], "has no split 'test'; it has train, val"),
    ],
)
def test_arguments_that_make_no_sheet_are_refused(options, message, raw_dataset, tmp_path):
    with pytest.raises(InputError, match=message) as raised:
        preview.main([str(raw_dataset.path), str(tmp_path / "sheet.png"), *options])
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("sheet.jpg", r"sheet\.jpg does not end in \.png"),
        ("file/sheet.png", r"file/sheet\.png can't be written \(.+\); name another OUT\.png"),
        ("folder.png", r"folder\.png can't be written \(Is a directory\)"),
        ("dataset/sheet.png", r"sheet\.png lies in the dataset"),
    ],
)
def test_a_name_that_cannot_be_written_is_refused(out, message, raw_dataset, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dataset").symlink_to(raw_dataset.path)
    with pytest.raises(InputError, match=message) as raised:
        preview.main([str(tmp_path / "dataset"), str(tmp_path / out)])
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "file", "folder.png"]


@pytest.mark.parametrize(
    ("size", "drawn"), [((28, 28), (252, 252)), ((200, 9), (200, 9)), ((512, 256), (256, 128)), ((4000, 1), (256, 1))]
)
def test_a_picture_fits_its_cell_in_its_proportions(size, drawn):
    pixels_HWC = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    assert fit(pixels_HWC, 256).size == drawn


def test_a_long_caption_loses_its_middle_and_stays_in_its_column():
    picture = Image.new("RGB", (40, 40))
    short, long = (draw_sheet([Row(cells=[Cell(picture, [text], 60)] * 2)]) for text in ("abc", "abc" * 100))
    assert short.size == long.size
    gap_HWC = np.asarray(long)[:, 24 + 60 + 2 : 24 + 60 + 16]
    assert (gap_HWC == 255).all() and (np.asarray(long)[70:] < 255).any()
