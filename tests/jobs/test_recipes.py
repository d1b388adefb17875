"""Recipes: each says where it comes from and what it costs, and what it says is true."""

import re

import pytest
from runs import IMAGENET_SIZE, STORED_SIZES

from cluster.run.config import TrainingConfig
from jobs.recipes import RECIPES, get_recipe
from model.registry import num_operations
from model.variants import VARIANTS
from pipeline.command import InputError

IMAGENET = 1_281_167
COST = re.compile(r"Cost: (\d+) x ([\d,]+) samples, ([\d.]+e\d+) operations")


def operations_of_a_sample(config: TrainingConfig, stored_size: int) -> float:
    num_classes = 1000 if stored_size == IMAGENET_SIZE else 10
    forward = num_operations(config.model, num_classes, config.augmentation.crop_of(stored_size))
    return 3 * forward  # backward: with respect to the activations, and to the weights


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_its_source_its_error_and_its_cost(name: str) -> None:
    config, text = get_recipe(name), RECIPES[name].__doc__
    assert config.name == name
    assert "Source: " in text and "Error: " in text
    num_epochs, num_samples, operations = COST.search(text).groups()
    stored_size = STORED_SIZES[name]
    num_samples = int(num_samples.replace(",", ""))
    assert config.num_epochs == int(num_epochs)
    assert (num_samples == IMAGENET) == (stored_size == IMAGENET_SIZE)
    total = int(num_epochs) * num_samples * operations_of_a_sample(config, stored_size)
    assert float(operations) == pytest.approx(total, rel=0.05)


def test_every_variant_has_a_recipe() -> None:
    assert {recipe().model.name for recipe in RECIPES.values()} >= set(VARIANTS)


def test_an_unknown_recipe_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        InputError, match=r"there is no recipe 'resnet'; there are small_demo, synthetic_demo, own_pictures"
    ):
        get_recipe("resnet")
