"""The default pairs keep their bits from one version of the project to the next: runs are comparable and go on.

The pixels are those of the OpenCV that constraints.txt pins. Another one may round otherwise: then the runs made before
it cannot go on bit for bit, which is what a failure here says.
"""

import hashlib
from itertools import accumulate, pairwise

import cv2
import numpy as np
import pyarrow as pa

from soda_dist.config.sections import Augmentation, Data
from soda_dist.data.order import Order
from soda_dist.data.pairs import read_pairs
from soda_dist.data.views.crops import plan_crops
from soda_dist.data.views.randaugment import plan_layers
from tests.data.views.test_decode import scene

GROUPS = [8, 8, 8, 8, 5]
SIZES = np.random.default_rng(2).integers(18, 130, (sum(GROUPS), 2))
HOW = Augmentation(randaugment_rate=0.65)
PLAN = "1359eb82ecf984ec"
PIXELS = "62abe8cbffff0d8d"


class Lossless:
    """Row groups of PNG images, so that no decoder's version shows."""

    def __init__(self) -> None:
        images = [cv2.imencode(".png", scene(h, w, i))[1].tobytes() for i, (h, w) in enumerate(SIZES.tolist())]
        images[11] = b"broken"
        rows = [{"key": i, "image": image, "name": f"image {i}"} for i, image in enumerate(images)]
        self.tables = [pa.Table.from_pylist(rows[a:b]) for a, b in pairwise(accumulate(GROUPS, initial=0))]

    def group(self, number: int, columns: list[str]) -> pa.Table:
        return self.tables[number].select(columns)


def digest(*parts: object) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return whole.hexdigest()[:16]


def test_the_plan_of_a_view_is_what_it_was() -> None:
    keys, epochs = np.arange(len(SIZES)) * 17, np.arange(len(SIZES)) % 3
    parts: list[object] = []
    for view in ("source", "target"):
        crops = plan_crops(3, f"views/{view}/crop", epochs, keys, SIZES, HOW)
        layers = plan_layers(3, f"views/{view}/randaugment", epochs, keys, HOW)
        parts += [crops.boxes, crops.flipped, [[(n, round(m, 4), s) for n, m, s in row] for row in layers]]
    assert digest(*parts) == PLAN


def test_pixels_of_the_default_pairs_are_what_they_were() -> None:
    """Over an epoch's end, with a stand-in for a broken image; no RandAugment: its floats differ between CPUs."""
    data = Data(source_size=40, target_size=24)
    got = read_pairs(Lossless(), Order(GROUPS, 5, 8, 2), 20, 60, seed=5, data=data)
    assert digest(got.source, got.target, got.key, got.ok, got.index, got.name) == PIXELS
