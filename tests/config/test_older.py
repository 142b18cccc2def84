"""Configurations that older formats stored, by what their runs did."""

import json

import pytest

from soda_dist.config import RunConfig, dump_config, parse_config
from soda_dist.config.older import FORMAT, parse_stored, refuse_to_train, stored_format
from soda_dist.errors import UserError
from tests.tiny import tiny_config


def without(config: RunConfig, *names: str) -> str:
    tree = config.model_dump(mode="json")
    return json.dumps(tree | {"denoiser": {key: value for key, value in tree["denoiser"].items() if key not in names}})


def test_a_stored_configuration_without_the_layout_means_the_mirrored_one() -> None:
    config = tiny_config(denoiser={"position_dim": 24})
    text = without(config, "up_path", "time_dim", "time_scale")
    older = parse_stored(text, "here")
    assert (older.denoiser.up_path, older.denoiser.time_dim, older.denoiser.time_scale) == ("mirrored", 24, None)
    same = {"up_path": "adm", "time_dim": None, "time_scale": None}
    assert older.model_copy(update={"denoiser": older.denoiser.model_copy(update=same)}) == config
    assert stored_format(text, "here") == 1
    assert parse_config(text, "here") == config  # a user's file gets the defaults


@pytest.mark.parametrize("text", [dump_config(tiny_config()), without(tiny_config())], ids=["yaml", "json"])
def test_a_stored_configuration_of_this_format_is_read_as_it_is(text: str) -> None:
    assert parse_stored(text, "here") == tiny_config()
    assert stored_format(text, "here") == FORMAT
    refuse_to_train("URI", FORMAT)


def test_an_older_run_is_not_trained() -> None:
    with pytest.raises(UserError) as caught:
        refuse_to_train("URI", 1)
    assert str(caught.value) == (
        "--run: got URI, a run of format 1; allowed: runs of format 2, which this release trains; "
        "start a new run; evaluate and compare still read this one"
    )


@pytest.mark.parametrize(("text", "says"), [("[1]", "a mapping of sections"), ('{"denoiser": 3}', "denoiser: got 3")])
def test_what_no_release_wrote_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_stored(text, "here")


def test_an_older_run_that_accumulated_is_read() -> None:
    """Its batch norm had the statistics of a micro-batch, which no default of today's would allow."""
    config = tiny_config(encoder={"norm": "batch"}, train={"micro_batch": 4, "norm_batch": 4})
    tree = json.loads(without(config, "up_path", "time_dim"))
    del tree["train"]["norm_batch"]
    assert parse_stored(json.dumps(tree), "here").train.norm_batch == 4
    assert stored_format(json.dumps(tree), "here") == 1
