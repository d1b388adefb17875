from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.alexnet import AlexNet, build_model
from model.dropout import CountedDropout
from model.initialization import initialize
from model.layer_specs import Convolution
from model.layers import build_layers
from model.lrn import LocalResponseNorm
from model.registry import ModelConfig
from model.variants import VARIANTS


def on_meta(name: str, num_classes: int = 1000) -> AlexNet:
    return AlexNet(ModelConfig(name=name), num_classes=num_classes, seed=0)


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}


def random_images(batch: int, size: int) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(4))


def test_alexnet_2012_has_the_papers_parameters_layer_by_layer() -> None:
    model = on_meta("alexnet_2012")
    weighted = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    counts = [layer.weight.numel() + layer.bias.numel() for layer in weighted]
    assert counts == [34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000]
    assert sum(counts) == 60_965_224


def test_alexnet_owt_takes_torchvisions_state_dict() -> None:
    # torchvision.models.alexnet().state_dict(), in its order.
    expected = {
        "features.0.weight": (64, 3, 11, 11),
        "features.0.bias": (64,),
        "features.3.weight": (192, 64, 5, 5),
        "features.3.bias": (192,),
        "features.6.weight": (384, 192, 3, 3),
        "features.6.bias": (384,),
        "features.8.weight": (256, 384, 3, 3),
        "features.8.bias": (256,),
        "features.10.weight": (256, 256, 3, 3),
        "features.10.bias": (256,),
        "classifier.1.weight": (4096, 9216),
        "classifier.1.bias": (4096,),
        "classifier.4.weight": (4096, 4096),
        "classifier.4.bias": (4096,),
        "classifier.6.weight": (1000, 4096),
        "classifier.6.bias": (1000,),
    }
    model = on_meta("alexnet_owt")
    assert list(parameter_shapes(model).items()) == list(expected.items())
    assert sum(parameter.numel() for parameter in model.parameters()) == 61_100_840


@pytest.mark.parametrize(
    ("name", "image_size", "convolutions", "pools"),
    [
        (
            "alexnet_2012",
            224,
            [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)],
            [(96, 27, 27), (256, 13, 13), (256, 6, 6)],
        ),
        (
            "alexnet_owt",
            224,
            [(64, 55, 55), (192, 27, 27), (384, 13, 13), (256, 13, 13), (256, 13, 13)],
            [(64, 27, 27), (192, 13, 13), (256, 6, 6), (256, 6, 6)],
        ),
        (
            "caffenet",
            227,
            [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)],
            [(96, 27, 27), (256, 13, 13), (256, 6, 6)],
        ),
        (
            "alexnet_single",
            227,
            [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)],
            [(96, 27, 27), (256, 13, 13), (256, 6, 6)],
        ),
    ],
)
def test_shapes_are_the_papers(
    name: str, image_size: int, convolutions: list[tuple[int, ...]], pools: list[tuple[int, ...]]
) -> None:
    activations = torch.empty(1, 3, image_size, image_size, device="meta")
    shapes: dict[type, list[tuple[int, ...]]] = {nn.Conv2d: [], nn.MaxPool2d: [], nn.AdaptiveAvgPool2d: []}
    for layer in on_meta(name).features:
        activations = layer(activations)
        if type(layer) in shapes:
            shapes[type(layer)].append(tuple(activations.shape[1:]))
    assert shapes[nn.Conv2d] == convolutions
    assert shapes[nn.MaxPool2d] + shapes[nn.AdaptiveAvgPool2d] == pools


