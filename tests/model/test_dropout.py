import pytest
import torch
from torch import Tensor, nn

from model.dropout import CountedDropout, keep_mask, philox_4x32

POSITIONS = torch.arange(64)


def mask(positions: torch.Tensor = POSITIONS, num_units: int = 4096, **changes: object) -> torch.Tensor:
    settings = {"probability": 0.5, "seed": 3, "layer": 1, **changes}
    return keep_mask(positions, num_units, **settings)


# Known answers of the Random123 library (kat_vectors, "philox4x32 10").
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    words = philox_4x32(tuple(torch.tensor([word]) for word in counter), tuple(key))
    assert [int(word) for word in words] == expected


def test_the_stream_is_frozen() -> None:
    """Counter (block, layer, position low, position high), key (seed low, seed high), low half of each word first."""
    seed, layer, position, block = 0x299F31D0A4093822, 7, 2**40 + 5, 3
    counter = tuple(torch.tensor([word]) for word in (block, layer, position & 0xFFFFFFFF, position >> 32))
    words = [int(word) for word in philox_4x32(counter, (0xA4093822, 0x299F31D0))]
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    kept = keep_mask(torch.tensor([position]), 32, probability=0.25, seed=seed, layer=layer)
    assert kept[0, 24:32].tolist() == [half >= 2**14 for half in halves]


def test_a_sample_keeps_its_mask_in_any_batch() -> None:
    whole = mask()
    assert torch.equal(torch.cat([mask(POSITIONS[:5]), mask(POSITIONS[5:6]), mask(POSITIONS[6:])]), whole)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(mask(POSITIONS[order]), whole[order])
    assert torch.equal(mask(num_units=1001), whole[:, :1001])


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 4},
        {"seed": 3 + 2**32},
        {"layer": 2},
        {"positions": POSITIONS + 64},
        {"positions": POSITIONS + 2**32},
    ],
)
def test_each_part_of_the_counter_counts(changes: dict) -> None:
    # Independent fair masks of 262,144 units agree in half of them, give or take 0.001.
    agreement = (mask() == mask(**changes)).double().mean()
    assert abs(agreement - 0.5) < 0.006


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_masks_are_as_random_as_they_should_be(probability: float) -> None:
    kept = mask(probability=probability).double()
    variance = probability * (1 - probability)
    six_deviations = 6 * variance**0.5 / kept.numel() ** 0.5
    assert abs(kept.mean() - (1 - probability)) < six_deviations
    units, samples = kept.mean(dim=0), kept.mean(dim=1)
    assert abs(units.var() / (variance / 64) - 1) < 6 * (2 / 4096) ** 0.5
    assert abs(samples.var() / (variance / 4096) - 1) < 6 * (2 / 64) ** 0.5
    centred = kept - (1 - probability)
    for lag in (1, 2, 4, 8):
        assert abs((centred[:, lag:] * centred[:, :-lag]).mean()) < 6 * variance / (64 * 4000) ** 0.5


def test_survivors_are_scaled_and_the_rest_is_zero() -> None:
    layer = CountedDropout(0.25, seed=3, layer=1)
    activations = 1 + torch.rand(64, 3, 5)
    kept = mask(num_units=15, probability=0.25).view(64, 3, 5)
    torch.testing.assert_close(layer(activations, POSITIONS), torch.where(kept, activations / 0.75, 0.0))


def test_the_dtype_changes_no_mask() -> None:
    layer = CountedDropout(0.5, seed=3, layer=1)
    zeros = [layer(torch.ones(64, 100, dtype=dtype), POSITIONS) == 0 for dtype in (torch.float32, torch.bfloat16)]
    assert torch.equal(*zeros)


def test_the_gradient_passes_where_units_survive() -> None:
    activations = torch.ones(64, 100, requires_grad=True)
    output = CountedDropout(0.5, seed=3, layer=1)(activations, POSITIONS)
    output.sum().backward()
    assert torch.equal(activations.grad, output.detach())


def test_evaluation_is_the_identity() -> None:
    activations = torch.randn(64, 10)
    assert torch.equal(CountedDropout(0.5, seed=0, layer=0).eval()(activations, POSITIONS), activations)
    assert torch.equal(CountedDropout(0.0, seed=0, layer=0)(activations, POSITIONS), activations)


def test_without_positions_torch_draws() -> None:
    layer = CountedDropout(0.5, seed=0, layer=0)
    activations = torch.ones(8, 100)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        expected = torch.nn.functional.dropout(activations, 0.5)
        torch.manual_seed(11)
        assert torch.equal(layer(activations), expected)


def test_the_mean_over_masks_is_the_identity() -> None:
    output = CountedDropout(0.5, seed=3, layer=1)(torch.ones(4096, 64), torch.arange(4096))
    assert abs(output.mean() - 1) < 0.01
    assert set(output.unique().tolist()) == {0.0, 2.0}


