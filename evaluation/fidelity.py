"""All that is used of torch-fidelity, and the demo's digits classifier registered with it.

Import this inside the functions that score only: all else runs without torch-fidelity, whose import
takes a second. A `UserError` says that it is not installed.
"""

# ruff: noqa: F401 - its names are imported from here

from typing import Any, BinaryIO

import torch
from torch import Tensor

from evaluation.digits import DigitsClassifier
from util.errors import UserError

try:
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
    from torch_fidelity.utils import DEFAULTS, create_feature_extractor, glob_samples_paths
except ImportError as error:
    raise UserError(
        f"--feature_extractor: found that torch-fidelity, which computes all scores, cannot be "
        f"imported ({error}), expected `pip install torch-fidelity`, or none"
    ) from error


class DigitsFeatureExtractor(FeatureExtractorBase):
    """`DigitsClassifier` as torch-fidelity wants it."""

    def __init__(
        self, name: str, layers: list[str], feature_extractor_weights_path: str | BinaryIO, **_: Any
    ) -> None:
        super().__init__(name, layers)
        self.classifier = DigitsClassifier()
        state = torch.load(feature_extractor_weights_path, map_location="cpu", weights_only=True)
        self.classifier.load_state_dict(state.get("model", {}))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "64", "logits_unbiased"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features, logits = self.classifier(images)
        by_name = {"64": features, "logits_unbiased": logits}
        return tuple(by_name[name] for name in self.features_list)


register_feature_extractor("lpd-digits", DigitsFeatureExtractor)
