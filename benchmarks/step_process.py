"""A training step on noise. As a process of `benchmarks.training_step`: time a few steps and print the figures as JSON.

python -m benchmarks.step_process '{"model": "alexnet_2012", "precision": "bfloat16", ...}'
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cluster.run.config import Precision
from cluster.worker.precision import forward_context, place
from model.alexnet import build_model
from model.batch_norm import update_running_statistics
from model.dropout import CountedDropout
from model.lrn import LocalResponseNorm
from model.lrn_conventions import CONVENTIONS
from model.metrics import count_correct
from model.optim import build_optimizer
from model.optim_config import OptimizerConfig, OptimizerName
from model.variants import VARIANTS

TORCHVISION = "torchvision"
_NUM_CLASSES, _WARM_UP_STEPS = 1000, 1
_STEPS_BEFORE_CAPTURE = 3  # in which lazy libraries set themselves up


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case to time.

    Attributes:
        model: Name in `VARIANTS`, or `TORCHVISION` for torchvision's `alexnet`.
        precision: Precision, as in a recipe.
        channels_last: True for channels-last weights and images, else NCHW.
        compiled: True to use torch.compile.
        torch_lrn: True to use PyTorch's local response normalisation instead of this project's.
        torch_dropout: True to use PyTorch's dropout instead of this project's.
        dropout_alone: True to time only the dropout layers, forward and backward.
        switches: Fields of `ModelConfig`.
        optimizer: Name of the optimiser.
        plain_optimizer: True to use torch.optim.SGD with torch's own choice of kernels instead, as most people do.
        device: Device of model and images.
        cuda_graph: True to capture the step as a CUDA graph and replay it; correct samples are not counted then.
        batch_size: Samples per step.
        num_steps: Number of steps that `run` times, after one warm-up step.
        num_threads: Number of torch's threads in `run`.
    """

    model: str
    precision: Precision = "bfloat16"
    channels_last: bool = True
    compiled: bool = False
    torch_lrn: bool = False
    torch_dropout: bool = False
    dropout_alone: bool = False
    switches: dict[str, Any] = field(default_factory=dict)
    optimizer: OptimizerName = "sgd"
    plain_optimizer: bool = False
    device: str = "cpu"
    cuda_graph: bool = False
    batch_size: int = 64
    num_steps: int = 3
    num_threads: int = 2


def run(case: Case) -> dict[str, float]:
    """Return the median time of a step and the peak memory: of the process, or on a GPU of its tensors."""
    torch.set_num_threads(case.num_threads)
    step = dropout_step(case) if case.dropout_alone else training_step(case)
    on_gpu = torch.device(case.device).type == "cuda"
    seconds = []
    for _ in range(_WARM_UP_STEPS + case.num_steps):
        began = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak_bytes = (
        torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return {"milliseconds_per_step": 1000 * median(seconds[_WARM_UP_STEPS:]), "peak_megabytes": peak_bytes / 2**20}


def training_step(case: Case) -> Callable[[], object]:
    """Return a step that does what `cluster.training.Trainer` does with a batch, on noise that lies on the device."""
    torch.manual_seed(0)
    device, image_size = torch.device(case.device), 224
    if case.model == TORCHVISION:
        import torchvision  # here: the other nets need none

        model: nn.Module = torchvision.models.alexnet()
    else:
        model = build_model(case.model, num_classes=_NUM_CLASSES, **case.switches)
        image_size = VARIANTS[case.model].image_size
    if case.torch_lrn:
        _replace_lrn(model)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    place(model, case.precision, device).to(memory_format=layout)
    images = torch.randn(case.batch_size, 3, image_size, image_size).to(device).to(memory_format=layout)
    labels = (torch.arange(case.batch_size) % _NUM_CLASSES).to(device)
    without_positions = case.torch_dropout or case.model == TORCHVISION
    arguments = () if without_positions else (torch.arange(case.batch_size).to(device),)
    config = OptimizerConfig(name=case.optimizer, learning_rate=1e-4)
    optimizer = (
        torch.optim.SGD(model.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay)
        if case.plain_optimizer
        else build_optimizer(model, config)
    )
    forward = torch.compile(model, dynamic=False) if case.compiled else model

    def step() -> object:
        optimizer.zero_grad(set_to_none=True)
        with forward_context(case.precision, device):
            logits = forward(images, *arguments)
        loss_sum = functional.cross_entropy(logits.float(), labels, reduction="sum")
        (loss_sum / case.batch_size).backward()
        # A graph can't hold what waits for the CPU, as counting may.
        correct = loss_sum if case.cuda_graph else count_correct(logits.detach(), labels, ks=(1,))[0]
        optimizer.step()
        update_running_statistics(model, lambda total: total)
        return torch.stack([loss_sum.detach().double(), correct.detach().double()])

    return _captured(step) if case.cuda_graph else step


def _captured(step: Callable[[], object]) -> Callable[[], object]:
    """Capture a step as a CUDA graph and return what replays it."""
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(_STEPS_BEFORE_CAPTURE):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


def _replace_lrn(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, LocalResponseNorm):
                c = CONVENTIONS[module.convention]
                setattr(parent, name, nn.LocalResponseNorm(c.size, alpha=c.alpha * c.size, beta=c.beta, k=c.k))


def dropout_step(case: Case) -> Callable[[], object]:
    """Return a step of just the model's dropout layers, on activations with their sizes and the step's dtype."""
    model = build_model(case.model, num_classes=_NUM_CLASSES, **case.switches)
    positions = torch.arange(case.batch_size).to(case.device)
    layers = []
    num_units = 0
    for layer in model.classifier:
        if isinstance(layer, nn.Linear):
            num_units = layer.out_features
        elif isinstance(layer, CountedDropout):
            units = num_units or model.classifier[1].in_features
            dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
            activations = torch.randn(case.batch_size, units).to(case.device, dtype).requires_grad_()
            layers.append((layer.to(case.device), activations))

    def step() -> None:
        for layer, activations in layers:
            output = layer(activations, positions)
            output.backward(output.detach())

    return _captured(step) if case.cuda_graph else step


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(Case(**json.loads(sys.argv[1])))) + "\n")
