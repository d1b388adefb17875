"""Recipes: what is trained. A recipe is a function that returns a full configuration; a variant replaces fields.

Any field can be overridden on the command line by its dotted name: `jobs/train.py --optimizer.learning-rate 0.02`.

Each docstring names the recipe's source, the expected error and the cost: the number of samples read and of
floating-point operations (a multiply-add is two operations; a backward pass counts as two forward passes).
"""

from collections.abc import Callable
from dataclasses import replace

from cluster.run.config import TrainingConfig
from model.optim_config import OptimizerConfig
from model.registry import ModelConfig
from pipeline.command import InputError
from pipeline.online.augmentation import AugmentationConfig

_AS_STORED = AugmentationConfig(crop_fraction=1.0, flip=False, color_noise_sigma=0)


def small_demo() -> TrainingConfig:
    """Small pictures on two cores: Fashion-MNIST.

    Source: ours; stored 28 -> crop 26. Error: 7.75 % on Fashion-MNIST's test set (docs/results.md); its authors list
    8.4 to 12.4 % for networks with two convolutions.
    Cost: 12 x 57,000 samples, 1.5e14 operations at 26 pixels.
    """
    return TrainingConfig(
        name="small_demo",
        model=ModelConfig(name="alexnet_small", dropout=0.3),
        optimizer=OptimizerConfig(learning_rate=0.05, nesterov=True, warmup=0.1, schedule="cosine"),
        augmentation=AugmentationConfig(crop_fraction=0.93),
        global_batch_size=128,
        num_epochs=12,
        checkpoint_interval=500,
    )


def synthetic_demo() -> TrainingConfig:
    """The embedded synthetic mini-ImageNet, for any two cores: stored 32 -> crop 28, Adam in batches of 32.

    Source: ours. Error: 2.6 % on 500 validation pictures of ten classes (docs/results.md).
    Cost: 6 x 3,000 samples, 4.9e12 operations.
    """
    return TrainingConfig(
        name="synthetic_demo",
        model=ModelConfig(name="alexnet_small", dropout=0.1),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=0, warmup=0.1, schedule="cosine"),
        global_batch_size=32,
        num_epochs=6,
    )


def own_pictures() -> TrainingConfig:
    """Some hundred photographs of one's own: `alexnet_small`, stored 80 -> crop 60, batch 32.

    Source: ours; what `jobs/train.py --source FOLDER` trains, with a number of epochs and a batch that fit the pictures
    (`jobs/training/choice.py`). Error: 10 to 12.5 % of 40 held-out photographs of four classes (docs/results.md).
    Cost: 60 x 160 samples, 1.2e13 operations.
    """
    return TrainingConfig(
        name="own_pictures",
        model=ModelConfig(name="alexnet_small"),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=0, warmup=0.1, schedule="cosine"),
        augmentation=AugmentationConfig(crop_fraction=0.75),
        global_batch_size=32,
        num_epochs=60,
        stuck_after_epochs=20,  # an epoch is a few steps
        evaluations_per_epoch=0.2,
    )


def krizhevsky_2012() -> TrainingConfig:
    """The 2012 paper: stored 256 -> crop 224, padded by 2; batch 128, the paper's update rule, rate / 10 per plateau.

    Source: Krizhevsky, Sutskever, Hinton: ImageNet classification with deep convolutional neural networks, 2012.
    Error: one net, ten crops, ILSVRC-2012's validation set: top-1 40.7 %, top-5 18.2 %. In the paper the rate was
    reduced three times in about 90 epochs; the patience of 5 evaluations is ours.
    Cost: 90 x 1,281,167 samples, 5.0e17 operations.
    """
    return TrainingConfig(
        name="krizhevsky_2012",
        model=ModelConfig(name="alexnet_2012", initialization="paper", dropout_scaling="test"),
        optimizer=OptimizerConfig(name="sgd_paper", learning_rate=0.01, schedule="plateau", patience=5),
        augmentation=AugmentationConfig(crop_size=224, subtract="mean_image", divide_by_std=False),
        global_batch_size=128,
        num_epochs=90,
        checkpoint_interval=1000,
    )


