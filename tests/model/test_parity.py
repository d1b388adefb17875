"""The models against code that no one here wrote: torchvision's AlexNet, ONNX Runtime, ONNX's reference, torch's LRN.

The ONNX graphs are written out from the paper, the published prototxt and TensorFlow's defaults, with Caffe's names of
the layers. Of ours they take the weights alone, as inputs of the graph.
"""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from model.alexnet import build_model
from model.lrn import LocalResponseNorm
from model.lrn_conventions import CONVENTIONS

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


def random_tensor(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return scale * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(4))


# torchvision


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """Our alexnet_owt and torchvision's, of the same weights."""
    model, peer = build_model("alexnet_owt", num_classes=1000), torchvision.models.alexnet(weights=None)
    model.load_state_dict(peer.state_dict(), strict=True)
    return model, peer


@pytest.mark.parametrize("training", [False, True])
def test_alexnet_owt_is_torchvisions(pair: tuple[nn.Module, nn.Module], training: bool) -> None:
    images, labels = random_tensor(2, 3, 224, 224), torch.tensor([7, 999])
    results = []
    for net in pair:
        net.train(training).zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(11)  # both draw their masks from torch's generator, so they stand at the same places
            logits = net(images)
        cross_entropy(logits, labels).backward()
        results.append((logits, dict(net.named_parameters())))
    (logits, parameters), (expected_logits, expected) = results
    assert expected_logits.std() > 1e-3
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-7)
    assert parameters.keys() == expected.keys()
    for name, parameter in parameters.items():
        assert parameter.grad is not None and parameter.grad.any(), name
        largest = float(expected[name].grad.abs().max())
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-5, atol=1e-5 * largest)


# ONNX


class Chain:
    """Nodes one behind the other, from `images` to `last`."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.last = "images"

    def add(self, operator: str, *inputs: str, **attributes: object) -> "Chain":
        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [self.last, *inputs], [output], **attributes))
        self.last = output
        return self

    def convolution(self, name: str, **attributes: object) -> "Chain":
        return self.add("Conv", f"{name}.weight", f"{name}.bias", **attributes)

    def normalization(self, size: int, alpha: float, beta: float, bias: float) -> "Chain":
        """ONNX divides alpha by the size."""
        return self.add("LRN", size=size, alpha=alpha, beta=beta, bias=bias)

    def pooling(self) -> "Chain":
        return self.add("MaxPool", kernel_shape=[3, 3], strides=[2, 2])

    def dense(self, name: str) -> "Chain":
        return self.add("Gemm", f"{name}.weight", f"{name}.bias", transB=1)

    def to_model(self, inputs: dict[str, np.ndarray]) -> onnx.ModelProto:
        """Make a model whose inputs have these names, dtypes and shapes."""
        kinds = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in inputs.items()
        ]
        result = helper.make_tensor_value_info(self.last, kinds[0].type.tensor_type.elem_type, None)
        graph = helper.make_graph(self.nodes, "parity", kinds, [result])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def run_reference(self, inputs: dict[str, np.ndarray]) -> Tensor:
        """Compute with ONNX's own evaluator, in NumPy."""
        return torch.from_numpy(ReferenceEvaluator(self.to_model(inputs)).run([self.last], inputs)[0])

    def run_runtime(self, inputs: dict[str, np.ndarray]) -> Tensor:
        """Compute with ONNX Runtime, as the nodes say: nothing is fused or rearranged."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        model = self.to_model(inputs).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run([self.last], inputs)[0])


def dense_layers(chain: Chain) -> Chain:
    return chain.add("Flatten").dense("fc6").add("Relu").dense("fc7").add("Relu").dense("fc8")


def upper_convolutions(chain: Chain) -> Chain:
    """The paper's third to fifth convolution, and what follows: the fourth and fifth see their own tower alone."""
    chain.convolution("conv3", pads=[1] * 4).add("Relu")
    chain.convolution("conv4", pads=[1] * 4, group=2).add("Relu")
    return dense_layers(chain.convolution("conv5", pads=[1] * 4, group=2).add("Relu").pooling())


def alexnet_2012() -> Chain:
    """Sections 3.3 to 3.5 of the paper."""
    chain = Chain().convolution("conv1", strides=[4, 4], pads=[2] * 4).add("Relu")
    chain.normalization(5, alpha=5 * 1e-4, beta=0.75, bias=2.0).pooling()
    chain.convolution("conv2", pads=[2] * 4, group=2).add("Relu")
    chain.normalization(5, alpha=5 * 1e-4, beta=0.75, bias=2.0).pooling()
    return upper_convolutions(chain)


def caffenet() -> Chain:
    """Caffe's bvlc_reference_caffenet/deploy.prototxt."""
    chain = Chain().convolution("conv1", strides=[4, 4]).add("Relu").pooling()
    chain.normalization(5, alpha=1e-4, beta=0.75, bias=1.0)
    chain.convolution("conv2", pads=[2] * 4, group=2).add("Relu").pooling()
    chain.normalization(5, alpha=1e-4, beta=0.75, bias=1.0)
    return upper_convolutions(chain)


