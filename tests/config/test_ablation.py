"""Groups of ablations: those that ship fit their presets and the paper; wrong ones are one line."""

import json
import re

import pytest

from soda_dist.config.ablation import Ablation, Variant, group_names, load_group
from soda_dist.config.fields import as_yaml
from soda_dist.config.load import load_config, parse_yaml, validate
from soda_dist.errors import UserError
from soda_dist.report.ablation import check_group
from soda_dist.report.paper import read_paper

GROUP = """
title: Forms
data: {kind: synthetic, options: {objects: 9}}
preset: solids
fields: {train.steps: 50}
measures: [{ours: probe.top1}, {ours: novel_views.psnr, sources: 1}]
variants:
  - {name: SODA}
  - {name: "w/o layer mask", fields: {denoiser.layer_mask_rate: 0.0}}
"""


def write(path, text: str) -> str:
    (path / "group.yaml").write_text(text)
    return str(path / "group.yaml")


def test_groups_of_the_mission_ship():
    assert group_names() == ["masking", "modulation", "pose", "readings", "sampling", "schedule", "sources", "views"]


@pytest.mark.parametrize("name", group_names())
def test_a_shipped_group_fits_its_preset_and_names_the_papers_rows(name):
    group = load_group(name)
    check_group(group, read_paper())
    base = group.base(None, [])
    configs = [group.config_of(variant, 0, base) for variant in group.variants]
    assert len({config.model_dump_json() for config in configs}) == len(configs), "each variant is another one"
    named = [pair for variant in group.variants for pair in variant.paper.items()]
    assert len(named) == len(set(named)), "no row of the paper is two variants"
    assert any(measure.paper for measure in group.measures)
    for column in [column for measure in group.measures for column in measure.paper]:
        assert any(column.table in variant.paper for variant in group.variants), column.table


def test_the_pose_group_has_all_forms_of_table_8():
    table = read_paper().table("8")
    rows = {row.name for block in table.blocks for row in block.rows} - {"2D Grid, Polar"}  # the default, again
    assert {variant.paper["8"] for variant in load_group("pose").variants} == rows


def test_a_base_is_the_small_setting_or_another_preset(tmp_path):
    group = load_group(write(tmp_path, GROUP))
    assert group.base(None, []).train.steps == 50
    assert group.base(None, ["train.steps=60"]).train.steps == 60
    assert group.base("shapes3d", []) == load_config("shapes3d")
    assert group.base("shapes3d", ["seed=3"]).seed == 3


def test_a_variant_over_its_base(tmp_path):
    group = load_group(write(tmp_path, GROUP))
    base = group.base(None, [])
    config = group.config_of(group.variants[1], 5, base)
    assert (config.seed, config.denoiser.layer_mask_rate, config.train.steps) == (5, 0.0, 50)
    assert group.config_of(group.variants[0], 5, base).denoiser.layer_mask_rate == base.denoiser.layer_mask_rate > 0


@pytest.mark.parametrize("value", [None, True, 3, 0.25, 1e-7, "cosine", (), (1, 2), (0.08, 1.0)])
def test_a_value_in_flow_style_is_read_back(value):
    assert parse_yaml(as_yaml(value), "here") == value


def test_slugs():
    assert Variant(name="w/o layer mask", fields={}, paper={}).slug == "w-o-layer-mask"
    assert Variant(name="guidance 2, 50 steps", fields={}, paper={}).slug == "guidance-2-50-steps"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("name: SODA", 'name: "W/O layer mask"'), "rename one of them"),
        (("name: SODA", 'name: "a|b"'), "variants.0.name"),
        (("title", "heading"), "heading"),
        (("title: Forms", "title: Forms\nseeds: [1, 1]"), "each seed once"),
        (("title: Forms", "title: Forms\nclaims: [{measure: 0, variant: SODA, above: [sum]}]"), "sum"),
        (("title: Forms", "title: Forms\nclaims: [{measure: 2, variant: SODA, above: [SODA]}]"), "0..1"),
        (
            ("title: Forms", "title: Forms\nclaims: [{measure: 0, their_measure: 3, variant: SODA, above: [SODA]}]"),
            "measure 3",
        ),
    ],
)
def test_a_wrong_group_is_one_line(tmp_path, change, says):
    with pytest.raises(UserError) as caught:
        load_group(write(tmp_path, GROUP.replace(*change)))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_group_lists_those_that_are_there():
    with pytest.raises(UserError, match="--group: got stages; allowed: masking, modulation"):
        load_group("stages")


@pytest.mark.parametrize(
    ("instead", "says"), [({"seeds": "1;2"}, "--seeds: got 1;2"), ({"concurrent": "two"}, "--concurrent: got two")]
)
def test_what_is_typed_in_place_of_the_groups(tmp_path, instead, says):
    path = write(tmp_path, GROUP)
    group = load_group(path, {"seeds": "4,5", "concurrent": "3"})
    assert (group.seeds, group.concurrent) == ((4, 5), 3)
    assert load_group(path, {"seeds": None, "concurrent": None}).seeds == (0, 1, 2)
    with pytest.raises(UserError, match=re.escape(says)):
        load_group(path, instead)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"measures": [{"ours": "probe.top2"}]}, "probe.top2"),
        ({"measures": [{"ours": "probe.top1", "paper": [{"table": "12", "data": "x", "ours": "y"}]}]}, "no results"),
        ({"measures": [{"ours": "probe.top1", "paper": [{"table": "1", "data": "gso", "ours": "y"}]}]}, "gso of table"),
        (
            {"measures": [{"ours": "probe.top1", "paper": [{"table": "1", "data": "imagenet", "ours": "dci.mean"}]}]},
            "dci.mean of table 1",
        ),
        ({"variants": [{"name": "SODA", "paper": {"1": "SODA 2"}}]}, "SODA 2 of table 1"),
    ],
)
def test_what_the_paper_does_not_have_is_refused(change, says):
    tree = {"title": "t", "data": {"kind": "synthetic"}, "preset": "solids", "measures": [{"ours": "probe.top1"}]}
    text = json.dumps({**tree, "variants": [{"name": "SODA"}], **change})
    group = validate(Ablation, parse_yaml(text, "a test"))
    with pytest.raises(UserError, match=re.escape(says)):
        check_group(group, read_paper())