def test_alexnet_2012_equals_two_towers_written_out() -> None:
    """Layer by layer from the paper's figure 2: two half-sized nets that see each other in conv3 only."""
    features = on_meta("alexnet_2012").features.to_empty(device="cpu")
    initialize(features, "kaiming", seed=1)
    conv = {place: features[place] for place in (0, 4, 8, 10, 12)}
    images = random_images(2, 224)

    def tower(activations: Tensor, place: int, half: int, **settings: int) -> Tensor:
        filters = len(conv[place].weight) // 2
        own = slice(half * filters, (half + 1) * filters)
        return functional.conv2d(activations, conv[place].weight[own], conv[place].bias[own], **settings).relu()

    def normalize_and_pool(towers: list[Tensor]) -> list[Tensor]:
        normalized = functional.local_response_norm(torch.cat(towers, dim=1), 5, alpha=5e-4, beta=0.75, k=2)
        return list(functional.max_pool2d(normalized, 3, 2).chunk(2, dim=1))

    with torch.no_grad():
        towers = normalize_and_pool([tower(images, 0, half, stride=4, padding=2) for half in (0, 1)])
        towers = normalize_and_pool([tower(towers[half], 4, half, padding=2) for half in (0, 1)])
        both = torch.cat(towers, dim=1)
        towers = [tower(both, 8, half, padding=1) for half in (0, 1)]
        for place in (10, 12):
            towers = [tower(towers[half], place, half, padding=1) for half in (0, 1)]
        expected = functional.max_pool2d(torch.cat(towers, dim=1), 3, 2)
        torch.testing.assert_close(features(images), expected, rtol=1e-4, atol=1e-4)
    assert [layer.convention for layer in features if isinstance(layer, LocalResponseNorm)] == ["printed", "printed"]


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("alexnet_2012", "Linear ReLU CountedDropout Linear ReLU CountedDropout Linear"),
        ("alexnet_owt", "CountedDropout Linear ReLU CountedDropout Linear ReLU Linear"),
        ("alexnet_single", "CountedDropout Linear CountedDropout Linear Linear"),
    ],
)
def test_dropout_stands_where_its_source_has_it(name: str, order: str) -> None:
    classifier = on_meta(name).classifier
    assert " ".join(type(layer).__name__ for layer in classifier) == order
    dropouts = [layer for layer in classifier if isinstance(layer, CountedDropout)]
    assert [layer.probability for layer in dropouts] == [0.5, 0.5]
    assert dropouts[0].layer != dropouts[1].layer


def test_caffenet_pools_before_it_normalises() -> None:
    names = [type(layer).__name__ for layer in on_meta("caffenet").features[:8]]
    assert names == ["Conv2d", "ReLU", "MaxPool2d", "LocalResponseNorm"] * 2


