"""What the presets measure: the paper's whole splits."""

import pytest

from soda_dist.config import load_config
from tests.config.test_presets import TABLE_10


@pytest.mark.parametrize("preset", TABLE_10)
def test_presets_measure_whole_splits_as_section_e_does(preset: str) -> None:
    """All test images and held-out objects; ShapeNet's 5,000 objects have eight of their 111 target views each."""
    e = load_config(preset).evaluation
    assert (e.max_train_images, e.max_test_images, e.reconstruction.images, e.fid.images) == (None,) * 4
    assert (e.novel_views.objects, e.novel_views.views) == (None, 8 if preset == "shapenet" else None)
    assert (e.dci.max_train_images, e.dci.max_test_images) == (10_000, 5_000), "Locatello et al., whom E.3 follows"
    assert e.lpips.net == "vgg"
