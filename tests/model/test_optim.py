"""Update rules against their formulas in NumPy, parameter groups, resuming, and what a configuration refuses."""

import copy
import dataclasses
import io
import math

import numpy as np
import pytest
import timm.optim.lars
import torch

from model.optim import build_optimizer, set_learning_rate
from model.optim_config import OptimizerConfig

NAMES = ("sgd", "sgd_paper", "adam", "lars")
RATES = (0.0, 0.1, 0.05, 0.05, 0.01)  # a warm-up begins at 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "sdg"}, "name='sdg': must be one of sgd, sgd_paper, adam, lars"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan: must be above 0"),
        ({"reference_batch_size": 0}, "reference_batch_size=0: must be at least 1"),
        ({"bias_learning_rate_factor": -2.0}, "bias_learning_rate_factor=-2.0: must be above 0"),
        ({"momentum": 1.0}, "momentum=1.0: must lie in"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001: must not be negative"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov=True: needs a momentum"),
        ({"momentum": 0.0, "name": "sgd_paper"}, "momentum=0: without it `sgd_paper` is `sgd`"),
        ({"name": "sgd_paper", "nesterov": True}, "nesterov=True: only sgd and lars use it; leave it at False"),
        ({"name": "adam", "momentum": 0.8}, "momentum=0.8: only sgd and sgd_paper and lars use it; leave it at 0.9"),
        ({"betas": (0.8, 0.9)}, r"betas=\(0.8, 0.9\): only adam use it"),
        ({"name": "adam", "betas": (0.9, 1.0)}, r"betas=.*: must be two numbers in \[0, 1\)"),
        ({"name": "adam", "epsilon": 0.0}, "epsilon=0.0: must be above 0"),
        ({"trust_coefficient": 0.02}, "trust_coefficient=0.02: only lars use it; leave it at 0.001"),
        ({"warmup": 5}, "warmup=5: .* a fraction of the run"),
        ({"schedule": "cosin"}, "schedule='cosin': must be one of constant, step, poly, linear, cosine, plateau"),
        ({"schedule": "step"}, "milestones=.*: the schedule `step` needs them"),
        ({"schedule": "cosine", "milestones": (0.5,)}, "milestones=.*: only step use it"),
        ({"schedule": "step", "milestones": (0.6, 0.3)}, "milestones=.*: must ascend"),
        ({"schedule": "step", "milestones": (30, 60)}, "milestones=.*: .* fractions of the run"),
        ({"schedule": "step", "milestones": (0.5,), "step_factor": 10}, "step_factor=10: must lie in"),
        ({"schedule": "cosine", "step_factor": 0.5}, "step_factor=0.5: only step and plateau use it"),
        ({"schedule": "poly", "power": 0.0}, "power=0.0: must be above 0"),
        ({"schedule": "linear", "power": 1.0}, "power=1.0: only poly use it; leave it at 2.0"),
        ({"schedule": "plateau", "patience": 0}, "patience=0: must be at least 1"),
        ({"schedule": "plateau", "min_improvement": 1.0}, "min_improvement=1.0: must lie in"),
        ({"schedule": "plateau", "max_reductions": -1}, "max_reductions=-1: must not be negative"),
        ({"max_reductions": 2}, "max_reductions=2: only plateau use it; leave it at 3"),
    ],
)
def test_a_field_out_of_range_or_out_of_place_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Linear(3, 2)).double()


def _gradients(num_steps: int, model: torch.nn.Module) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for p in model.parameters()]
        for _ in range(num_steps)
    ]


def _train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rates, gradients) -> None:
    for rate, step_gradients in zip(rates, gradients, strict=True):
        set_learning_rate(optimizer, rate)
        for parameter, gradient in zip(model.parameters(), step_gradients, strict=True):
            parameter.grad = gradient.clone(memory_format=torch.preserve_format)
        optimizer.step()


def _literal(w: np.ndarray, gradients: list[np.ndarray], rates, decay: float, config: OptimizerConfig, adapted: bool):
    """The formulas of the papers and of PyTorch's and timm's documentation, for one tensor."""
    v = np.zeros_like(w)
    m = np.zeros_like(w)
    for step, (r, g) in enumerate(zip(rates, gradients, strict=True), start=1):
        full = g + decay * w
        if config.name == "sgd_paper":
            v = config.momentum * v - decay * r * w - r * g
            w = w + v
        elif config.name == "adam":
            beta_1, beta_2 = config.betas
            m = beta_1 * m + (1 - beta_1) * full
            v = beta_2 * v + (1 - beta_2) * full**2
            w = w - r * (m / (1 - beta_1**step)) / (np.sqrt(v / (1 - beta_2**step)) + config.epsilon)
        else:
            if config.name == "lars" and adapted:
                norm, gradient_norm = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
                scale = config.trust_coefficient * norm / (gradient_norm + decay * norm + 1e-8)
                full = full * (scale if norm > 0 else 1.0)
            v = config.momentum * v + full
            w = w - r * (full + config.momentum * v if config.nesterov else v)
    return w


