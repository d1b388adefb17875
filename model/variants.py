"""The variants of AlexNet, as layer specifications, each with its origin and its exact size.

The comment beside a layer gives the shape of its output: height x width x channels.
"""

from dataclasses import dataclass

from model.layer_specs import (
    BATCH_NORM,
    Activation,
    AdaptivePooling,
    Convolution,
    Dense,
    Dropout,
    Layer,
    MaxPooling,
    Normalization,
    Padding,
    Resizing,
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One architecture; its last dense layer, with one unit per class, is added when it is built.

    Attributes:
        origin: Paper or code that the variant comes from, and how it departs from it.
        features: Layers from the pictures to the feature maps.
        hidden: Layers from the feature maps to the last hidden layer.
        initialization: Name of the default initialisation.
        image_size: Height and width of the pictures that the stated shapes belong to.
        image_sizes: Smallest and largest accepted height and width; None: no upper limit. If the dense layers fix the
            size of the maps, these are the sizes at which the first convolution uses every pixel and gives the stated
            shape.
        num_parameters: Number of parameters at 1000 classes; asserted whenever the variant is built.
    """

    origin: str
    features: tuple[Layer, ...]
    hidden: tuple[Layer, ...]
    initialization: str
    image_size: int
    image_sizes: tuple[int, int | None]
    num_parameters: int


VARIANTS = {
    "alexnet_2012": Variant(
        origin="Krizhevsky, Sutskever, Hinton: ImageNet classification with deep convolutional neural networks, 2012. "
        "The two towers are grouped convolutions; crops of 224 padded by 2 make 55x55, as cuda-convnet's did.",
        features=(
            Convolution(96, 11, stride=4, padding=2),  # 224x224x3 -> 55x55x96
            Activation(),
            Normalization("printed"),
            MaxPooling(3, 2),  # -> 27x27x96
            Convolution(256, 5, padding=2, num_groups=2),  # -> 27x27x256
            Activation(),
            Normalization("printed"),
            MaxPooling(3, 2),  # -> 13x13x256
            Convolution(384, 3, padding=1),  # -> 13x13x384
            Activation(),
            Convolution(384, 3, padding=1, num_groups=2),  # -> 13x13x384
            Activation(),
            Convolution(256, 3, padding=1, num_groups=2),  # -> 13x13x256
            Activation(),
            MaxPooling(3, 2),  # -> 6x6x256
        ),
        hidden=(Dense(4096), Activation(), Dropout(), Dense(4096), Activation(), Dropout()),
        initialization="paper",
        image_size=224,
        image_sizes=(223, 225),  # the windows cover 227 pixels, of which 2 to 4 are padding
        num_parameters=60_965_224,
    ),
    "caffenet": Variant(
        origin="Caffe's bvlc_reference_caffenet: the 2012 net at crops of 227 without padding, pooled before it is "
        "normalised, by Caffe's convention.",
        features=(
            Convolution(96, 11, stride=4),  # 227x227x3 -> 55x55x96
            Activation(),
            MaxPooling(3, 2),  # -> 27x27x96
            Normalization("caffe"),
            Convolution(256, 5, padding=2, num_groups=2),  # -> 27x27x256
            Activation(),
            MaxPooling(3, 2),  # -> 13x13x256
            Normalization("caffe"),
            Convolution(384, 3, padding=1),  # -> 13x13x384
            Activation(),
            Convolution(384, 3, padding=1, num_groups=2),  # -> 13x13x384
            Activation(),
            Convolution(256, 3, padding=1, num_groups=2),  # -> 13x13x256
            Activation(),
            MaxPooling(3, 2),  # -> 6x6x256
        ),
        hidden=(Dense(4096), Activation(), Dropout(), Dense(4096), Activation(), Dropout()),
        initialization="caffe",
        image_size=227,
        image_sizes=(227, 227),
        num_parameters=60_965_224,
    ),
    "alexnet_bn": Variant(
        origin="AlexNet-BN, for large batches: the 2012 net with batch normalisation in place of local response "
        "normalisation (You, Gitman, Ginsburg: Large batch training of convolutional networks, 2017). Departs from "
        "it: statistics are those of groups of consecutive samples, so that they do not depend on the workers.",
        features=(
            Convolution(96, 11, stride=4, padding=2),  # 224x224x3 -> 55x55x96
            Normalization(BATCH_NORM),
            Activation(),
            MaxPooling(3, 2),  # -> 27x27x96
            Convolution(256, 5, padding=2, num_groups=2),  # -> 27x27x256
            Normalization(BATCH_NORM),
            Activation(),
            MaxPooling(3, 2),  # -> 13x13x256
            Convolution(384, 3, padding=1),  # -> 13x13x384
            Activation(),
            Convolution(384, 3, padding=1, num_groups=2),  # -> 13x13x384
            Activation(),
            Convolution(256, 3, padding=1, num_groups=2),  # -> 13x13x256
            Activation(),
            MaxPooling(3, 2),  # -> 6x6x256
        ),
        hidden=(Dense(4096), Activation(), Dropout(), Dense(4096), Activation(), Dropout()),
        initialization="caffe",
        image_size=224,
        image_sizes=(223, 225),
        num_parameters=60_965_928,
    ),
    "alexnet_owt": Variant(
        origin="Krizhevsky: One weird trick for parallelizing convolutional neural networks, 2014, as torchvision's "
        "`alexnet` writes it, whose state dict loads without renaming: one tower, no normalisation, dropout first.",
        features=(
            Convolution(64, 11, stride=4, padding=2),  # 224x224x3 -> 55x55x64
            Activation(),
            MaxPooling(3, 2),  # -> 27x27x64
            Convolution(192, 5, padding=2),  # -> 27x27x192
            Activation(),
            MaxPooling(3, 2),  # -> 13x13x192
            Convolution(384, 3, padding=1),  # -> 13x13x384
            Activation(),
            Convolution(256, 3, padding=1),  # -> 13x13x256
            Activation(),
            Convolution(256, 3, padding=1),  # -> 13x13x256
            Activation(),
            MaxPooling(3, 2),  # -> 6x6x256
            AdaptivePooling(6),  # -> 6x6x256
        ),
        hidden=(Dropout(), Dense(4096), Activation(), Dropout(), Dense(4096), Activation()),
        initialization="torch",
        image_size=224,
        image_sizes=(63, None),  # torchvision's minimum
        num_parameters=61_100_840,
    ),
    "alexnet_single": Variant(
        origin="The one-tower net of PyTorch tutorials: the paper's layers without groups, as blocks of convolution, "
        "activation, normalisation, pooling. Departs from the paper: blocks 1, 2 and 5 are normalised, with alpha over "
        "n and k=2; no activation stands between the dense layers, which are one linear map up to dropout.",
        features=(
            Convolution(96, 11, stride=4),  # 227x227x3 -> 55x55x96
            Activation(),
            Normalization("pytorch"),
            MaxPooling(3, 2),  # -> 27x27x96
            Convolution(256, 5, padding=2),  # -> 27x27x256
            Activation(),
            Normalization("pytorch"),
            MaxPooling(3, 2),  # -> 13x13x256
            Convolution(384, 3, padding=1),  # -> 13x13x384
            Activation(),
            Convolution(384, 3, padding=1),  # -> 13x13x384
            Activation(),
            Convolution(256, 3, padding=1),  # -> 13x13x256
            Activation(),
            Normalization("pytorch"),
            MaxPooling(3, 2),  # -> 6x6x256
        ),
        hidden=(Dropout(), Dense(4096), Dropout(), Dense(4096)),
        initialization="torch",
        image_size=227,
        image_sizes=(227, 227),
        num_parameters=62_378_344,
    ),
    "alexnet_stride4": Variant(
        origin="The net of TensorFlow tutorials for pictures of 28x28: padded to 32, resized to 224 inside the model; "
        "every convolution has stride 4 and TensorFlow's `same` padding; the first two are normalised by TensorFlow's "
        "defaults before their activation. 21,622,154 parameters at 10 classes.",
        features=(
            Padding(2),  # 28x28x3 -> 32x32x3
            Resizing(224),  # -> 224x224x3
            Convolution(96, 11, stride=4, padding="same"),  # -> 56x56x96
            Normalization("tensorflow"),
            Activation(),
            MaxPooling(3, 2),  # -> 27x27x96
            Convolution(256, 5, stride=4, padding="same"),  # -> 7x7x256
            Normalization("tensorflow"),
            Activation(),
            MaxPooling(3, 2),  # -> 3x3x256
            Convolution(384, 3, stride=4, padding="same"),  # -> 1x1x384
            Activation(),
            Convolution(384, 3, stride=4, padding="same"),  # -> 1x1x384
            Activation(),
            Convolution(256, 3, stride=4, padding="same"),  # -> 1x1x256
            Activation(),
        ),
        hidden=(Dense(4096), Activation(), Dropout(), Dense(4096), Activation(), Dropout()),
        initialization="kaiming",
        image_size=28,
        image_sizes=(1, 220),  # sizes that the resizing does not shrink
        num_parameters=25_678_184,
    ),
    "alexnet_small": Variant(
        origin="Ours, for pictures of 24x24 and more: the paper's five convolutions, overlapping pooling and dense "
        "layers with dropout, at the stride of small pictures.",
        features=(
            Convolution(32, 5, padding=2),  # 26x26x3 -> 26x26x32
            Activation(),
            MaxPooling(3, 2),  # -> 12x12x32
            Convolution(64, 3, padding=1),  # -> 12x12x64
            Activation(),
            Convolution(96, 3, padding=1),  # -> 12x12x96
            Activation(),
            Convolution(96, 3, padding=1),  # -> 12x12x96
            Activation(),
            Convolution(96, 3, padding=1),  # -> 12x12x96
            Activation(),
            MaxPooling(3, 2),  # -> 5x5x96
            AdaptivePooling(5),  # -> 5x5x96
        ),
        hidden=(Dense(512), Activation(), Dropout(), Dense(512), Activation(), Dropout()),
        initialization="kaiming",
        image_size=26,
        image_sizes=(24, None),
        num_parameters=2_247_368,
    ),
}
