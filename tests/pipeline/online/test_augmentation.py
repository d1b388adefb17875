"""Augmentation parameters: pure functions with the right distributions."""

import numpy as np
import pytest
from scipy import stats

from pipeline.format.color import ColorBasis
from pipeline.online.augmentation import AugmentationConfig, center_parameters, divisor, draw_parameters

N = 20_000
CONFIG = AugmentationConfig(crop_size=224)
# An identity basis in units of one grey level: the noise is then the coefficients themselves.
UNIT_BASIS = ColorBasis(1, np.zeros(3), np.eye(3), np.ones(3), np.eye(3))
GOLDEN_X, GOLDEN_Y, GOLDEN_MIRROR = [0, 9], [19, 17], [1, 1]
GOLDEN_MEAN = [
    [-0.247222900390625, -0.075408935546875, 0.153228759765625],
    [-0.0555877685546875, -0.209991455078125, 0.0010833740234375],
]


def _draw(config=CONFIG, seed=0, epoch=0, ids=None):
    ids = np.arange(N) if ids is None else ids
    return draw_parameters(config, UNIT_BASIS, 256, seed, np.full(len(ids), epoch), ids)


def test_parameters_depend_on_seed_epoch_and_sample_alone():
    whole = _draw()
    ids = np.array([17, 3, 19_999])
    for name in ("placement_N3", "mean_N3"):
        assert np.array_equal(getattr(_draw(ids=ids), name), getattr(whole, name)[ids])


def test_the_parameters_never_change():
    drawn = _draw(seed=5, epoch=2, ids=np.array([0, 1_281_166]))
    assert drawn.placement_N3.T.tolist() == [GOLDEN_X, GOLDEN_Y, GOLDEN_MIRROR]
    assert drawn.mean_N3.tolist() == GOLDEN_MEAN


def test_crops_are_uniform_over_33_by_33_offsets():
    left_N, top_N, _ = _draw().placement_N3.T
    for offsets in (left_N, top_N):
        counts = np.bincount(offsets, minlength=33)
        assert len(counts) == 33
        assert stats.chisquare(counts).pvalue > 1e-4
    joint = np.bincount(left_N * 33 + top_N, minlength=33 * 33)
    assert stats.chisquare(joint).pvalue > 1e-4


def test_half_of_the_pictures_are_mirrored():
    assert stats.binomtest(int(_draw().placement_N3[:, 2].sum()), N).pvalue > 1e-4


def test_the_noise_is_normal_with_the_asked_deviation():
    coefficients = -_draw().mean_N3 / CONFIG.color_noise_sigma
    for column in coefficients.T:
        assert stats.kstest(column, "norm").pvalue > 1e-4
    correlation = np.corrcoef(coefficients.T) - np.eye(3)
    assert np.abs(correlation).max() < 5 / np.sqrt(N)


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"ids": np.arange(1, N + 1)}])
def test_seeds_epochs_and_neighbours_are_independent(other):
    one, two = _draw(), _draw(**other)
    for ones, twos in zip(one.placement_N3.T, two.placement_N3.T, strict=True):
        correlation = np.corrcoef(ones, twos)[0, 1]
        assert abs(correlation) < 5 / np.sqrt(N)
    assert abs(np.corrcoef(one.mean_N3[:, 0], two.mean_N3[:, 0])[0, 1]) < 5 / np.sqrt(N)


def test_the_noise_is_a_multiple_of_two_to_the_minus_sixteen():
    units = _draw().mean_N3.astype(np.float64) * 2**16
    assert np.array_equal(units, np.round(units))


def test_flip_and_noise_can_be_switched_off():
    drawn = _draw(AugmentationConfig(crop_size=224, flip=False, color_noise_sigma=0))
    assert not drawn.placement_N3[:, 2].any() and not drawn.mean_N3.any()


def test_evaluation_takes_the_centre():
    parameters = center_parameters(CONFIG, UNIT_BASIS, 256, 3)
    assert parameters.placement_N3.tolist() == [[16, 16, 0]] * 3


@pytest.mark.parametrize(("stored", "crop"), [(256, 224), (64, 56), (32, 28), (28, 24), (1, 1)])
def test_the_default_crop_is_seven_eighths_and_even(stored, crop):
    assert AugmentationConfig().crop_of(stored) == crop


def test_a_channel_without_variation_is_not_divided_by_zero():
    basis = ColorBasis.from_covariance(np.zeros(3), np.diag([0.04, 0.0, 0.01]), 255)
    np.testing.assert_allclose(divisor(AugmentationConfig(), basis), [51.0, 1.0, 25.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_size": 0}, "crop_size is 0"),
        ({"crop_fraction": 1.5}, "crop_fraction is 1.5"),
        ({"color_noise_sigma": -1.0}, "color_noise_sigma is -1.0"),
        ({"color_noise_convention": "pca"}, "color_noise_convention is 'pca'; known: fb, cuda-convnet"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        AugmentationConfig(**fields)


def test_a_crop_larger_than_the_picture_is_refused():
    with pytest.raises(ValueError, match="crop_size is 224, but the pictures are stored at 64"):
        CONFIG.crop_of(64)
