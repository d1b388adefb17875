"""Statistics are exact for any partition; the colour basis agrees with what others published."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.format.color import ColorBasis
from pipeline.offline.statistics import PixelSums, color_document

# fb.resnet.torch's published basis of ImageNet, and the standard deviation over all of ImageNet's pixels
# (pytorch/vision#1439).
FB_EIGENVALUES = [0.2175, 0.0188, 0.0045]
FB_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
IMAGENET_STD = [0.2837, 0.2763, 0.2897]


def _pictures(seed: int, count: int, size: int = 5) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=seed)).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def _sums(pictures: np.ndarray) -> PixelSums:
    sums = PixelSums()
    for picture in pictures:
        sums.add_picture(picture)
    return sums


@given(st.integers(0, 1000), st.lists(st.integers(0, 6), min_size=1, max_size=5), st.randoms())
def test_any_partition_in_any_order_gives_the_same_bits(seed, sizes, random):
    pictures = _pictures(seed, sum(sizes) + 1)
    bounds = np.cumsum([0, *sizes, 1])
    parts = [_sums(pictures[first:end]) for first, end in itertools.pairwise(bounds)]
    random.shuffle(parts)
    merged = PixelSums()
    for part in parts:
        merged += PixelSums.from_arrays(part.to_arrays())
    whole = _sums(pictures)
    assert color_document(merged, "", "") == color_document(whole, "", "")
    assert np.array_equal(merged.mean_image_HWC(), whole.mean_image_HWC())


def _totals(pixels_P3: np.ndarray) -> np.ndarray:
    """Sums, squares and products by NumPy's integers."""
    products = pixels_P3.T @ pixels_P3
    return np.concatenate([pixels_P3.sum(axis=0), np.diag(products), products[[0, 0, 1], [1, 2, 2]]])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6), st.sampled_from(["noise", "0", "255", "edge"]))
def test_sums_are_exact_integers(height, width, seed, kind):
    pixels = np.random.Generator(np.random.Philox(key=seed)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind != "noise":
        pixels = np.where(pixels > 128, 255, 0).astype(np.uint8) if kind == "edge" else np.full_like(pixels, int(kind))
    sums = _sums(pixels[None])
    expected = pixels.reshape(-1, 3).astype(np.int64)
    assert np.array_equal(sums.totals_9, _totals(expected))


@pytest.mark.parametrize("value", [255, 254])
def test_sums_of_large_pictures_are_exact_too(value):
    pixels = np.full((3001, 4001, 3), value, dtype=np.uint8)
    pixels[::7, ::5, 1] = 1
    expected = pixels.reshape(-1, 3).astype(np.int64)
    assert np.array_equal(_sums(pixels[None]).totals_9, _totals(expected))


def test_the_mean_image_of_more_pictures_than_a_small_integer_holds():
    sums = _sums(np.full((600, 2, 3, 3), 255, dtype=np.uint8))
    sums += _sums(np.full((3, 2, 3, 3), 255, dtype=np.uint8))
    assert np.array_equal(sums.mean_image_HWC(), np.full((2, 3, 3), 255, dtype=np.float32))


def test_merging_leaves_the_other_sums_as_they_were():
    first, other = PixelSums(), _sums(_pictures(4, 2))
    before = color_document(other, "", ""), other.mean_image_HWC().tobytes()
    first += other
    first.add_picture(_pictures(5, 1)[0])
    assert (color_document(other, "", ""), other.mean_image_HWC().tobytes()) == before


def test_statistics_equal_numpys():
    pictures = _pictures(1, 20)
    pixels = pictures.reshape(-1, 3) / 255
    document = color_document(_sums(pictures), "", "")
    np.testing.assert_allclose(document["mean"], pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(document["covariance"], np.cov(pixels.T, bias=True), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(document["std"], pixels.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        document["mean_of_per_image_std"], (pictures / 255).std(axis=(1, 2)).mean(axis=0), rtol=1e-12
    )
    np.testing.assert_allclose(_sums(pictures).mean_image_HWC(), pictures.mean(axis=0), rtol=1e-6)


def test_pictures_of_different_sizes_have_no_mean_image():
    sums = _sums(_pictures(1, 2))
    sums += _sums(_pictures(2, 1, size=6))
    assert sums.mean_image_HWC() is None and sums.num_images == 3


def test_the_eigenbasis_is_sorted_signed_and_rebuilds_the_covariance():
    covariance = np.cov(_pictures(3, 4).reshape(-1, 3).T / 255, bias=True) + np.diag([0.01, 0.02, 0.03])
    basis = ColorBasis.from_covariance(np.zeros(3), covariance, 255)
    assert (np.diff(basis.eigenvalues_3) <= 0).all()
    vectors = basis.eigenvectors_33
    np.testing.assert_allclose(vectors @ np.diag(basis.eigenvalues_3) @ vectors.T, covariance, atol=1e-15)
    assert (vectors[np.abs(vectors).argmax(axis=0), range(3)] > 0).all()


def _fb_basis() -> ColorBasis:
    covariance = FB_EIGENVECTORS @ np.diag(FB_EIGENVALUES) @ FB_EIGENVECTORS.T
    return ColorBasis.from_covariance(np.zeros(3), covariance, 255)


def test_fbs_basis_rebuilds_imagenets_standard_deviation():
    np.testing.assert_allclose(_fb_basis().std_3, IMAGENET_STD, atol=3e-4)


@pytest.mark.parametrize(("convention", "grey_levels"), [("fb", 5.5), ("cuda-convnet", 11.9)])
def test_one_sigma_of_noise_along_the_first_component_of_imagenet(convention, grey_levels):
    shift = _fb_basis().noise(np.array([[0.1, 0.0, 0.0]]), convention)
    assert np.linalg.norm(shift) == pytest.approx(grey_levels, abs=0.1)
