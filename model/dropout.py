"""Dropout with counter-based masks: a mask is a pure function of (seed, position, layer, unit).

A sample's place in the endless stream of samples (`position`, which also determines the epoch) selects its mask, so the
masks are the same on one worker and on sixteen, in a straight or a resumed run, on CPU and GPU, and in any dtype. The
generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): the 64-bit seed is its
key, and its 128-bit counter is

    (block of 8 units, layer, position's low 32 bits, position's high 32 bits).

One block of output is 128 bits: 16 for each of 8 units. Probabilities are therefore multiples of 2^-16, and the mask of
a slice of a layer's units can be computed alone if it begins at a multiple of 8. On a GPU one kernel,
`model/dropout_triton.py`, computes the same bits and applies them.
"""

import torch
from torch import Tensor, nn

from model.layer_specs import DropoutScaling
from model.triton_support import triton_runs_on

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_BLOCK = 8  # units per counter


def philox_4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Turn counters into random bits with ten rounds of Philox4x32.

    Args:
        counter: Four int64 tensors of values in [0, 2^32) that broadcast against each other.
        key: Two integers in [0, 2^32).

    Returns:
        Four int64 tensors of the broadcast shape, uniform in [0, 2^32).
    """
    word_0, word_1, word_2, word_3 = counter
    key_0, key_1 = key
    for _ in range(10):
        # The 64-bit products may overflow into the sign bit, which the mask removes.
        product_0, product_1 = word_0 * _MULTIPLIERS[0], word_2 * _MULTIPLIERS[1]
        word_0 = (product_1 >> 32).bitwise_and(_WORD) ^ word_1 ^ key_0
        word_2 = (product_0 >> 32).bitwise_and(_WORD) ^ word_3 ^ key_1
        word_1, word_3 = product_1.bitwise_and_(_WORD), product_0.bitwise_and_(_WORD)
        key_0, key_1 = (key_0 + _KEY_STEPS[0]) & _WORD, (key_1 + _KEY_STEPS[1]) & _WORD
    return word_0, word_1, word_2, word_3


def keep_mask(
    positions: Tensor, num_units: int, *, probability: float, seed: int, layer: int, first_unit: int = 0
) -> Tensor:
    """Compute which units survive.

    Args:
        positions: int64 (B,), not negative.
        num_units: Number of units per sample.
        probability: Probability that a unit is dropped, in [0, 1); rounded down to a multiple of 2^-16.
        seed: Any integer; only its low 64 bits count.
        layer: Number of the dropout layer within the model, so that the masks of two layers differ.
        first_unit: Number of the first of the units within the layer; a multiple of 8.

    Returns:
        bool (B, num_units) on the device of `positions`; True where a unit survives.
    """
    first_block = first_unit // _BLOCK
    block = torch.arange(first_block, first_block + -(-num_units // _BLOCK), device=positions.device)
    low, high = (positions & _WORD)[:, None], (positions >> 32)[:, None]
    words = philox_4x32(
        (block.expand(len(positions), -1), torch.full_like(block, layer), low, high),
        (seed & _WORD, (seed >> 32) & _WORD),
    )
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, dim=-1).flatten(1)[:, :num_units] >= int(probability * 2**16)


class CountedDropout(nn.Module):
    """Inverted dropout: survivors are divided by the probability of survival, so evaluation is the identity.

    The paper (Krizhevsky et al., 2012, section 4.2) leaves the survivors unchanged and multiplies all outputs by
    q = 1 - p at test time: `scaling="test"`. Both nets compute the same function of the same masks, in training and in
    evaluation, if the next layer's weights W in the inverted net are q times the paper's. The gradient with respect to
    W is then 1/q times the paper's, and all other gradients are equal. So SGD takes both nets along the same path if,
    for W, the learning rate is q^2 times the paper's, the weight decay 1/q^2 times, and the momentum equal. With the
    paper's own numbers for W, the inverted net's W starts 1/q times as large as the paper's and learns 1/q^2 times as
    fast.

    Args:
        probability: Probability that a unit is dropped, in [0, 1).
        seed: Seed of the masks.
        layer: Number of this dropout layer within the model.
        scaling: When units are scaled: in `training` (inverted), or at the `test` (the paper's).
        first_unit: Number of the first unit, where the activations are a slice of the layer's; a multiple of 8.

    Raises:
        ValueError: The probability lies outside [0, 1), or the first unit is no multiple of 8.
    """

    def __init__(
        self,
        probability: float,
        *,
        seed: int,
        layer: int,
        scaling: DropoutScaling = "training",
        first_unit: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"probability={probability}: must lie in [0, 1)")
        if first_unit % _BLOCK:
            raise ValueError(f"first_unit={first_unit}: must be a multiple of {_BLOCK}")
        self.probability = probability
        self.seed = seed
        self.layer = layer
        self.scaling = scaling
        self.first_unit = first_unit

    def forward(self, activations: Tensor, positions: Tensor | None = None) -> Tensor:
        """Drop units in training; scale the survivors in training, or all units at test time.

        Args:
            activations: (B, ...), floating.
            positions: int64 (B,); None: torch's ordinary dropout, from its global generator.

        Raises:
            ValueError: `positions` does not have one int64 per sample.
        """
        threshold = int(self.probability * 2**16)
        survival = 1 - threshold / 2**16
        scale = survival if self.scaling == "test" else 1.0  # relative to inverted dropout
        if not self.training or self.probability == 0:
            return activations if scale == 1 else activations * scale
        if positions is None:
            return nn.functional.dropout(activations, self.probability) * scale
        if positions.dtype != torch.int64 or positions.shape != activations.shape[:1]:
            raise ValueError(
                f"positions: {positions.dtype} {tuple(positions.shape)}; must be int64 ({len(activations)},)"
            )
        if triton_runs_on(activations.device):
            from model import dropout_triton  # here, since only a GPU needs Triton

            if dropout_triton.supports(activations):
                first_block, seed = self.first_unit // _BLOCK, _signed(self.seed)
                return dropout_triton.drop(
                    activations, positions, scale / survival, threshold, seed, self.layer, first_block
                )
        kept = keep_mask(
            positions,
            activations[0].numel(),
            probability=self.probability,
            seed=self.seed,
            layer=self.layer,
            first_unit=self.first_unit,
        )
        return activations * kept.view_as(activations).to(activations.dtype).mul_(scale / survival)

    def extra_repr(self) -> str:
        """Show the settings in the model's printed form."""
        return f"{self.probability}, seed={self.seed}, layer={self.layer}, scaling={self.scaling!r}"


def _signed(seed: int) -> int:
    """Return the low 64 bits of a seed as a signed number, the only kind an operator takes."""
    return (seed + 2**63) % 2**64 - 2**63
