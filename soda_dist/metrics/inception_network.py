"""torch-fidelity's Inception network, in its own module since torch-fidelity takes seconds of CPU time to import."""

import io
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

LAYER: Final = "2048"
"""torch-fidelity's name for the pooled features."""


class Inception(FeatureExtractorInceptionV3):
    """torch-fidelity's network, built without reading weights.

    The parent's constructor unpickles a file unprotected, or downloads one; an empty state dict leaves it untouched.
    """

    def __init__(self) -> None:
        empty = io.BytesIO()
        torch.save({}, empty)
        empty.seek(0)
        super().__init__("inception-v3-compat", [LAYER], feature_extractor_weights_path=empty)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=strict and bool(state_dict), assign=assign)
