"""Labels of a probe that is trained along: the first source's, whatever the views; and what is refused."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from soda_dist.config.sections import Data, Train
from soda_dist.data.labels import ProbeLabels, probe_labels, read_labels
from soda_dist.data.order import Order
from soda_dist.data.pairs import local_pairs, read_pairs
from soda_dist.data.relations import source_keys
from soda_dist.data.shards import Label, Manifest, ShardReader
from soda_dist.errors import UserError
from tests.data.objects import LABELS, flat, write_objects

ON = Train(online_probe=True)
ATTRIBUTE = Label(kind="attribute", names=("no", "yes"))


def manifest_of(labels: dict[str, Label], main: str | None) -> Manifest:
    return Manifest(
        version=2, kind="test", source="", fingerprint="", splits={}, labels=labels, main_label=main, rejected=0
    )


MIXED = manifest_of({"hue": Label(kind="factor", names=("a", "b", "c")), "bright": ATTRIBUTE, "late": ATTRIBUTE}, "hue")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return write_objects(str(tmp_path_factory.mktemp("flat")), flat, broken=(7, 50))


@pytest.mark.parametrize(
    "mode",
    [{}, {"views": "object", "sources": (1, 4), "augment": "none"}, {"views": "class", "sources": (1, 2)}],
    ids=["augmented", "object", "class"],
)
def test_the_label_is_that_of_the_first_sources_row(mode: dict[str, Any], reader: ShardReader) -> None:
    data = Data(source_size=24, target_size=16, **mode)
    order = Order(reader.groups, 2, 12, 3)
    pairs = read_pairs(reader, order, 5, 65, seed=2, data=data, labels=["label"])
    epoch = order.locate(5, 65).epoch
    first = source_keys(reader, order, pairs.key, epoch, seed=2, data=data)[:, 0]
    assert pairs.label.dtype == np.int64
    own = np.array([not name for name in pairs.name])  # where no other row stands in
    assert own.sum() > 40
    assert np.array_equal(pairs.label[own], np.array(LABELS)[first[own]][:, None])
    assert len(set(pairs.label[:, 0].tolist())) > 1
    assert read_pairs(reader, order, 5, 65, seed=2, data=data).label.shape == (60, 0)
    batch = next(local_pairs(reader, order, 5, 60, seed=2, data=data, threads=0, labels=["label"]))
    assert np.array_equal(batch.label, pairs.label)


def test_the_switch_the_main_label_a_column_and_all_attributes() -> None:
    assert probe_labels(MIXED, Train()) is None
    assert probe_labels(MIXED, ON) == ProbeLabels(("hue",), 3, 0)
    assert probe_labels(MIXED, Train(online_probe=True, online_probe_label="late")) == ProbeLabels(("late",), 2, 1)
    both = Train(online_probe=True, online_probe_label="attributes")
    assert probe_labels(MIXED, both) == ProbeLabels(("bright", "late"), 2, 2)


@pytest.mark.parametrize(
    ("manifest", "train", "message"),
    [
        (manifest_of({}, None), ON, "got None; allowed: none, since the data has no labels"),
        (MIXED, Train(online_probe=True, online_probe_label="x"), "got x; allowed: hue, bright, late, attributes"),
    ],
    ids=["no labels", "another"],
)
def test_data_without_the_label_is_refused(manifest: Manifest, train: Train, message: str) -> None:
    with pytest.raises(UserError, match=message):
        probe_labels(manifest, train)


@pytest.mark.parametrize(
    ("values", "message"),
    [([0, None, 2], "missing in 1 of 3 rows"), ([0, 3, 1], r"values 0\.\.3; allowed: 0\.\.2"), ([-1, 0, 1], "-1")],
    ids=["missing", "too high", "negative"],
)
def test_rows_without_a_sound_label_are_refused(values: list, message: str) -> None:
    table = pa.table({"hue": pa.array(values, pa.int32())})
    with pytest.raises(UserError, match=message):
        read_labels(table, ["hue"], MIXED)


def test_truth_values_become_numbers() -> None:
    table = pa.table({"bright": [True, False], "late": [False, True]})
    assert read_labels(table, ["late", "bright"], MIXED).tolist() == [[0, 1], [1, 0]]