def test_alexnet_stride4_has_the_tutorials_parameters_and_shapes() -> None:
    model = on_meta("alexnet_stride4", 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 21_622_154
    activations, shapes = torch.empty(1, 3, 28, 28, device="meta"), []
    for layer in model.features:
        activations = layer(activations)
        shapes.append(tuple(activations.shape[1:]))
    assert list(dict.fromkeys(shapes)) == [
        (3, 32, 32),
        (3, 224, 224),
        (96, 56, 56),
        (96, 27, 27),
        (256, 7, 7),
        (256, 3, 3),
        (384, 1, 1),
        (256, 1, 1),
    ]
    names = [type(layer).__name__ for layer in model.features]
    assert names[3:6] == ["LocalResponseNorm", "ReLU", "MaxPool2d"] == names[7:10]


@pytest.mark.parametrize(("size", "kernel_size", "stride"), [(224, 11, 4), (27, 5, 4), (3, 3, 4), (1, 3, 4), (9, 4, 1)])
def test_same_padding_is_tensorflows(size: int, kernel_size: int, stride: int) -> None:
    """Written out: window i covers the pixels from i * stride - before; the odd zero lies at the end."""
    image = random_images(1, size)
    layers, _ = build_layers(
        [Convolution(2, kernel_size, stride=stride, padding="same")], image.to("meta"), dropout=0, seed=0
    )
    layers.to_empty(device="cpu")
    initialize(layers, "kaiming", seed=1)
    (convolution,) = [layer for layer in layers.modules() if isinstance(layer, nn.Conv2d)]
    num_windows = -(-size // stride)
    before = max((num_windows - 1) * stride + kernel_size - size, 0) // 2
    wide = torch.zeros(1, 3, size + 2 * kernel_size, size + 2 * kernel_size)
    wide[:, :, kernel_size : kernel_size + size, kernel_size : kernel_size + size] = image
    starts = [kernel_size - before + i * stride for i in range(num_windows)]
    windows = torch.stack(
        [wide[0, :, y : y + kernel_size, x : x + kernel_size].flatten() for y in starts for x in starts]
    )
    with torch.no_grad():
        expected = (windows @ convolution.weight.flatten(1).T + convolution.bias).T.reshape(
            1, 2, num_windows, num_windows
        )
        torch.testing.assert_close(layers(image), expected, rtol=1e-5, atol=1e-5)


def test_switches_take_one_idea_away() -> None:
    def layers(**switches: object) -> list[nn.Module]:
        return list(AlexNet(ModelConfig(name="alexnet_2012", **switches), num_classes=1000, seed=0).modules())

    def kinds(**switches: object) -> set[str]:
        return {type(layer).__name__ for layer in layers(**switches)}

    assert kinds() - kinds(normalization="none") == {"LocalResponseNorm"}
    assert kinds(activation="tanh") ^ kinds() == {"Tanh", "ReLU"}
    norms = [layer for layer in layers(normalization="caffe") if isinstance(layer, LocalResponseNorm)]
    assert [norm.convention for norm in norms] == ["caffe", "caffe"]
    pools = [layer for layer in layers(overlapping_pooling=False) if isinstance(layer, nn.MaxPool2d)]
    assert {(pool.kernel_size, pool.stride) for pool in pools} == {(2, 2)}
    for num_towers, total in ((1, 62_378_344), (2, 60_965_224)):
        model = AlexNet(ModelConfig(name="alexnet_2012", num_towers=num_towers), num_classes=1000, seed=0)
        assert sum(parameter.numel() for parameter in model.parameters()) == total
        groups = [layer.groups for layer in model.features if isinstance(layer, nn.Conv2d)]
        assert groups == [1, num_towers, 1, num_towers, num_towers]


def test_the_bias_start_is_that_of_the_papers_layers() -> None:
    model = build_model("alexnet_small", num_classes=5, initialization="caffe", initial_bias=0.7)
    starts = [float(layer.bias[0].detach()) for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert starts == pytest.approx([0, 0.7, 0, 0.7, 0.7, 0.7, 0.7, 0])


@pytest.mark.parametrize("image_size", [24, 26, 28, 32, 56, 64])
def test_alexnet_small_takes_any_small_picture(image_size: int) -> None:
    model = build_model("alexnet_small", num_classes=7, image_size=image_size)
    logits = model(random_images(2, image_size), torch.arange(2))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_a_batch_equals_its_slices() -> None:
    model = build_model("alexnet_small", num_classes=10, seed=3)
    images, positions = random_images(8, 26), torch.arange(8) + 2**33
    with torch.no_grad():
        whole = model(images, positions)
        slices = torch.cat([model(images[rows], positions[rows]) for rows in (slice(0, 1), slice(1, 4), slice(4, 8))])
        torch.testing.assert_close(slices, whole, rtol=1e-5, atol=1e-5)
        elsewhere = model(images, positions + 8)
    assert (elsewhere - whole).abs().max() > 1e-2


def test_memory_format_and_evaluation_leave_the_logits_alone() -> None:
    model = build_model("alexnet_small", num_classes=10).eval()
    images = random_images(4, 26)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(model(images, torch.arange(4)), expected)
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)


def test_the_seed_makes_the_weights_and_the_masks() -> None:
    first, again, other = (build_model("alexnet_small", num_classes=10, seed=seed) for seed in (5, 5, 6))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
    assert not torch.equal(first.features[0].weight, other.features[0].weight)
    assert [layer.seed for layer in other.modules() if isinstance(layer, CountedDropout)] == [6, 6]


@pytest.mark.parametrize("name", VARIANTS)
def test_any_number_of_classes_keeps_the_rest(name: str) -> None:
    shapes, more = parameter_shapes(on_meta(name, 10)), parameter_shapes(on_meta(name, 1000))
    assert [key for key in shapes if shapes[key] != more[key]] == list(shapes)[-2:]


def test_the_parameter_count_is_asserted(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = VARIANTS["alexnet_2012"]
    monkeypatch.setitem(VARIANTS, "alexnet_2012", replace(variant, features=variant.features[:-1]))
    with pytest.raises(AssertionError, match=r"alexnet_2012 has \d+ parameters at 10 classes"):
        on_meta("alexnet_2012", 10)


def test_config_fields_are_arguments() -> None:
    config = ModelConfig(name="alexnet_small", initialization="paper", dropout=0.3)
    model = build_model(**asdict(config), num_classes=10)
    assert [layer.probability for layer in model.modules() if isinstance(layer, CountedDropout)] == [0.3, 0.3]
    assert model.features[0].weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "alexnet"}, "name='alexnet': must be one of alexnet_2012, caffenet, alexnet_bn, alexnet_owt, "),
        ({"initialization": "xavier"}, "initialization='xavier': must be one of paper, caffe, torch, kaiming"),
        ({"dropout": 1.0}, "dropout=1.0: must lie in"),
        ({"dropout_scaling": "never"}, "dropout_scaling='never': must be one of training, test"),
        ({"activation": "gelu"}, "activation='gelu': must be one of relu, tanh"),
        (
            {"normalization": "layer"},
            "normalization='layer': must be one of none, batch, printed, caffe, pytorch, tensorflow",
        ),
        ({"num_towers": 3}, "num_towers=3: must be 1 or 2"),
    ],
)
def test_a_field_out_of_range_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"name": "alexnet_small", **changes})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("alexnet_small", {"num_classes": 0}, "num_classes=0: must be at least 1"),
        ("alexnet_small", {"image_size": 6}, "image_size=6: alexnet_small is made for"),
        ("alexnet_2012", {"image_size": 64}, "image_size=64: alexnet_2012 is made for 224"),
        ("alexnet_2012", {"image_size": 256}, "image_size=256: alexnet_2012 is made for 224"),
    ],
)
def test_arguments_that_do_not_fit_are_named(name: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, **{"num_classes": 10, **changes})


