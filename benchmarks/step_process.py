"""One process of `benchmarks.training_step`: time a few training steps of one network and print the figures as JSON.

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
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from cluster.worker.precision import forward_context
from model.alexnet import build_model
from model.dropout import CountedDropout
from model.lrn import LocalResponseNorm
from model.lrn_conventions import CONVENTIONS
from model.optim import build_optimizer
from model.optim_config import OptimizerConfig
from model.variants import VARIANTS

TORCHVISION = "torchvision"
_NUM_CLASSES, _WARM_UP_STEPS = 1000, 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case to time.

    Attributes:
        model: Name in `VARIANTS`, or `TORCHVISION` for torchvision's `alexnet`.
        precision: Precision, as in a recipe.
        channels_last: True for channels-last weights and images, else NCHW.
        compiled: True to use torch.compile.
        torch_lrn: True to use PyTorch's local response normalisation instead of this project's.
        dropout_alone: True to time only the dropout layers, forward and backward.
        switches: Fields of `ModelConfig`.
        batch_size: Samples per step.
        num_steps: Number of timed steps, after one warm-up step.
        num_threads: Number of torch's threads.
    """

    model: str
    precision: str = "bfloat16"
    channels_last: bool = True
    compiled: bool = False
    torch_lrn: bool = False
    dropout_alone: bool = False
    switches: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 64
    num_steps: int = 3
    num_threads: int = 2


def run(case: Case) -> dict[str, float]:
    """Return the median time of a step and the peak memory of the process."""
    torch.set_num_threads(case.num_threads)
    step = _dropout_step(case) if case.dropout_alone else _training_step(case)
    seconds = []
    for _ in range(_WARM_UP_STEPS + case.num_steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return {
        "milliseconds_per_step": 1000 * median(seconds[_WARM_UP_STEPS:]),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _training_step(case: Case) -> Callable[[], None]:
    torch.manual_seed(0)
    image_size = 224
    if case.model == TORCHVISION:
        model: nn.Module = torchvision.models.alexnet()
        arguments: tuple[Tensor, ...] = ()
    else:
        model = build_model(case.model, num_classes=_NUM_CLASSES, **case.switches)
        image_size = VARIANTS[case.model].image_size
        arguments = (torch.arange(case.batch_size),)
    if case.torch_lrn:
        _replace_lrn(model)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    images = torch.randn(case.batch_size, 3, image_size, image_size).to(memory_format=layout)
    labels = torch.arange(case.batch_size) % _NUM_CLASSES
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=1e-4))
    forward = torch.compile(model) if case.compiled else model

    def step() -> None:
        with forward_context(case.precision, torch.device("cpu")):
            logits = forward(images, *arguments)
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def _replace_lrn(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, LocalResponseNorm):
                c = CONVENTIONS[module.convention]
                setattr(parent, name, nn.LocalResponseNorm(c.size, alpha=c.alpha * c.size, beta=c.beta, k=c.k))


def _dropout_step(case: Case) -> Callable[[], None]:
    """Return a step of just the model's dropout layers, on activations with their sizes and the step's dtype."""
    model = build_model(case.model, num_classes=_NUM_CLASSES, **case.switches)
    positions = torch.arange(case.batch_size)
    layers = []
    num_units = 0
    for layer in model.classifier:
        if isinstance(layer, nn.Linear):
            num_units = layer.out_features
        elif isinstance(layer, CountedDropout):
            units = num_units or model.classifier[1].in_features
            dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
            layers.append((layer, torch.randn(case.batch_size, units).to(dtype).requires_grad_()))

    def step() -> None:
        for layer, activations in layers:
            output = layer(activations, positions)
            output.backward(output.detach())

    return step


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(Case(**json.loads(sys.argv[1])))) + "\n")
