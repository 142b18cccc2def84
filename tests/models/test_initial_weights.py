"""Initial weights are a function of the configuration alone: those of every method are as they have always been."""

import pytest
import torch

from soda_dist.training.build import build_model
from tests.models.methods import METHODS, config_of
from tests.tiny import TINY

FINGERPRINTS = {
    # numbers in the state dict, and their scalar product with cos(0), cos(1), ...
    "soda": (242703, -54.8470784),
    "no scale": (241519, -14.3881819),
    "sum": (242703, -54.8470784),
    "concat": (242703, 0.8859523),
    "no layer modulation": (247439, 14.8982782),
    "no modulation": (242159, 37.0376126),
    "cross attention": (245055, 21.3918519),
    "no bottleneck": (245023, 3.0551872),
    "vit": (415799, 48.1376826),
    "pixels": (244527, 20.1741523),
    "rays": (244527, 20.1741523),
    "rays and a vector": (259119, -17.7411683),
    "a vector": (256911, -19.1612715),
    "mean of sources": (242703, -54.8470784),
    "transformer of sources": (246471, 13.8475216),
    "encdec": (209175, -7.8026030),
    "encdec with rays": (211327, -1.3527536),
    "unconditional": (64027, -3.7651728),
    "palette": (64243, 6.2353865),
    "palette with rays": (67035, 20.3161237),
}
MIRRORED = {
    "soda": (220295, 24.9169481),
    "no scale": (219367, 86.0134189),
    "sum": (220295, 24.9169481),
    "concat": (220295, 38.2911440),
    "no layer modulation": (224007, 2.1332485),
    "no modulation": (219879, 14.4238857),
    "cross attention": (222039, -7.4448418),
    "no bottleneck": (222007, 6.7108273),
    "vit": (393391, 13.9613275),
    "pixels": (221863, 17.1100738),
    "rays": (221863, 17.1100738),
    "rays and a vector": (233383, 22.3822026),
    "a vector": (231431, 20.0104408),
    "mean of sources": (220295, 24.9169481),
    "transformer of sources": (224063, -51.7361256),
    "encdec": (201767, -48.1339036),
    "encdec with rays": (203919, -6.0916230),
    "unconditional": (42131, -26.1393593),
    "palette": (42347, 56.7303231),
    "palette with rays": (44627, 9.3883994),
}
OLDER = {"up_path": "mirrored", "time_dim": TINY["denoiser"]["position_dim"]}


@pytest.mark.parametrize(("fingerprints", "fields"), [(FINGERPRINTS, {}), (MIRRORED, OLDER)], ids=["default", "older"])
@pytest.mark.parametrize("name", METHODS)
def test_a_seed_gives_the_weights_that_it_gave(name: str, fingerprints: dict, fields: dict) -> None:
    tensors = build_model(config_of(name, denoiser=fields)).state_dict().values()
    values = torch.cat([tensor.double().flatten() for tensor in tensors])
    product = float(values @ torch.cos(torch.arange(len(values), dtype=torch.float64)))
    # Not a digest: another CPU may round a draw's last bit differently, which moves this by less than 1e-5.
    assert (len(values), pytest.approx(product, abs=1e-4)) == fingerprints[name]