@pytest.mark.parametrize("decay_biases", [None, True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize(
    "rule",
    [
        {"name": "sgd"},
        {"name": "sgd", "nesterov": True},
        {"name": "sgd", "momentum": 0.0},
        {"name": "sgd_paper", "momentum": 0.8},
        {"name": "adam", "betas": (0.8, 0.95), "epsilon": 1e-3},
        {"name": "lars", "trust_coefficient": 0.02},
        {"name": "lars", "nesterov": True},
    ],
    ids=str,
)
def test_five_steps_at_changing_rates_are_the_formula(rule, factor, weight_decay, decay_biases) -> None:
    config = OptimizerConfig(
        **rule, weight_decay=weight_decay, bias_learning_rate_factor=factor, decay_biases=decay_biases
    )
    model = _model()
    with torch.no_grad():
        model[0].bias.zero_()  # Caffe's start, and a norm of 0 for LARS
    before = [parameter.detach().numpy().copy() for parameter in model.parameters()]
    gradients = _gradients(len(RATES), model)
    _train(model, build_optimizer(model, config), RATES, gradients)
    decayed = config.name != "lars" if decay_biases is None else decay_biases
    for index, (w, parameter) in enumerate(zip(before, model.parameters(), strict=True)):
        is_bias = parameter.ndim == 1
        rates = [rate * (factor if is_bias else 1.0) for rate in RATES]
        decay = 0.0 if is_bias and not decayed else weight_decay
        own = [step_gradients[index].numpy() for step_gradients in gradients]
        expected = _literal(w, own, rates, decay, config, adapted=not is_bias or decayed)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-11, atol=1e-14)


def test_at_a_constant_rate_the_two_momenta_agree_and_after_a_change_they_do_not() -> None:
    for rates, agree in (((0.1,) * 4, True), ((0.1, 0.1, 0.01, 0.01), False)):
        weights = []
        for name in ("sgd", "sgd_paper"):
            model = _model()
            _train(model, build_optimizer(model, OptimizerConfig(name=name)), rates, _gradients(4, model))
            weights.append(model[0].weight.detach())
        assert torch.allclose(*weights, rtol=1e-12, atol=1e-14) == agree


def test_lars_at_a_constant_rate_is_algorithm_1_of_its_paper() -> None:
    model, config = _model(), OptimizerConfig(name="lars", weight_decay=0.01, trust_coefficient=0.02)
    w, gradients = model[0].weight.detach().numpy().copy(), _gradients(4, model)
    _train(model, build_optimizer(model, config), (0.5,) * 4, gradients)
    v = np.zeros_like(w)
    for step_gradients in gradients:
        g = step_gradients[0].numpy()
        local_rate = 0.02 * np.linalg.norm(w) / (np.linalg.norm(g) + 0.01 * np.linalg.norm(w))
        v = 0.9 * v + 0.5 * local_rate * (g + 0.01 * w)
        w = w - v
    # 1e-8 in the denominator, which the paper lacks.
    np.testing.assert_allclose(model[0].weight.detach().numpy(), w, rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_biases_and_scales_form_the_second_group(name) -> None:
    model = _model()
    optimizer = build_optimizer(model, OptimizerConfig(name=name, bias_learning_rate_factor=2.0, decay_biases=False))
    weights, biases = optimizer.param_groups
    assert [id(parameter) for parameter in weights["params"]] == [id(model[0].weight), id(model[2].weight)]
    assert len(biases["params"]) == 4 and id(model[1].weight) in map(id, biases["params"])
    set_learning_rate(optimizer, 0.25)
    assert (weights["lr"], biases["lr"]) == (0.25, 0.5)
    assert (weights["weight_decay"], biases["weight_decay"]) == (5e-4, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_biases_trains(name) -> None:
    model = torch.nn.Linear(3, 2, bias=False)
    before = model.weight.detach().clone()
    _train(model, build_optimizer(model, OptimizerConfig(name=name)), (0.1,), _gradients(1, model))
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_optimizer_goes_on_with_equal_bits(name) -> None:
    config, rates = OptimizerConfig(name=name, bias_learning_rate_factor=2.0), (0.1, 0.1, 0.05, 0.02, 0.01)
    straight = _model().float().to(memory_format=torch.channels_last)
    gradients = _gradients(len(rates), straight)
    _train(straight, build_optimizer(straight, config), rates, gradients)

    first = _model().float().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(first, config)
    _train(first, optimizer, rates[:2], gradients[:2])
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    second = _model().float().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(second, config)
    second.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    _train(second, optimizer, rates[2:], gradients[2:])
    for left, right in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_rate_follows_the_global_batch_where_a_reference_is_given() -> None:
    config = OptimizerConfig(learning_rate=0.01)
    assert config.for_batch_size(1024) == config
    scaled = dataclasses.replace(config, reference_batch_size=128)
    assert scaled.for_batch_size(128).learning_rate == 0.01
    assert scaled.for_batch_size(1024).learning_rate == 0.08
    assert scaled.for_batch_size(1024).for_batch_size(1024).learning_rate == 0.08  # not scaled twice
    assert scaled.for_batch_size(96).learning_rate == pytest.approx(0.0075, rel=1e-15)


@pytest.mark.parametrize("decay_biases", [None, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_timms_and_reads_its_state(nesterov, decay_biases) -> None:
    config = OptimizerConfig(name="lars", nesterov=nesterov, decay_biases=decay_biases, trust_coefficient=0.02)
    ours, theirs = _model(), _model()
    mine = build_optimizer(ours, config)
    settings = {"momentum": config.momentum, "nesterov": nesterov, "trust_coeff": config.trust_coefficient}
    other = timm.optim.lars.Lars(
        [
            {k: v for k, v in group.items() if k != "params"} | {"params": params}
            for group, params in zip(
                mine.param_groups,
                ([p for p in theirs.parameters() if p.ndim > 1], [p for p in theirs.parameters() if p.ndim == 1]),
                strict=True,
            )
        ],
        lr=1.0,
        **settings,
    )
    gradients = _gradients(len(RATES), ours)
    _train(ours, mine, RATES[:2], gradients[:2])
    _train(theirs, other, RATES[:2], gradients[:2])
    mine.load_state_dict(copy.deepcopy(other.state_dict()))  # as in checkpoints of older versions
    _train(ours, mine, RATES[2:], gradients[2:])
    _train(theirs, other, RATES[2:], gradients[2:])
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-13, atol=1e-15)
