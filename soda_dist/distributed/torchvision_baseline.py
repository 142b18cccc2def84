"""The usual loader, as the benchmark's other side: a torch Dataset over torchvision's transforms."""

import io
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import v2

from soda_dist.config.schema import Data


class TorchvisionPairs(Dataset):
    """Encoded images -> (source, target) uint8 views with the same draws of work as `data.views`, by torchvision v2."""

    def __init__(self, images: list[bytes], data: Data) -> None:
        self._images = images
        self._views = [_view(data, size) for size in (data.source_size, data.target_size)]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        image = Image.open(io.BytesIO(self._images[number])).convert("RGB")
        return tuple(view(image) for view in self._views)


def _view(data: Data, size: int) -> v2.Compose:
    a = data.augmentation
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=a.crop_area, ratio=a.crop_aspect, antialias=True),
            v2.RandomHorizontalFlip(0.5),
        ]
    )
    plain = v2.Compose([v2.Resize(size), v2.CenterCrop(size)])
    magnitude = round(a.randaugment_magnitude * 3)  # torchvision counts 31 bins for the paper's 0..10
    random_augment = v2.RandAugment(a.randaugment_layers, magnitude)
    return v2.Compose(
        [
            v2.RandomChoice([crop, plain], p=[a.crop_flip_rate, 1 - a.crop_flip_rate]),
            v2.RandomApply([random_augment], p=a.randaugment_rate),
            v2.PILToTensor(),
            v2.ToDtype(torch.uint8),
        ]
    )
