"""Scores of a set of generated images."""

from pathlib import Path

import numpy as np
import pytest

from soda_dist.errors import UserError
from soda_dist.evaluation.images.generated_sets import ImageSet, folder_of, generate_set, load_set, plan_images
from soda_dist.evaluation.images.scores import images_of
from soda_dist.evaluation.images.set_scores import set_scores
from tests.evaluation.contexts import context_of, voiced
from tests.evaluation.small_run import prepare
from tests.tiny import tiny_config


def test_scores_leave_out_what_could_not_be_read_and_say_so(small_set: Path, tmp_path: Path) -> None:
    context = context_of(voiced(tiny_config(), small_set), tmp_path)
    of = ImageSet("reconstruction", "test", context.config.sampling)
    pieces = plan_images(context, of, 30)
    scores, counts = set_scores(context, generate_set(context, pieces, "drawn"), pieces)
    assert counts == {"images": 29, "unreadable": 1}
    table = load_set(folder_of(context, of), pieces, ["image", "target"])
    error = images_of(table.column("image")).astype(float) / 255 - images_of(table.column("target")) / 255
    expected = -10 * np.log10((error**2).mean((1, 2, 3)))
    assert scores["psnr"]["value"] == pytest.approx(expected.mean())
    assert scores["psnr"]["standard_error"] == pytest.approx(expected.std(ddof=1) / 29**0.5)


def test_a_split_without_a_readable_image_is_the_users_to_know(tmp_path: Path) -> None:
    prepare(str(tmp_path / "data"), {"train": [[4]], "test": [[3]]}, {"test": {0, 1, 2}})
    context = context_of(voiced(tiny_config(), tmp_path / "data"), tmp_path / "run")
    pieces = plan_images(context, ImageSet("reconstruction", "test", context.config.sampling), 3)
    with pytest.raises(UserError, match="split test without a readable image"):
        set_scores(context, generate_set(context, pieces, "drawn"), pieces)
