"""Each method learns: against the best predictor that knows pixels' means and variances alone, on held-out objects."""

import time

import pytest

from soda_dist.data.storage.folder import open_folder
from tests.learn.methods import RUNS, config_of
from tests.learn.scenes import held_out, loss_of, train, trivial_loss, write_scenes

SHORT, LONG = 120, 300
MASKED = 1.05
"""A loss without z over the loss with it, at least, after a long run; a hundredth more after a short one."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), objects=500, test_objects=64, views=8, size=32)


def check(name: str, steps: int, most: float, scenes, tmp_path, results) -> None:
    """Train for `steps`; the loss must be below `most` of the trivial one, and worse without what should be heard."""
    start = time.monotonic()
    config, run = config_of(name, steps), RUNS[name]
    model = train(config, scenes, open_folder(str(tmp_path)))
    pairs = held_out(config, scenes)
    loss, trivial = loss_of(model, config, pairs), trivial_loss(config, pairs)
    blind = loss_of(model, config, pairs, latent=False)
    placeless = loss_of(model, config, pairs, pose=False) if run.hears_pose else None
    elsewhere = loss_of(model, config, pairs, elsewhere=True) if run.hears_pose else None
    figures = f"{loss / trivial:.3f}; without z {blind / trivial:.3f}"
    if placeless and elsewhere:
        figures += f"; without poses {placeless / trivial:.3f}, with another camera's {elsewhere / trivial:.3f}"
    results.add(f"Each method learns: loss over the trivial predictor's, {steps} steps", name, figures, _since(start))
    assert loss < most * trivial, figures
    if run.hears_source:
        assert blind > (MASKED if steps >= LONG else 1.01) * loss, figures
    else:
        assert blind == loss, "there is no z to hide"
    if placeless and elsewhere:
        assert elsewhere > (1.01 if steps >= LONG else 1.002) * loss, figures
        assert placeless > 1.01 * loss or steps < LONG, figures


def _since(start: float) -> float:
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["SODA"]
    + [
        pytest.param(name, marks=pytest.mark.long)
        for name in ("cross attention, cameras", "encoder-decoder", "unconditional", "Palette")
    ],
)
def test_each_method_learns_in_short(name, scenes, tmp_path, results) -> None:
    check(name, SHORT, 0.9, scenes, tmp_path, results)


@pytest.mark.learn
@pytest.mark.parametrize("name", RUNS)
def test_each_variant_learns(name, scenes, tmp_path, results) -> None:
    check(name, LONG, 0.4, scenes, tmp_path, results)
