"""View pairs by torchvision's transforms in a torch Dataset, as the baseline of the ingest benchmark."""

import io
from typing import Literal

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from soda_dist.config.sections import Data

Decoder = Literal["Pillow", "tensors"]
GREY = 128


class TorchvisionPairs(Dataset):
    """Compressed images -> (source, target) uint8 [3, s, s] and [3, t, t]: the same work as `data.views`.

    Args:
        decoder: input of the transforms: Pillow images, or tensors decoded by torchvision.
    """

    def __init__(self, images: list[bytes], data: Data, decoder: Decoder) -> None:
        self._images, self._decoder = images, decoder
        self._views = [_view(data, size, decoder) for size in (data.source_size, data.target_size)]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, ...]:
        image = self._decode(self._images[number])
        return tuple(view(image) for view in self._views)

    def _decode(self, data: bytes) -> Image.Image | torch.Tensor:
        if self._decoder == "Pillow":
            return Image.open(io.BytesIO(data)).convert("RGB")
        return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def _view(data: Data, size: int, decoder: Decoder) -> v2.Compose:
    a = data.augmentation
    resized = v2.RandomResizedCrop(size, scale=a.crop_area, ratio=a.crop_aspect, antialias=True)
    crop = v2.Compose([resized, v2.RandomHorizontalFlip(0.5)])
    plain = v2.Compose([v2.Resize(size), v2.CenterCrop(size)])
    magnitude = round(a.randaugment_magnitude * 3)  # torchvision counts 31 bins for the paper's 0..10
    distort = v2.RandAugment(a.randaugment_layers, magnitude, fill=[GREY] * 3)
    shape = v2.RandomChoice([crop, plain], p=[a.crop_flip_rate, 1 - a.crop_flip_rate])
    to_tensor = [v2.PILToTensor()] if decoder == "Pillow" else []
    return v2.Compose([shape, v2.RandomApply([distort], p=a.randaugment_rate), *to_tensor])
