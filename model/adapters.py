"""What lets networks of other modules stand in AlexNet's place."""

from torch import Tensor, nn


class ImagesOnly(nn.Module):
    """A network that takes images alone, called with the samples' positions too.

    Its own dropout, if any, draws from torch's generator: such a run is not the same on another number of workers.

    Args:
        network: Takes images (B, 3, H, W), returns logits (B, classes).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute the logits; the positions are not used."""
        logits: Tensor = self.network(images)
        return logits
