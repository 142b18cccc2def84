"""What latents are asked to predict: classes, attributes, and labels that do not fit."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from soda_dist.data.shards import Label, read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.features.targets import Target, choose_target
from soda_dist.evaluation.pieces import Features


def test_a_label_beyond_the_named_classes_is_refused() -> None:
    features = Features(
        "test", np.arange(2), pa.table({"colour": [0, 3]}), {"trained": np.zeros((2, 4), np.float32)}, []
    )
    with pytest.raises(UserError, match=r"colour with values 0..3 in test; allowed: 0..2"):
        Target("colour", "class", ("colour",), 3).check(features)


def test_a_binary_class_is_a_class_and_an_attribute_an_attribute() -> None:
    features = Features("test", np.arange(3), pa.table({"sex": [0, 1, 1], "smiling": [0, 1, 1]}), {}, [])
    assert Target("sex", "class", ("sex",), 2).of(features).shape == (3,)
    assert Target("smiling", "attribute", ("smiling",), 2).of(features).shape == (3, 1)


def test_a_data_set_without_labels_says_so(small: Path) -> None:
    whole = read_manifest(open_folder(str(small / "data")))
    manifest = whole.model_copy(update={"labels": {}, "main_label": None})
    with pytest.raises(UserError, match="none, since the data has no labels"):
        choose_target(manifest, None)
    one = manifest.model_copy(update={"labels": {"a": Label(kind="factor", names=("x", "y"))}, "main_label": "a"})
    assert choose_target(one, None) == Target("a", "factor", ("a",), 2)
