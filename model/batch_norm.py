"""Ghost batch normalisation: statistics of fixed groups of consecutive samples, whatever the number of workers.

Ordinary batch normalisation takes its statistics over a worker's batch, so the training depends on how many workers
share a global batch. Here each group of `group_size` consecutive samples has its own statistics (Hoffer, Hubara,
Soudry: "Train longer, generalize better", 2017). Workers take whole groups (`RankShare`), so the groups are the same
for any number of workers.

Evaluation uses running means, which must not depend on the number of workers either: a layer collects the statistics of
its groups, and once per step `update_running_statistics` adds the mean over all workers' groups.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_MOMENTUM, _EPSILON = 0.1, 1e-5  # PyTorch's


class GhostBatchNorm(nn.Module):
    """Batch normalisation over groups of consecutive samples.

    Args:
        num_channels: Number of channels of the activations.
        group_size: Number of samples that share statistics, at least 2.
        epsilon: Number that is added to the variance.
        momentum: Weight of the newest step in the running means.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(
        self, num_channels: int, group_size: int, *, epsilon: float = _EPSILON, momentum: float = _MOMENTUM
    ) -> None:
        super().__init__()
        self.group_size, self.epsilon, self.momentum = group_size, epsilon, momentum
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_variance", torch.ones(num_channels))
        # Sums of the means, of the variances and of the number of groups since the last update. Not a buffer, since
        # DistributedDataParallel would overwrite a buffer with the first worker's.
        self.pending: list[Tensor] = []
        self.register_load_state_dict_pre_hook(_take_torchs_names)

    def reset_parameters(self) -> None:
        """Set scale 1, shift 0, running mean 0 and variance 1; discard all groups."""
        self.pending.clear()
        with torch.no_grad():
            for tensor, value in (
                (self.weight, 1.0),
                (self.bias, 0.0),
                (self.running_mean, 0.0),
                (self.running_variance, 1.0),
            ):
                tensor.fill_(value)

    def forward(self, activations: Tensor) -> Tensor:
        """Normalise (B, C, ...), keeping dtype and memory format; the last group in training may be smaller."""
        if not self.training:
            return functional.batch_norm(
                activations, self.running_mean, self.running_variance, self.weight, self.bias, eps=self.epsilon
            )
        if activations.device.type == "cuda" and activations.ndim == 4:
            return self._normalise_at_once(activations)
        return self._normalise_one_by_one(activations)

    def _normalise_at_once(self, activations: Tensor) -> Tensor:
        """Normalise all whole groups by one operator, which takes the channels of each group as channels of its own."""
        num_groups, num_others = divmod(len(activations), self.group_size)
        if not num_groups:
            return self._normalise_one_by_one(activations)
        whole, others = activations.split([num_groups * self.group_size, num_others])
        # (groups, group_size, C, H, W) -> (group_size, groups * C, H, W), channels last.
        stacked = whole.unflatten(0, (num_groups, -1)).permute(1, 3, 4, 0, 2).flatten(3).permute(0, 3, 1, 2)
        mean, variance = (buffer.new_zeros(stacked.shape[1]) for buffer in (self.running_mean, self.running_variance))
        weight, bias = self.weight.repeat(num_groups), self.bias.repeat(num_groups)
        stacked = functional.batch_norm(
            stacked, mean, variance, weight, bias, training=True, momentum=1.0, eps=self.epsilon
        )
        sums = [values.view(num_groups, -1).sum(dim=0) for values in (mean, variance)]
        self.pending.append(torch.cat([*sums, mean.new_full((1,), num_groups)]))
        whole = stacked.permute(0, 2, 3, 1).unflatten(3, (num_groups, -1)).permute(3, 0, 1, 2, 4).flatten(0, 1)
        whole = whole.permute(0, 3, 1, 2)
        return torch.cat([whole, self._normalise_one_by_one(others)]) if num_others else whole

    def _normalise_one_by_one(self, activations: Tensor) -> Tensor:
        outputs = []
        for group in activations.split(self.group_size):
            # With momentum 1 the "running" statistics become this group's; their old values are multiplied by 0.
            mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_variance)
            outputs.append(
                functional.batch_norm(
                    group, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.epsilon
                )
            )
            self.pending.append(torch.cat([mean, variance, mean.new_ones(1)]))
        return torch.cat(outputs)

    def extra_repr(self) -> str:
        """Show the settings in the model's printed form."""
        return f"{len(self.weight)}, group_size={self.group_size}"


def update_running_statistics(model: nn.Module, sum_over_workers: Callable[[Tensor], Tensor]) -> None:
    """Update the running means with the groups since the last call; every worker calls this after each step.

    Args:
        model: Model with any number of `GhostBatchNorm` layers; if the step used none, nothing is exchanged.
        sum_over_workers: Function that returns the sum of a tensor over all workers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GhostBatchNorm) and layer.pending]
    if not layers:
        return
    sums = [torch.stack(layer.pending).sum(dim=0) for layer in layers]
    totals = sum_over_workers(torch.cat(sums)).split([len(total) for total in sums])
    for layer, total in zip(layers, totals, strict=True):
        mean, variance = (total[:-1] / total[-1]).to(layer.running_mean.device).chunk(2)
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_variance.lerp_(variance, layer.momentum)
        layer.pending.clear()


def _take_torchs_names(layer: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Let a layer load the state of torch's batch normalisation: rename the variance, drop the count of batches."""
    if f"{prefix}running_var" in state:
        state[f"{prefix}running_variance"] = state.pop(f"{prefix}running_var")
    state.pop(f"{prefix}num_batches_tracked", None)
