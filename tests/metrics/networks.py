"""Test weights of published networks: random, and as large as signals need to live through all layers."""

import io
from pathlib import Path

import torch
from torch import Tensor
from torchvision import models

from soda_dist.metrics.inception_network import Inception


def saved(value: object) -> bytes:
    """As torch.save writes it."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def inception_weights() -> dict[str, Tensor]:
    """Of torch-fidelity's InceptionV3, with statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    drawn = {}
    for name, tensor in Inception().state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("conv.weight"):
            drawn[name] = noise * (2.0 / tensor[0].numel()) ** 0.5
        elif name.endswith("num_batches_tracked"):
            drawn[name] = torch.tensor(5)
        else:
            drawn[name] = 0.1 * noise + (1.0 if name.endswith(("bn.weight", "running_var")) else 0.0)
    return drawn


def write_inception(path: Path) -> Path:
    """A file of `inception_weights`."""
    path.write_bytes(saved(inception_weights()))
    return path


def write_alexnet(path: Path) -> Path:
    """A file of torchvision's AlexNet before the classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = models.alexnet(num_classes=1).features
    path.write_bytes(saved({f"features.{name}": tensor for name, tensor in layers.state_dict().items()}))
    return path
