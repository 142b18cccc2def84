"""The table of a group: means, errors and intervals by hand, the paper's figures in their columns, verdicts."""

import json
import math
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from soda_dist.config.ablation import Ablation
from soda_dist.config.load import parse_yaml, validate
from soda_dist.report.ablation import ablation_plot, as_markdown, summarize
from soda_dist.report.paper import read_paper
from soda_dist.report.paper_columns import Figure

TREE = {
    "title": "Forms of modulation",
    "data": {"kind": "synthetic"},
    "preset": "solids",
    "measures": [
        {
            "ours": "probe.top1",
            "paper": [{"table": "9", "data": "imagenet", "ours": "probe.top1"}],
        },
        {
            "ours": "novel_views.fid",
            "sources": 3,
            "paper": [{"table": "5", "data": "gso", "ours": "novel_views.fid", "sources": 3}],
        },
    ],
    "variants": [
        {"name": "SODA", "paper": {"9": "SODA (default)", "5": "SODA (Transformer Aggregation)"}},
        {"name": "sum", "fields": {"denoiser.modulation": "sum"}, "paper": {"9": "sum mod."}},
    ],
    "claims": [{"measure": measure, "variant": "SODA", "above": ["sum"]} for measure in (0, 1)],
}
SODA = [70.0, 74.0, 78.0]
SUM = [65.0, 70.0, 72.0]


def group_of(**fields) -> Ablation:
    return validate(Ablation, parse_yaml(json.dumps({**TREE, **fields}), "a test"))


def figures_of(first, second):
    return [[Figure(a, 0.5), None if b is None else Figure(b, 0.1)] for a, b in zip(first, second, strict=True)]


def summary_of(group: Ablation, soda=SODA, sums=SUM, fids=((3.0, 3.2, 3.1), (2.0, 2.1, 2.2))):
    figures = {"SODA": figures_of(soda, fids[0]), "sum": figures_of(sums, fids[1])}
    return summarize(group, figures, read_paper(), "6 runs.")


def test_means_errors_and_the_papers_figures():
    summary = summary_of(group_of())
    soda, total = summary.rows
    assert soda.cells[0].value == pytest.approx(74) and soda.cells[0].error == pytest.approx(4 / math.sqrt(3))
    assert soda.cells[0].seeds == tuple(SODA)
    assert soda.paper == ((72.24,), (0.962,)), "table 9, last column; table 5, GSO, 3 views"
    assert total.paper == ((61.46,), (None,))
    assert [head.better for head in summary.heads] == ["higher", "lower"]


def test_an_interval_over_seeds_is_that_of_a_paired_t_test():
    outcome = summary_of(group_of()).outcomes[0]
    test = stats.ttest_rel(SODA, SUM).confidence_interval(0.95)
    assert outcome.ahead == pytest.approx(5)
    assert (outcome.ahead - outcome.half, outcome.ahead + outcome.half) == pytest.approx((test.low, test.high))
    assert outcome.verdict == "seen"


def test_where_less_is_better_the_lower_one_is_ahead():
    outcome = summary_of(group_of()).outcomes[1]
    assert outcome.ahead == pytest.approx(-1.0) and outcome.verdict == "against"


@pytest.mark.parametrize(
    ("sums", "equal", "verdict"),
    [
        (SUM, False, "seen"),
        ([65.0, 80.0, 72.0], False, "within noise"),
        ([75.0, 79.1, 83.0], False, "against"),
        ([65.0, 80.0, 72.0], True, "seen"),
        (SUM, True, "seen"),
        ([75.0, 79.1, 83.0], True, "against"),
    ],
)
def test_verdicts(sums, equal, verdict):
    claims = [{"measure": 0, "variant": "SODA", "above": ["sum"], "equal": equal}]
    assert summary_of(group_of(claims=claims), sums=sums).outcomes[0].verdict == verdict


def test_one_seed_stands_on_its_own_error():
    figures = {"SODA": figures_of([74.0], [3.0]), "sum": figures_of([72.0], [3.0])}
    summary = summarize(group_of(seeds=(0,)), figures, read_paper(), "")
    assert summary.rows[0].cells[0].error == 0.5
    outcome = summary.outcomes[0]
    assert outcome.half == pytest.approx(1.959964 * math.hypot(0.5, 0.5)) and outcome.verdict == "seen"
    assert "of one seed" in as_markdown(summary)


def test_a_claim_may_compare_two_measures():
    claims = [{"measure": 0, "their_measure": 1, "variant": "SODA", "above": ["SODA"]}]
    outcome = summary_of(group_of(claims=claims)).outcomes[0]
    assert outcome.ahead == pytest.approx(74 - 3.1) and outcome.other == "SODA (FID from 3 sources)"


def test_lost_runs_are_counted_and_take_no_part():
    figures = {"SODA": [[None, None], *figures_of(SODA[1:], [3.0, 3.0])], "sum": [[None, None]] * 3}
    summary = summarize(group_of(), figures, read_paper(), "")
    assert summary.rows[0].cells[0].value == pytest.approx(76)
    assert summary.rows[1].cells[0].value is None
    assert {outcome.verdict for outcome in summary.outcomes} == {"not measured"}
    text = as_markdown(summary)
    assert "(1 of 3 without)" in text and "| sum " in text
    assert ablation_plot(summary).startswith(b"\x89PNG")


def test_one_seed_without_an_error_decides_nothing():
    figures = {"SODA": [[Figure(74.0, None), None]], "sum": [[Figure(60.0, 0.1), None]]}
    outcome = summarize(group_of(seeds=(0,)), figures, read_paper(), "").outcomes[0]
    assert (outcome.half, outcome.verdict) == (None, "within noise")


def test_the_table_as_text():
    lines = as_markdown(summary_of(group_of())).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert lines[0] == "## Forms of modulation" and "6 runs. Ours: mean and standard error over 3 seeds" in lines[2]
    assert len({len(line) for line in table}) == 1, "columns are padded"
    heads = [cell.strip() for cell in table[0].strip("|").split("|")]
    names = ["Top-1, %", "paper, 9: Top-1, ImageNet1K", "FID from 3 sources", "paper, 5: FID, GSO"]
    assert heads == ["", *names]
    first = [cell.strip() for cell in table[2].strip("|").split("|")]
    assert first == ["SODA", "74.0 ± 2.3", "72.24", "3.100 ± 0.058", "0.962"]
    assert lines[-2].startswith("- SODA against sum, Top-1: +5.00 ± ") and lines[-2].endswith("**seen**")


def test_the_picture_has_a_panel_a_measure_and_a_line_a_variant():
    png = Image.open(BytesIO(ablation_plot(summary_of(group_of()))))
    bold = abs(np.asarray(png.convert("RGB")).astype(int) - [0x1F, 0x6F, 0xEB]).sum(-1) < 30
    for axis, least, what in [(0, 4, "two means in each of two panels"), (1, 2, "on two lines")]:
        there = bold.any(axis)
        assert len(np.flatnonzero(there[1:] & ~there[:-1])) >= least, what
