"""The paper's figures: read by hand here and there, equal where the paper repeats itself, and tied to the presets."""

from statistics import mean

import pytest
from pydantic import ValidationError

from soda_dist.config import load_config
from soda_dist.config.load import preset_names
from soda_dist.config.schema import RunConfig
from soda_dist.errors import UserError
from soda_dist.report.paper import Block, Paper, read_paper
from soda_dist.report.paper_columns import OURS
from soda_dist.report.yardsticks import COLUMNS

PAPER = read_paper()
BLOCKS = [(number, block) for number, table in PAPER.tables.items() for block in table.blocks]


def _block(number: str, data: str, title: str | None = None) -> Block:
    (found,) = (b for n, b in BLOCKS if (n, b.data) == (number, data) and title in (None, b.title))
    return found


def _values(number: str, data: str, row: str, title: str | None = None) -> tuple[float | None, ...]:
    (found,) = (each.values for each in _block(number, data, title).rows if each.name == row)
    return found


@pytest.mark.parametrize(
    ("number", "data", "row", "values"),
    [
        ("1", "imagenet", "SODA (ours)", (72.2, 90.5, 69.1)),
        ("1", "imagenet", "DINO", (74.9, None, 61.1)),
        ("1", "imagenet", "BigBiGAN", (61.3, 81.9, 61.3)),
        ("2", "imagenet", "DALL-E, 8K", (22.8, 0.73, 32.01, 1.95)),
        ("3", "gso", "PixelNeRF", (24.93, 0.919, 48.72, 0.086)),
        ("3", "shapenet", "SODA (shorter sampling)", (26.71, 0.946, 1.31, 0.046)),
        ("3", "nmr", "SODA w/o bottleneck", (23.31, 0.948, 0.75, 0.053)),
        ("4", "smallnorb", "DIP-VAE (II)", (51.20,)),
        ("5", "gso", "SODA with Stochastic Conditioning", (1.508, 2.117, 1.360, 1.177, 1.228)),
        ("5", "shapenet", "NeRF-VAE", (45.791, 42.165, 36.592, 35.441, 34.134)),
        ("6", "celebahq", "StyleGAN2, W", (None, 53.26, 56.15, 96.71, 16.76, 0.662, None, 0.394)),
        ("6", "celebahq", "Unconditional Diffusion", (63.67, 41.33, 30.72, 84.94, None, None, 25.33, None)),
        ("7", "shapes3d", "SODA (ours)", (98.60, 84.76, 98.88, 52.54, 0.9999, 0.32, 0.0002)),
        ("7", "cub", "β-TCVAE", (40.43, 13.39, 91.95, 15.26, 0.389, 237.96, 0.652)),
        ("9", "imagenet", "w/o scale mod.", (21.33, 0.910, 5.33, 0.224, 70.31)),
        ("11", "celebahq", "w/o layer mask", (70.36, 68.41, 43.41, 87.45, 16.98, 0.820, 11.39, 0.285)),
        ("G.3", "gso", "Pose", (24.25, 0.939, 2.48, 0.062)),
    ],
)
def test_figures_are_those_of_the_paper(number: str, data: str, row: str, values: tuple[float | None, ...]) -> None:
    assert _values(number, data, row) == values


def test_every_table_with_results_is_there_with_all_of_its_rows() -> None:
    sizes: dict[str, list[int]] = {}
    for number, block in BLOCKS:
        sizes.setdefault(number, []).append(len(block.rows))
    assert sizes == {
        "1": [21], "2": [6], "3": [10] * 3, "4": [8] * 5, "5": [6] * 2, "6": [14], "7": [8] * 7, "8": [6, 4],
        "9": [5], "11": [8], "G.3": [3, 3],
    }  # fmt: skip


@pytest.mark.parametrize(("number", "block"), BLOCKS)
def test_each_block_has_one_model_of_the_papers_own_and_marks_its_ablations(number: str, block: Block) -> None:
    assert sum(row.soda == "default" for row in block.rows) == 1
    ablations = number in ("8", "9", "11", "G.3")
    for row in block.rows:
        assert (row.soda is not None) == (ablations or row.name.startswith("SODA")), row.name
        assert all(row.values[at] is not None for at in row.starred), row.name