def caffe_alexnet() -> TrainingConfig:
    """Caffe's bvlc_alexnet: squashed to 256 -> crop 227, batch 256, biases at twice the rate and without decay.

    Source: Caffe's model zoo, 2014: initial bias 0.1 (with the paper's 1 the loss stayed flat), normalisation with
    alpha / n and k = 1, no colour noise. Pictures: `pipeline.shard --crop squash`.
    Error: centre crop, validation set: top-1 42.9 %, top-5 19.8 %.
    Cost: 90 x 1,281,167 samples, 5.0e17 operations.
    """
    return TrainingConfig(
        name="caffe_alexnet",
        model=ModelConfig(
            name="alexnet_2012", initialization="caffe", normalization="caffe", first_padding=0, channel_order="bgr"
        ),
        optimizer=OptimizerConfig(
            name="sgd_paper",
            learning_rate=0.01,
            bias_learning_rate_factor=2,
            decay_biases=False,
            schedule="step",
            milestones=(2 / 9, 4 / 9, 6 / 9, 8 / 9),  # every 100,000 of 450,000 steps
        ),
        augmentation=AugmentationConfig(crop_size=227, color_noise_sigma=0, subtract="mean_image", divide_by_std=False),
        global_batch_size=256,
        num_epochs=90,
        checkpoint_interval=1000,
    )


def caffenet() -> TrainingConfig:
    """Caffe's bvlc_reference_caffenet: like `caffe_alexnet`, but with pooling before normalisation.

    Source: Caffe's model zoo, 2014. Error: centre crop, validation set: top-1 42.6 %, top-5 19.6 %.
    Cost: 90 x 1,281,167 samples, 5.1e17 operations.
    """
    model = ModelConfig(name="caffenet", channel_order="bgr")
    return replace(caffe_alexnet(), name="caffenet", model=model)


def torchvision_owt() -> TrainingConfig:
    """The one-tower net as torchvision trains it: batch 256, rate 0.01 divided by 10 every 30 epochs, decay 1e-4.

    Source: torchvision's reference scripts. Departures: crops of 224 from the stored 256 instead of resized random
    regions, and the training set's own mean and deviation. Error: centre crop, validation set: top-1 43.48 %,
    top-5 20.93 %.
    Cost: 90 x 1,281,167 samples, 4.9e17 operations.
    """
    return TrainingConfig(
        name="torchvision_owt",
        model=ModelConfig(name="alexnet_owt", initialization="torch"),
        optimizer=OptimizerConfig(
            learning_rate=0.01, weight_decay=1e-4, schedule="step", milestones=(1 / 3, 2 / 3), step_factor=0.1
        ),
        augmentation=AugmentationConfig(crop_size=224, color_noise_sigma=0),
        global_batch_size=256,
        num_epochs=90,
        checkpoint_interval=1000,
    )


def owt_2014() -> TrainingConfig:
    """The one-tower net of 2014: batch 128, 90 epochs, rate times 250^(-1/3) at each quarter; scales with the batch.

    Source: Krizhevsky: One weird trick for parallelizing convolutional neural networks, 2014. The paper does not give
    the initial weights, so PyTorch's are used. A larger `--global-batch-size` raises the rate in proportion.
    Error: validation set, batch 128: top-1 42.33 %.
    Cost: 90 x 1,281,167 samples, 4.9e17 operations.
    """
    return TrainingConfig(
        name="owt_2014",
        model=ModelConfig(name="alexnet_owt"),
        optimizer=OptimizerConfig(
            name="sgd_paper",
            learning_rate=0.01,
            reference_batch_size=128,
            schedule="step",
            milestones=(0.25, 0.5, 0.75),
            step_factor=250 ** (-1 / 3),
        ),
        augmentation=AugmentationConfig(crop_size=224),
        global_batch_size=128,
        num_epochs=90,
        checkpoint_interval=1000,
    )