class PaperDropout(nn.Module):
    """Section 4.2 of the paper: survivors are left as they are; at test time all outputs are multiplied by 1 - p."""

    def __init__(self, inverted: CountedDropout) -> None:
        super().__init__()
        self.inverted = inverted

    def forward(self, activations: Tensor, positions: Tensor) -> Tensor:
        layer = self.inverted
        if not self.training:
            return activations * (1 - layer.probability)
        settings = {"probability": layer.probability, "seed": layer.seed, "layer": layer.layer}
        return activations * keep_mask(positions, activations.shape[1], **settings)


class TwoLayers(nn.Module):
    """Six inputs, 40 units that are dropped, five outputs; in float64."""

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.hidden, self.dropout, self.output = nn.Linear(6, 40), dropout, nn.Linear(40, 5)
        self.double()

    def forward(self, inputs: Tensor, positions: Tensor) -> Tensor:
        return self.output(self.dropout(self.hidden(inputs).tanh(), positions))


@pytest.mark.parametrize("probability", [0.25, 0.5])
def test_the_papers_dropout_is_the_same_net_with_larger_weights_behind_it(probability: float) -> None:
    """Each statement of CountedDropout's docstring, over some steps of training."""
    q = 1 - probability
    with torch.random.fork_rng():
        torch.manual_seed(5)
        inverted = TwoLayers(CountedDropout(probability, seed=3, layer=1))
        inputs, upstream = torch.randn(64, 6, dtype=torch.float64), torch.randn(64, 5, dtype=torch.float64)
    paper = TwoLayers(PaperDropout(inverted.dropout))
    paper.load_state_dict(inverted.state_dict())
    with torch.no_grad():
        paper.output.weight.div_(q)
    rate, decay = 0.01, 0.1
    behind = inverted.output.weight
    others = [parameter for parameter in inverted.parameters() if parameter is not behind]
    groups = [{"params": others}, {"params": [behind], "lr": q**2 * rate, "weight_decay": decay / q**2}]
    nets = (paper, inverted)
    optimizers = [
        torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
        for parameters in (paper.parameters(), groups)
    ]
    start = behind.detach().clone()
    for step in range(4):
        evaluations = [net.eval()(inputs, POSITIONS) for net in nets]
        outputs = [net.train()(inputs, POSITIONS + 64 * step) for net in nets]
        assert (outputs[0] - evaluations[0]).abs().max() > 0.1
        torch.testing.assert_close(evaluations[0], evaluations[1])
        torch.testing.assert_close(outputs[0], outputs[1])
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            output.backward(upstream)
        for name, parameter in paper.named_parameters():
            scale = 1 / q if name == "output.weight" else 1.0
            torch.testing.assert_close(inverted.get_parameter(name).grad, scale * parameter.grad)
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(inverted.output.weight, q * paper.output.weight)
    assert (behind - start).abs().max() > 0.1


@pytest.mark.parametrize("probability", [0.25, 0.5])
def test_scaling_at_the_test_is_the_papers_rule(probability: float) -> None:
    layer = CountedDropout(probability, seed=3, layer=1, scaling="test")
    literal = PaperDropout(layer)
    activations = torch.randn(len(POSITIONS), 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for training in (True, False):
        expected = literal.train(training)(activations, POSITIONS)
        torch.testing.assert_close(layer.train(training)(activations, POSITIONS), expected, rtol=1e-15, atol=0)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        drawn = layer.train()(activations)
    kept = drawn != 0
    torch.testing.assert_close(drawn[kept], activations[kept], rtol=1e-15, atol=0)
    assert kept.double().mean().item() == pytest.approx(1 - probability, abs=0.05)


@pytest.mark.parametrize(("first", "end"), [(0, 40), (8, 16), (24, 61), (56, 61)])
def test_a_slice_of_the_units_gets_its_columns_of_the_whole_mask(first: int, end: int) -> None:
    assert torch.equal(mask(num_units=end - first, first_unit=first), mask(num_units=61)[:, first:end])
    activations = torch.randn(len(POSITIONS), 61)
    whole = CountedDropout(0.5, seed=3, layer=1)(activations, POSITIONS)
    part = CountedDropout(0.5, seed=3, layer=1, first_unit=first)(activations[:, first:end], POSITIONS)
    assert torch.equal(part, whole[:, first:end])


def test_a_slice_that_begins_within_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="first_unit=12: must be a multiple of 8"):
        CountedDropout(0.5, seed=0, layer=0, first_unit=12)


@pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan")])
def test_an_impossible_probability_is_named(probability: float) -> None:
    with pytest.raises(ValueError, match=f"probability={probability}: must lie in"):
        CountedDropout(probability, seed=0, layer=0)


@pytest.mark.parametrize("positions", [torch.arange(7), torch.arange(8, dtype=torch.int32), torch.arange(8)[:, None]])
def test_positions_that_do_not_fit_are_refused(positions: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"positions: .* must be int64 \(8,\)"):
        CountedDropout(0.5, seed=0, layer=0)(torch.ones(8, 10), positions)


@pytest.mark.gpu
def test_masks_are_the_same_on_a_gpu() -> None:
    assert torch.equal(mask(POSITIONS.cuda()).cpu(), mask())