def test_the_means_of_table_4_are_those_of_tables_6_7_and_11() -> None:
    """Two transcriptions that must agree: a slip in one of them shows."""
    rows = [row.name for row in _block("4", "cub").rows]

    def dci(data: str, row: str) -> float:
        if data != "celebahq":
            return mean(_values("7", data, row)[:3])
        if row == "SODA w/o layer mod.":
            return mean(_values("11", data, "w/o layer modulation")[1:4])
        return mean(_values("6", data, row.replace("(ours)", "(ResNet50x2)"))[1:4])

    mpi3d = [f"mpi3d_{kind}" for kind in ("toy", "realistic", "real", "complex")]
    differing = []
    for data in ("celebahq", "cub", "mpi3d", "shapes3d", "smallnorb"):
        for row in rows:
            expected = mean(dci(each, row) for each in (mpi3d if data == "mpi3d" else [data]))
            (value,) = _values("4", data, row)
            if value != pytest.approx(expected, abs=0.02):
                differing.append((data, row, value, round(expected, 2)))
    assert differing == [("shapes3d", "SODA w/o layer mod.", 80.09, 89.89)], "the paper's own, which a note names"
    assert "80.09" in PAPER.tables["4"].notes[1] and "89.89" in PAPER.tables["4"].notes[1]


def test_figures_that_the_paper_repeats_are_equal() -> None:
    for data in ("gso", "shapenet"):
        for row, there in (("PixelNeRF", "PixelNeRF"), ("SODA (ours)", "SODA (Transformer Aggregation)")):
            assert _values("3", data, row)[2] == pytest.approx(_values("5", data, there)[0], abs=0.0051)
    own = _values("3", "shapenet", "SODA (ours)")
    assert own == _values("8", "shapenet", "Sphere, Polar", "Rays") == _values("G.3", "shapenet", "Latent")
    assert own == _values("8", "shapenet", "2D Grid, Polar", "Conditioning")
    assert _values("2", "imagenet", "SODA (ours)") == pytest.approx(
        _values("9", "imagenet", "SODA (default)")[:4], abs=0.051
    )


@pytest.mark.parametrize("name", sorted(set(PAPER.data_sets) & set(preset_names())))
def test_settings_of_data_sets_are_those_of_their_presets(name: str) -> None:
    data_set, config = PAPER.data_sets[name], load_config(name)
    assert (data_set.source, data_set.target) == (config.data.source_size, config.data.target_size)
    assert (data_set.batch, data_set.guidance) == (config.train.global_batch, config.sampling.guidance)
    assert data_set.test == config.evaluation.test_split
    assert config.sampling.method == PAPER.sampling.method
    assert PAPER.sampling.steps[0] <= config.sampling.steps <= PAPER.sampling.steps[1]
    larger = {"6": "resnet50x2", "4": "resnet50x2"} if name == "celebahq" else {}
    for number, block in BLOCKS:
        if block.data == name:
            assert block.encoder == larger.get(number, config.encoder.arch), number


def test_every_data_set_but_the_joined_one_has_a_preset() -> None:
    assert set(PAPER.data_sets) - set(preset_names()) == {"mpi3d"}


def test_columns_name_figures_of_ours_and_fields_of_the_configuration() -> None:
    columns = [column for some in PAPER.columns.values() for column in some]
    assert {column.ours for column in (*columns, *COLUMNS)} == set(OURS)
    for column in columns:
        for path in (*column.expects, *column.needs):
            section, _, rest = path.partition(".")
            node = RunConfig.model_fields[section].annotation
            *inner, leaf = rest.split(".")
            for name in inner:
                node = node.model_fields[name].annotation
            assert leaf in node.model_fields, path


def test_a_row_without_all_columns_or_an_unknown_data_set_is_refused() -> None:
    tree = PAPER.model_dump()
    tree["tables"]["9"]["blocks"][0]["rows"][1]["values"] = (1.0, 2.0)
    with pytest.raises(ValidationError, match=r"table 9: w/o layer mod\. has 2 values"):
        Paper.model_validate(tree)
    tree = PAPER.model_dump()
    tree["tables"]["9"]["blocks"][0]["data"] = "imagnet"
    with pytest.raises(ValidationError, match="unknown data set imagnet"):
        Paper.model_validate(tree)


@pytest.mark.parametrize(
    ("number", "says"), [("10", "10, which contains the data sets"), ("13", "got 13; allowed: 1, 2,")]
)
def test_tables_without_results_are_refused(number: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        PAPER.table(number)
