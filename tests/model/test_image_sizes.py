"""Which sizes of pictures a variant takes: those of which no pixel is left out, and no others in silence."""

import warnings
from dataclasses import asdict

import pytest
import torch
from runs import STORED_SIZES
from torch import nn

from jobs.recipes import RECIPES
from model.alexnet import AlexNet, build_model
from model.alexnet_config import image_sizes
from model.registry import ModelConfig, check_image_size
from model.variants import VARIANTS

FIXED = [("alexnet_2012", None), ("alexnet_bn", None), ("caffenet", None), ("alexnet_single", None)]
PADDED = [(name, padding) for name in ("alexnet_2012", "caffenet") for padding in (0, 1, 2, 3, 5)]


def _fits(config: ModelConfig, size: int) -> bool:
    try:
        check_image_size(config, size)
    except ValueError:
        return False
    return True


def _first_convolution(config: ModelConfig) -> nn.Conv2d:
    model = AlexNet(config, num_classes=2, seed=0)
    made = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    convolution = nn.Conv2d(1, 1, made.kernel_size, made.stride, made.padding)
    nn.init.ones_(convolution.weight)
    return convolution


def _sees_all_in_55_windows(convolution: nn.Conv2d, size: int) -> bool:
    pictures = torch.zeros(1, 1, size, size, requires_grad=True)
    maps = convolution(pictures)
    maps.sum().backward()
    return maps.shape[2:] == (55, 55) and bool((pictures.grad > 0).all())


@pytest.mark.parametrize(("name", "first_padding"), FIXED + PADDED)
def test_where_the_maps_size_is_fixed_exactly_those_fit_of_which_every_pixel_is_seen(name, first_padding):
    config = ModelConfig(name=name, first_padding=first_padding)
    convolution = _first_convolution(config)
    sizes = range(214, 231)
    fitting = [size for size in sizes if _fits(config, size)]
    assert fitting == [size for size in sizes if _sees_all_in_55_windows(convolution, size)] != []


def test_the_sizes_that_the_variants_state_fit():
    taken = {name: image_sizes(ModelConfig(name=name)) for name in VARIANTS}
    assert taken == {
        "alexnet_2012": (223, 225),
        "caffenet": (227, 227),
        "alexnet_bn": (223, 225),
        "alexnet_owt": (63, None),
        "alexnet_single": (227, 227),
        "alexnet_stride4": (1, 220),
        "alexnet_small": (24, None),
    }
    for name, variant in VARIANTS.items():
        check_image_size(ModelConfig(name=name), variant.image_size)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_fit(recipe):
    config = RECIPES[recipe]()
    check_image_size(config.model, config.augmentation.crop_of(STORED_SIZES[recipe]))


@pytest.mark.parametrize(
    ("switches", "size", "message"),
    [
        (
            {"name": "alexnet_2012"},
            227,
            "image_size=227: alexnet_2012 is made for 224 and takes 223 to 225; crop the pictures to that, or resize "
            "them inside the model, resize_to=224",
        ),
        (
            {"name": "alexnet_2012", "first_padding": 0},
            224,
            "image_size=224: alexnet_2012 with first_padding=0 is made for 227; crop the pictures to that, or resize "
            "them inside the model, resize_to=227",
        ),
        (
            {"name": "alexnet_small"},
            22,
            "image_size=22: alexnet_small is made for 26 and takes 24 and more; crop the pictures to that, or resize "
            "them inside the model, resize_to=26",
        ),
    ],
)
def test_other_pictures_are_refused_before_and_in_the_forward_pass(switches, size, message):
    for refuse in (
        lambda: check_image_size(ModelConfig(**switches), size),
        lambda: build_model(**switches, num_classes=2, image_size=size),
        lambda: AlexNet(ModelConfig(**switches), num_classes=2, seed=0)(torch.empty(1, 3, size, size, device="meta")),
    ):
        with pytest.raises(ValueError) as caught:
            refuse()
        assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(224, 227), (227, 224)])
def test_height_and_width_count_each(shape):
    model = AlexNet(ModelConfig(name="alexnet_2012"), num_classes=2, seed=0)
    with pytest.raises(ValueError, match="image_size=227: alexnet_2012 is made for 224"):
        model(torch.empty(1, 3, *shape, device="meta"))


def test_what_pictures_are_resized_to_has_to_fit():
    config = ModelConfig(name="alexnet_2012", resize_to=227)
    message = "resize_to=227: alexnet_2012 is made for 224 and takes 223 to 225; use resize_to=224"
    for refuse in (lambda: check_image_size(config, 32), lambda: build_model(**asdict(config), num_classes=2)):
        with pytest.raises(ValueError) as caught:
            refuse()
        assert str(caught.value) == message
    check_image_size(ModelConfig(name="alexnet_2012", resize_to=224), 32)


def test_the_model_is_compiled_and_exported_as_one_graph():
    model = build_model("alexnet_small", num_classes=2).eval()
    images = torch.randn(2, 3, 26, 26, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's compiler, about itself
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(compiled(images), expected)
    torch.testing.assert_close(exported(images), expected)
