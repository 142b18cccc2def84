"""Images drawn from given latents are those drawn from the latents' sources."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from soda_dist.evaluation.images.decode_latents import LatentJob, decode_job, encode_inputs, section_of
from soda_dist.evaluation.images.sampling import SampleJob, draw, pick_inputs
from tests.evaluation.contexts import voiced
from tests.models.methods import config_of
from tests.tiny import tiny_config


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("soda", {}),
        ("soda", {"guided_sections": (0,), "method": "ddim"}),
        ("soda", {"masked_sections": (1,)}),
        ("no layer modulation", {"guidance": 1.0}),
        ("encdec", {}),
        ("rays and a vector", {"guide": "both"}),
        ("rays", {}),
    ],
)
def test_a_given_latent_is_drawn_as_its_source_is(name: str, sampling: dict, small_set: Path, solids: Path) -> None:
    posed = name.startswith("rays")
    models = voiced(config_of(name, sampling=sampling), solids if posed else small_set)
    inputs = pick_inputs(models, 3)
    z = encode_inputs(models, inputs)
    given = LatentJob(inputs.keys, z, inputs.pose, noise=1, encode=True)
    found = decode_job(models, given)
    plain = draw(models, SampleJob(inputs, models.config.sampling.guidance, 1, 0)).images
    assert np.abs(found.images.astype(int) - plain).max() <= 1  # the last rounding
    seen = encode_inputs(models, replace(inputs, source=found.images[:, None]))
    np.testing.assert_allclose(found.z, seen, rtol=1e-4, atol=1e-5)
    other = decode_job(models, replace(given, z=z[::-1].copy())).images
    assert np.abs(other.astype(int) - found.images).max() > 1, "z is heard"
    if posed:
        other = decode_job(models, replace(given, pose=inputs.pose[::-1].copy())).images
        assert np.abs(other.astype(int) - found.images).max() > 1, "the pose is heard"


def test_a_masked_section_of_z_is_not_heard(small_set: Path) -> None:
    models = voiced(tiny_config(data={"source_size": 20}), small_set)
    inputs = pick_inputs(models, 2)
    given = LatentJob(inputs.keys, encode_inputs(models, inputs), None)
    other = (given.z + 3.0 * (section_of(models, None).numpy() == 1)).astype(np.float32)
    assert (decode_job(models, replace(given, masked=(1,))).images
            == decode_job(models, replace(given, z=other, masked=(1,))).images).all()  # fmt: skip
    for masked in ((), (0,)):
        pair = [decode_job(models, replace(given, z=z, masked=masked)).images for z in (given.z, other)]
        assert (pair[0] != pair[1]).any()