def bn_lars_32k() -> TrainingConfig:
    """Batches of 32,768: batch normalisation, LARS, warm-up, polynomial decay of power 2.

    Source: You, Gitman, Ginsburg: Large batch training of convolutional networks, 2017; You et al.: ImageNet training
    in minutes, 2018. The trust coefficient 0.001, the power and the 100 epochs are theirs; the rate, the warm-up of
    five epochs and the groups of 32 samples are ours. Error: validation set: top-1 41.4 %.
    Cost: 100 x 1,281,167 samples, 5.6e17 operations.
    """
    return TrainingConfig(
        name="bn_lars_32k",
        model=ModelConfig(name="alexnet_bn", batch_norm_group=32),
        optimizer=OptimizerConfig(
            name="lars", learning_rate=10, reference_batch_size=32768, warmup=0.05, schedule="poly", power=2
        ),
        augmentation=AugmentationConfig(crop_size=224),
        global_batch_size=32768,
        num_epochs=100,
        checkpoint_interval=100,
    )


def torchvision_resnet18() -> TrainingConfig:
    """ResNet-18 as torchvision trains it: batch 256, rate 0.1 divided by 10 every 30 epochs, decay 1e-4.

    Source: torchvision's reference scripts and its network, `--model.name torchvision/resnet18`. Departures: those of
    `torchvision_owt`, and batch normalisation over groups of 32 samples, which are what each of the scripts' 8 GPUs
    gets of a batch. Error: centre crop, validation set: top-1 30.24 %, top-5 10.92 %.
    Cost: 90 x 1,281,167 samples, 1.26e18 operations.
    """
    model = ModelConfig(name="torchvision/resnet18")
    optimizer = replace(torchvision_owt().optimizer, learning_rate=0.1, reference_batch_size=256)
    return replace(torchvision_owt(), name="torchvision_resnet18", model=model, optimizer=optimizer)


def mnist_tutorial() -> TrainingConfig:
    """The TensorFlow tutorials' net on 28x28 pictures, as stored; Adam, batch 64.

    Source: AlexNet for MNIST as in TensorFlow's tutorials: the last 2,000 training pictures are the validation set
    (`pipeline.shard --val-last 2000`). The rate, its schedule and the four epochs are ours. Error: for Fashion-MNIST
    see docs/results.md; MNIST was not available.
    Cost: 4 x 58,000 samples, 2.2e14 operations.
    """
    return TrainingConfig(
        name="mnist_tutorial",
        model=ModelConfig(name="alexnet_stride4"),
        optimizer=OptimizerConfig(name="adam", learning_rate=3e-4, weight_decay=0, schedule="linear"),
        augmentation=_AS_STORED,
        global_batch_size=64,
        num_epochs=4,
        checkpoint_interval=1000,
    )


def cifar_tutorial() -> TrainingConfig:
    """The PyTorch tutorials' one-tower net on 32x32 pictures, resized to 227 inside the model; ten epochs.

    Source: AlexNet for CIFAR-10 as in PyTorch's tutorials. Adam, its rate and the batch of 128 are ours: with PyTorch's
    initial weights and three normalisations in a row, SGD needs epochs to improve on the loss of guessing. One file in
    CIFAR-10's binary format has 10,000 pictures.
    Error: see docs/results.md for the datasets that were available; CIFAR-10 was not.
    Cost: 10 x 10,000 samples, 6.8e14 operations.
    """
    return TrainingConfig(
        name="cifar_tutorial",
        model=ModelConfig(name="alexnet_single", resize_to=227),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-4, weight_decay=0),
        augmentation=replace(_AS_STORED, flip=True),
        global_batch_size=128,
        num_epochs=10,
        stuck_after_epochs=3,
        checkpoint_interval=1000,
    )


RECIPES: dict[str, Callable[[], TrainingConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        small_demo,
        synthetic_demo,
        own_pictures,
        krizhevsky_2012,
        caffe_alexnet,
        caffenet,
        torchvision_owt,
        owt_2014,
        bn_lars_32k,
        torchvision_resnet18,
        mnist_tutorial,
        cifar_tutorial,
    )
}


def get_recipe(name: str) -> TrainingConfig:
    """Return a recipe by its name.

    Raises:
        InputError: There is no recipe with this name.
    """
    if name not in RECIPES:
        raise InputError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()
