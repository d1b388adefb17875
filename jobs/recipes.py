"""Recipes: what is trained. A recipe is a function that returns a full configuration; a variant replaces fields.

Any field can be overridden on the command line by its dotted name: `jobs/train.py --optimizer.learning-rate 0.02`.
"""

from collections.abc import Callable

from cluster.config import TrainingConfig
from model.alexnet import ModelConfig
from model.optim import OptimizerConfig
from pipeline.augmentation import AugmentationConfig
from pipeline.command import InputError


def small_demo() -> TrainingConfig:
    """Small pictures on two cores: Fashion-MNIST, and the embedded synthetic mini-ImageNet.

    Ours; stored 28 -> crop 26, or 64 -> 58. Fashion-MNIST: 12 epochs of 57,000 samples, see docs/results.md for time
    and error; its authors' list has 8.4 to 12.4 % error for networks of two convolutions.
    """
    return TrainingConfig(
        name="small_demo",
        model=ModelConfig(name="alexnet_small", dropout=0.3),
        optimizer=OptimizerConfig(learning_rate=0.05, nesterov=True, warmup=0.1, schedule="cosine"),
        augmentation=AugmentationConfig(crop_fraction=0.93),
        global_batch_size=128,
        num_epochs=12,
        precision="bfloat16",
        checkpoint_interval=500,
    )


def krizhevsky_2012() -> TrainingConfig:
    """The 2012 paper: 256x256 stored, 224 cropped, padded by 2; batch 128, momentum 0.9, weight decay 5e-4, 90 epochs.

    Krizhevsky, Sutskever, Hinton: ImageNet classification with deep convolutional neural networks, 2012. One net
    reaches 40.7 % top-1 and 18.2 % top-5 error on ILSVRC-2012's validation set with ten crops. The learning rate is
    divided by 10 three times; the paper does so when the validation error stalls, here at fixed parts of the run.
    Cost: 90 x 1,281,167 samples.
    """
    return TrainingConfig(
        name="krizhevsky_2012",
        model=ModelConfig(name="alexnet_2012", initialization="paper"),
        optimizer=OptimizerConfig(learning_rate=0.01, schedule="step", milestones=(1 / 3, 2 / 3, 8 / 9)),
        augmentation=AugmentationConfig(crop_size=224, subtract="mean_image", divide_by_std=False),
        global_batch_size=128,
        num_epochs=90,
        precision="bfloat16",
        evaluations_per_epoch=1,
        checkpoint_interval=1000,
    )


RECIPES: dict[str, Callable[[], TrainingConfig]] = {recipe.__name__: recipe for recipe in (small_demo, krizhevsky_2012)}


def get_recipe(name: str) -> TrainingConfig:
    """Return a recipe by its name.

    Raises:
        InputError: There is none of this name.
    """
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()
