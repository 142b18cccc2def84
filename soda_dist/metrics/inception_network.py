"""torch-fidelity's Inception network; a module of its own, since torch-fidelity takes seconds of CPU time to import."""

import io
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

LAYER: Final = "2048"
"""torch-fidelity's name of the pooled features."""


class Inception(FeatureExtractorInceptionV3):
    """torch-fidelity's network, without reading weights in its constructor.

    The parent's constructor unpickles a file without protection, or downloads one. Here it gets an empty state dict,
    which leaves the network as it is.
    """

    def __init__(self) -> None:
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        super().__init__("inception-v3-compat", [LAYER], feature_extractor_weights_path=nothing)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=strict and bool(state_dict), assign=assign)
