"""Wrong input of an export: one line that names what was wrong and what to do."""

from pathlib import Path

import pytest

from soda_dist.commands.export import main
from soda_dist.errors import UserError
from soda_dist.export.exporter import export
from tests.export.checkpoints import NO_ENCODER, checkpointed
from tests.tiny import tiny_config

COMMANDS = {
    "--to keras": "invalid choice: 'keras'",
    "--to timm --int8": "--int8: got --to timm; allowed: --to onnx",
    "--to onnx --push me/x": "--push: got --to onnx; allowed: --to hub",
    "--to onnx --license mit": "--license: got --to onnx",
    "--to onnx --data DATA": "--data: got no --int8",
}


@pytest.mark.parametrize("options", COMMANDS)
def test_options_of_another_format_are_refused(options: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        main(["--run", str(tmp_path), "--out", str(tmp_path / "out"), *options.split()])
    assert COMMANDS[options] in str(error.value)


@pytest.mark.parametrize("to", ["timm", "onnx"])
def test_a_model_without_an_encoder_of_images_alone_is_refused(to: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out.onnx")
    plain = checkpointed(tmp_path / "plain", tiny_config(**NO_ENCODER))
    with pytest.raises(UserError, match="method=unconditional, which has no encoder"):
        export(plain.uri, to, out)
    posed = checkpointed(tmp_path / "posed", tiny_config(data={"pose": "pixels"}))
    with pytest.raises(UserError, match=r"takes poses \(pose.conditioning=grid\)"):
        export(posed.uri, to, out)
    assert not Path(out).exists()


def test_a_run_without_the_checkpoint_and_an_output_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    empty, out = str(tmp_path / "none"), str(tmp_path / "out")
    for to in ("timm", "hub"):
        with pytest.raises(UserError, match="no complete checkpoint"):
            export(empty, to, out)
    with pytest.raises(UserError, match=r"NAME\.onnx"):
        export(empty, "onnx", out)
    run = checkpointed(tmp_path / "run", tiny_config())
    for step in ("all", "7"):
        with pytest.raises(UserError, match="--step"):
            export(run.uri, "hub", out, step=step)
    with pytest.raises(UserError, match="/proc/none/out: got a place that takes no folder"):
        export(run.uri, "hub", "/proc/none/out")
    Path(out).write_text("a file")
    with pytest.raises(UserError, match="out"):
        export(run.uri, "hub", out)
    with pytest.raises(UserError, match="--to: got keras; allowed: timm, onnx, hub"):
        export(run.uri, "keras", out)