def alexnet_stride4() -> Chain:
    """TensorFlow's padding `same` is ONNX's SAME_UPPER; tf.nn.local_response_normalization divides nothing."""
    same = {"strides": [4, 4], "auto_pad": "SAME_UPPER"}
    chain = Chain().add("Pad", "pads")
    chain.add("Resize", "", "", "sizes", mode="linear", coordinate_transformation_mode="half_pixel")
    for name in ("conv1", "conv2"):
        chain.convolution(name, **same).normalization(11, alpha=11 * 1.0, beta=0.5, bias=1.0).add("Relu").pooling()
    for name in ("conv3", "conv4", "conv5"):
        chain.convolution(name, **same).add("Relu")
    return dense_layers(chain)


NO_EXTRAS: dict[str, list[int]] = {}


@pytest.mark.parametrize(
    ("write", "image_size", "extras"),
    [
        (alexnet_2012, 224, NO_EXTRAS),
        (caffenet, 227, NO_EXTRAS),
        (alexnet_stride4, 28, {"pads": [0, 0, 2, 2, 0, 0, 2, 2], "sizes": [2, 3, 224, 224]}),
    ],
    ids=["alexnet_2012", "caffenet", "alexnet_stride4"],
)
def test_a_whole_model_equals_its_source_under_onnx_runtime(
    write: Callable[[], Chain], image_size: int, extras: dict[str, list[int]]
) -> None:
    model = build_model(write.__name__, num_classes=10, initialization="kaiming").eval()
    weighted = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    images = random_tensor(2, 3, image_size, image_size, scale=60)  # grey levels, so that the energies weigh
    inputs = {"images": images.numpy()} | {name: np.array(value, dtype=np.int64) for name, value in extras.items()}
    with torch.no_grad():
        for name, layer in zip(LAYERS, weighted, strict=True):
            layer.bias.copy_(random_tensor(len(layer.bias), scale=float(layer.weight.std())))
            inputs |= {f"{name}.weight": layer.weight.numpy(), f"{name}.bias": layer.bias.numpy()}
        logits = model(images)
    expected = write().run_runtime(inputs)
    largest = float(expected.abs().max())
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * largest)
    assert (expected[0] - expected[1]).abs().max() > 0.02 * largest, "the logits hardly depend on the pictures"


@pytest.mark.parametrize("place", [4, 10, 12])
def test_two_towers_are_onnxs_grouped_convolution(place: int) -> None:
    layer = build_model("alexnet_2012", num_classes=1, initialization="kaiming").features[place]
    weight, bias = layer.weight.detach().double(), random_tensor(len(layer.bias), dtype=torch.float64)
    maps = random_tensor(1, 2 * weight.shape[1], 4, 3, dtype=torch.float64)
    layer.to(torch.float64)
    with torch.no_grad():
        layer.bias.copy_(bias)
    chain = Chain().convolution("conv", pads=[layer.padding[0]] * 4, group=2)
    inputs = {"images": maps.numpy(), "conv.weight": weight.numpy(), "conv.bias": bias.numpy()}
    torch.testing.assert_close(layer(maps).detach(), chain.run_reference(inputs), rtol=1e-10, atol=1e-10)


def lrn_chain(convention: str) -> Chain:
    constants = CONVENTIONS[convention]
    alpha = constants.alpha * constants.size
    return Chain().normalization(constants.size, alpha=alpha, beta=constants.beta, bias=constants.k)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_normalization_is_onnxs(convention: str) -> None:
    activations = random_tensor(2, 96, 5, 4, scale=60)
    expected = lrn_chain(convention).run_runtime({"images": activations.numpy()})
    torch.testing.assert_close(LocalResponseNorm(convention)(activations), expected, rtol=1e-5, atol=1e-6)
    # As many samples as channels: onnx 1.23's reference evaluator sums so many channels as there are samples.
    square = random_tensor(16, 16, 3, 2, scale=60, dtype=torch.float64)
    expected = lrn_chain(convention).run_reference({"images": square.numpy()})
    torch.testing.assert_close(LocalResponseNorm(convention)(square), expected, rtol=1e-7, atol=1e-9)


# torch


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_derivative_of_normalization_is_torchs(convention: str, memory_format: torch.memory_format) -> None:
    constants = CONVENTIONS[convention]
    peer = nn.LocalResponseNorm(constants.size, constants.alpha * constants.size, constants.beta, constants.k)
    activations = random_tensor(2, 24, 3, 4, scale=60, dtype=torch.float64).to(memory_format=memory_format)
    upstream = random_tensor(2, 24, 3, 4, dtype=torch.float64)
    results = []
    for layer in (LocalResponseNorm(convention), peer):
        leaf = activations.clone().requires_grad_()
        output = layer(leaf)
        results.append((output, *torch.autograd.grad(output, leaf, upstream)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
