"""Local response normalisation as the formula in the header of `model/lrn.py`, literally and in float64."""

import numpy as np
import torch
from torch import Tensor

from model.lrn_conventions import Convention


def literal_lrn(activations: Tensor, gradient: Tensor, convention: Convention) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result, the gradient of the activations, and the sum of the magnitudes of that gradient's terms."""
    a, g = (tensor.detach().double().cpu().numpy() for tensor in (activations, gradient))
    energy = convention.k + convention.alpha * _window_sums(a**2, convention.size)
    power = energy**-convention.beta
    factor = 2 * convention.alpha * convention.beta
    shared = factor * a * _window_sums(g * a * power / energy, convention.size)
    magnitude = abs(g * power) + factor * abs(a) * _window_sums(abs(g * a * power / energy), convention.size)
    return torch.from_numpy(a * power), torch.from_numpy(g * power - shared), torch.from_numpy(magnitude)


def _window_sums(values: np.ndarray, size: int) -> np.ndarray:
    num_channels, radius = values.shape[1], size // 2
    return np.stack([values[:, max(c - radius, 0) : c + radius + 1].sum(axis=1) for c in range(num_channels)], axis=1)
