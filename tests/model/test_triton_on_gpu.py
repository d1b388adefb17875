"""What of the Triton kernels only a GPU can show."""

import copy
from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn

from model.dropout import CountedDropout
from model.lrn import LocalResponseNorm
from model.lrn_conventions import CONVENTIONS
from model.triton_support import triton_runs_on

pytestmark = pytest.mark.gpu


class Net(nn.Module):
    """Both layers between others that have weights."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 32, 3), nn.Linear(32 * 6 * 6, 5)
        self.norm, self.dropout = LocalResponseNorm(), CountedDropout(0.5, seed=3, layer=2)

    def forward(self, images: Tensor, positions: Tensor) -> Tensor:
        hidden = self.norm(self.convolution(images).relu()).flatten(1)
        return self.linear(self.dropout(hidden, positions))


@pytest.fixture
def step() -> tuple[Net, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[0]):
        torch.manual_seed(1)
        net = Net().cuda().to(memory_format=torch.channels_last)
        images = 30 * torch.randn(4, 3, 8, 8, device="cuda").contiguous(memory_format=torch.channels_last)
    return net, images, torch.arange(4, device="cuda") + 2**40


def test_triton_runs_here() -> None:
    assert triton_runs_on(torch.device("cuda"))


def test_a_step_never_waits_for_the_gpu(step: tuple[Net, Tensor, Tensor]) -> None:
    net, images, positions = step
    net(images, positions).sum().backward()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            output = net(images, positions)
        output.float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_gradients_are_those_of_the_cpu(step: tuple[Net, Tensor, Tensor]) -> None:
    net, images, positions = step
    exact = copy.deepcopy(net).cpu().double()
    exact(images.cpu().double(), positions.cpu()).square().sum().backward()
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        net(images, positions).square().sum().backward()
    finally:
        torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before
    for ours, theirs in zip(net.parameters(), exact.parameters(), strict=True):
        error = (ours.grad.cpu().double() - theirs.grad).norm() / theirs.grad.norm()
        assert error < 1e-5


def test_the_compiled_step_is_the_same(step: tuple[Net, Tensor, Tensor]) -> None:
    net, images, positions = step
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True)
    for network in (net, compiled):
        network(images, positions).square().sum().backward()
    for ours, theirs in zip(compiled.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3 * theirs.grad.abs().max().item())


def test_more_values_than_31_bits_can_count() -> None:
    from model import dropout_triton, lrn_triton

    num_rows = 2**31 // 256 + 1000
    values = torch.zeros(num_rows, 256, dtype=torch.bfloat16, device="cuda")
    values[-1] = torch.linspace(-30, 30, 256)
    activations = values.view(1, num_rows, 1, 256).permute(0, 3, 1, 2)
    constants = asdict(CONVENTIONS["printed"])
    last = activations[:, :, -1:].cpu().cuda().contiguous(memory_format=torch.channels_last)
    result = lrn_triton.normalize(activations, **constants)
    assert torch.equal(result[:, :, -1:], lrn_triton.normalize(last, **constants))
    del result
    positions = torch.arange(num_rows, device="cuda")
    dropped = dropout_triton.drop(values, positions, 2.0, 2**15, 3, 1, 0)
    assert torch.equal(dropped[-1:], dropout_triton.drop(values[-1:].clone(), positions[-1:], 2.0, 2**15, 3, 1, 0))
