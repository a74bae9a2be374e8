"""The demo's classifier of digits, which needs no torch-fidelity (see scripts/demo_digits.py)."""

from itertools import pairwise

from torch import Tensor, nn


class DigitsClassifier(nn.Module):
    """Tell the ten digits apart with a small CNN.

    The head has no bias: its logits are what torch-fidelity calls `logits_unbiased`.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((3, 16, 32, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GELU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.GELU())
        self.head = nn.Linear(64, 10, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 64) and logits (B, 10), float32, of images (B, 3, 32, 32) uint8."""
        features = self.body(images.float() / 127.5 - 1)
        return features, self.head(features)