def test_pictures_of_227_need_no_padding() -> None:
    unpadded = build_model("alexnet_2012", num_classes=3, image_size=227, first_padding=0).eval()
    padded = build_model("alexnet_2012", num_classes=3, image_size=224).eval()
    assert parameter_shapes(unpadded) == parameter_shapes(padded)
    images = random_images(1, 224)
    # 224 with two zeros around it is 228, of which the windows of 11 at every fourth pixel see 227.
    torch.testing.assert_close(unpadded(functional.pad(images, (2, 1, 2, 1))), padded(images))
    with pytest.raises(ValueError, match="image_size=224: alexnet_2012"):
        build_model("alexnet_2012", num_classes=3, image_size=224, first_padding=0)


def test_pictures_are_resized_inside_the_model() -> None:
    model = build_model("alexnet_small", num_classes=3, image_size=13, resize_to=26).eval()
    plain = build_model("alexnet_small", num_classes=3).eval()
    images = random_images(2, 13)
    torch.testing.assert_close(model(images), plain(functional.interpolate(images, size=(26, 26), mode="bilinear")))


def test_channel_order_is_that_of_the_first_weights() -> None:
    rgb = build_model("alexnet_small", num_classes=3).eval()
    bgr = build_model("alexnet_small", num_classes=3, channel_order="bgr").eval()
    images = random_images(2, 26)
    torch.testing.assert_close(bgr(images), rgb(images[:, [2, 1, 0]]), rtol=0, atol=0)
    with torch.no_grad():
        bgr.features[0].weight.copy_(rgb.features[0].weight.flip(1))
    torch.testing.assert_close(bgr(images), rgb(images))
