"""torch-fidelity is there, and knows the demo's digits classifier: what importing this settles.

Import this and torch-fidelity inside the functions that score only: all else runs without it, and
it takes a second.

Raises:
    UserError: torch-fidelity is not installed.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import torch
from torch import Tensor

from evaluation.digits import DIGITS_EXTRACTOR, DigitsClassifier
from util.errors import UserError

try:
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torch_fidelity.utils import DEFAULTS, create_feature_extractor, glob_samples_paths
except ImportError as error:
    raise UserError(
        f"--feature_extractor: found that torch-fidelity, which computes all scores, cannot be "
        f"imported ({error}), expected `pip install torch-fidelity`, or none"
    ) from error

__all__ = ["DEFAULTS", "URL_INCEPTION_V3", "create_feature_extractor", "glob_samples_paths"]


class DigitsFeatureExtractor(FeatureExtractorBase):
    """`DigitsClassifier` as torch-fidelity wants it, registered as `lpd-digits`."""

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | BinaryIO | None = None,
        **_: Any,  # settings of torch-fidelity that do not concern this network
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise ValueError("found no weights, expected the file of a trained digits classifier")
        state = torch.load(feature_extractor_weights_path, map_location="cpu", weights_only=True)
        if "model" not in state:
            raise ValueError(f"found the entries {sorted(state)[:5]}, expected 'model'")
        self.classifier = DigitsClassifier()
        self.classifier.load_state_dict(state["model"])

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "64", "logits_unbiased"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"isc": "logits_unbiased", "fid": "64", "kid": "64", "prc": "64"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        by_name = dict(zip(("64", "logits_unbiased"), self.classifier(images), strict=True))
        return tuple(by_name[name] for name in self.features_list)


register_feature_extractor(DIGITS_EXTRACTOR, DigitsFeatureExtractor)
