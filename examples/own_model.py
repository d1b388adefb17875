"""A network of one's own, trained like any other; in the checkout, that is done by the command below.

    python jobs/train.py --data DATASET --run RUN --model.name examples.own_model:SmallNet

The class derives from `torch.nn.Module`, is made by `SmallNet(num_classes=10)`, takes images (B, 3, H, W) and returns
logits (B, num_classes). Nothing else is asked of it: batch normalisation and dropout are written as usual. Before a run
they are replaced by forms that do not depend on the number of workers; what can't be replaced is refused by its name.
"""

from torch import Tensor, nn


class SmallNet(nn.Module):
    """Three convolutions with batch normalisation and two dense layers with dropout, for pictures of 16x16 and more."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(3, 32),
            *_block(32, 64),
            *_block(64, 96),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.3),
            nn.Linear(96 * 3 * 3, 128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits."""
        return self.classifier(self.features(images))


def _block(num_inputs: int, num_outputs: int) -> list[nn.Module]:
    convolution = nn.Conv2d(num_inputs, num_outputs, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(num_outputs), nn.ReLU(), nn.MaxPool2d(2)]
