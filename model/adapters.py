"""Adapters that let other modules' networks take AlexNet's place."""

from torch import Tensor, nn


class ImagesOnly(nn.Module):
    """Wraps a network that takes only images, so that it can be called with the samples' positions too.

    If the network has dropout of its own, that draws from torch's generator, so the run depends on the number of
    workers.

    Args:
        network: Network that takes images (B, 3, H, W) and returns logits (B, classes).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute the logits; the positions are ignored."""
        logits: Tensor = self.network(images)
        return logits
