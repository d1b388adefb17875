"""Adapters that let networks of other modules take AlexNet's place."""

from torch import Tensor, nn

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class ImagesOnly(nn.Module):
    """A network that takes images alone, called with the samples' positions too.

    Args:
        network: Network that takes images (B, 3, H, W) and returns logits (B, classes).

    Raises:
        ValueError: A layer would make the training depend on the number of workers or on interruptions: statistics over
            a worker's batch, or dropout that is drawn.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, module in network.named_modules():
            if isinstance(module, _BATCH_NORMS):
                raise ValueError(
                    f"{name} is a {type(module).__name__}, whose statistics depend on the number of workers; use "
                    "model.batch_norm.GhostBatchNorm"
                )
            if isinstance(module, _DROPOUTS) and module.p > 0:
                raise ValueError(
                    f"{name} is a {type(module).__name__}, whose masks change when a run is resumed; use "
                    "model.dropout.CountedDropout, which takes positions, or probability 0"
                )
        self.network = network

    def forward(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute the logits; the positions are not used."""
        logits: Tensor = self.network(images)
        return logits
