"""The installed command `soda-dist`: the same commands as `jobs/`, under its own name."""

import sys
from pathlib import Path

import pytest

from soda_dist import __version__
from soda_dist.commands import command_names, dispatch, main, prepare_data
from soda_dist.errors import UserError

ROOT = Path(__file__).parents[2]


def started_as(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/soda-dist", *arguments])


def test_every_job_is_a_command_and_every_command_a_job() -> None:
    assert command_names() == sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))


def test_help_lists_each_command_with_a_sentence() -> None:
    lines = dispatch(["--help"]).splitlines()
    for name in command_names():
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert line.endswith((".", ":", ";")) and len(line.split()) > 4


@pytest.mark.parametrize("name", command_names())
def test_help_of_a_command_names_it_as_started(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started_as(monkeypatch, name, "--help")
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert shown.startswith(f"usage: soda-dist {name} ")
    assert f"soda-dist {name} " in shown.partition("\n")[2]
    assert "jobs/" not in shown and ".py" not in shown


def test_help_of_a_kind_names_the_command_as_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "python jobs/prepare_data.py folder --source" in prepare_data.main(["folder", "--help"])
    started_as(monkeypatch, "prepare_data", "folder", "--help")
    assert "  soda-dist prepare_data folder --source" in prepare_data.main(["folder", "--help"])


def test_a_hyphen_is_an_underscore() -> None:
    assert dispatch(["prepare-data", "cifar10", "--help"]).startswith("CIFAR-10")


def test_a_mistake_is_one_line_and_exit_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for arguments in ([], ["pretrian"], ["plan"], ["plan", "--preset", "demo", "train.stps=3"]):
        started_as(monkeypatch, *arguments)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        said[" ".join(arguments)] = capsys.readouterr().err
    assert all(text.startswith("error: ") and text.count("\n") == 1 for text in said.values())
    assert "command: got nothing; allowed: ablate, benchmark" in said[""]
    assert "command: got pretrian" in said["pretrian"] and "soda-dist --help" in said["pretrian"]
    assert "see soda-dist plan --help" in said["plan"]
    assert "did you mean steps?" in said["plan --preset demo train.stps=3"]


def test_the_version_is_the_packages() -> None:
    assert dispatch(["--version"]) == f"soda-dist {__version__}"
    with pytest.raises(UserError):
        dispatch(["-v"])
