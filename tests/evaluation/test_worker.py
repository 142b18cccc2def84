"""What a worker holds: networks fit for eval mode, before training too."""

from pathlib import Path

import pytest
import torch
from torch import nn

from soda_dist.evaluation.worker import Models, readers
from soda_dist.models.batch_norm import settle_norms
from soda_dist.training.build import build_model
from tests.tiny import tiny_config


@pytest.mark.parametrize("rows", [64, 70])
def test_an_untrained_batch_norm_gets_the_statistics_of_the_images(rows: int) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
    images = torch.randn(rows, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    settle_norms(network, [(part,) for part in images[:64].split(16)])
    features = network[0](images[:64]).detach()
    batches = features.split(16)
    torch.testing.assert_close(network[1].running_mean, features.mean((0, 2, 3)))
    torch.testing.assert_close(network[1].running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert not any(module.training for module in network.modules()) and network[1].momentum == 0.1


def test_the_untrained_encoder_with_batch_norm_is_not_blind(small: Path) -> None:
    """Torch's initial statistics would normalise nothing: each batch norm must have seen images."""
    config = tiny_config(encoder={"norm": "batch"})
    models = Models(build_model(config), config, readers(str(small / "data"), config), torch.device("cpu"))
    norms = [m for m in models.untrained.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(float((norm.running_var - 1).abs().max()) > 1e-3 for norm in norms)
    assert not any(module.training for module in models.untrained.modules())
