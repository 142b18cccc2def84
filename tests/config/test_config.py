"""Wrong input is one line that helps; right input is read as written and cannot change afterwards."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from soda_dist import cli
from soda_dist.config import RunConfig, dump_config, load_config, parse_config
from soda_dist.config.load import PRESETS, preset_names, with_fields
from soda_dist.errors import UserError

WRONG = {
    # override: (field, part of got, part of allowed, part of the remedy)
    "trian.steps=3": ("trian", "an unknown key", "method, data, encoder", "did you mean train?"),
    "train.stesp=3": ("train.stesp", "an unknown key", "steps, global_batch", "did you mean steps?"),
    "evaluation.probe.learning_rate=[1.0]": ("evaluation.probe.learning_rate", "unknown", "epochs", "learning_rates?"),
    "train.zzz=3": ("train.zzz", "an unknown key", "micro_batch", "remove it"),
    "train.steps=abc": ("train.steps", "'abc'", "integer", "--print-config"),
    "train.steps=1.5": ("train.steps", "1.5", "integer", "--print-config"),
    "train.steps=true": ("train.steps", "True", "integer", "--print-config"),
    "train.steps='5'": ("train.steps", "'5'", "integer", "--print-config"),
    "train.steps=": ("train.steps", "None", "integer", "--print-config"),
    "optim.lr=fast": ("optim.lr", "'fast'", "number", "--print-config"),
    "optim.lr=2024-01-01": ("optim.lr", "2024", "number", "--print-config"),
    "optim.lr=2024-13-45": ("optim.lr", "not YAML", "YAML", "correct it"),
    "data.augmentation.flip=1": ("data.augmentation.flip", "1", "boolean", "--print-config"),
    "denoiser.channel_multipliers=3": ("denoiser.channel_multipliers", "3", "list", "--print-config"),
    "evaluation.probe.learning_rates=[0.1, x]": ("evaluation.probe.learning_rates.1", "'x'", "number", ""),
    "train=5": ("train", "5", "Train", "--print-config"),
    "train.steps=0": ("train.steps", "0", "greater than or equal to 1", "--print-config"),
    "encoder.dropout=1.0": ("encoder.dropout", "1.0", "less than 1", "--print-config"),
    "optim.lr=-1e-4": ("optim.lr", "-0.0001", "greater than 0", "--print-config"),
    "optim.lr=.inf": ("optim.lr", "inf", "finite", "--print-config"),
    "optim.lr=.nan": ("optim.lr", "nan", "finite", "--print-config"),
    "scale.zero_stage=4": ("scale.zero_stage", "4", "less than or equal to 3", "--print-config"),
    "seed=-1": ("seed", "-1", "greater than or equal to 0", "--print-config"),
    "encoder.arch=resnet34": ("encoder.arch", "'resnet34'", "'resnet18', 'resnet50', 'resnet50x2'", ""),
    "train.precision=fp16": ("train.precision", "'fp16'", "'auto', 'fp32' or 'bf16'", "--print-config"),
    "denoiser.channel_multipliers=[1, 0]": ("denoiser.channel_multipliers.1", "0", "greater than or equal", ""),
    "denoiser.channel_multipliers=[]": ("denoiser.channel_multipliers", "()", "1 or more items", ""),
    "train.steps": ("override", "train.steps", "section.field=value", "for example"),
    "=3": ("override", "=3", "section.field=value", "for example"),
    "train.steps.x=5": ("train.steps.x", "train.steps.x=5", "a field of a section", "steps is a value"),
    "train.steps=[1": ("train.steps", "line 1", "YAML", "correct it"),
    "train={steps: 5}": ("train", "{steps: 5}", "a single field", "train.FIELD=value"),
}

SMALL = str(Path(__file__).with_name("small.yaml"))
CONTRADICTIONS = {
    # overrides of small.yaml
    ("data.target_size=30",): ("data.target_size", "30 with 3 levels", "multiples of 4", "number of levels"),
    ("denoiser.channel_multipliers=[1, 1, 1, 1, 1, 1, 2]",): ("data.target_size", "7 levels", "multiples of 64", ""),
    ("encoder.stem=imagenet", "data.source_size=16"): ("data.source_size", "stem=imagenet", ">= 32", "stem=small"),
    ("denoiser.head_dim=7",): ("denoiser.head_dim", "48 channels at resolution 8", "divisors", "change"),
    ("encoder.latent_dim=4",): ("encoder.latent_dim", "4 with 5 sections", ">= 5", "increase latent_dim"),
    ("scale.workers=3",): ("scale.workers", "train.global_batch=64", "1, 2, 4, 8, 16, 32, 64", "divides"),
    ("train.micro_batch=7",): (
        "train.micro_batch",
        "7 with train.global_batch=64",
        "1, 2, 4, 8",
        "each worker's batch",
    ),
    ("train.micro_batch=32", "scale.workers=4"): (
        "train.micro_batch",
        "workers=4",
        "1, 2, 4, 8, 16;",
        "each worker's batch",
    ),
    ("train.micro_batch=16", "scale.workers=2"): (
        "train.norm_batch",
        "null, so train.global_batch=64, with micro-batches of 16 on scale.workers=2",
        "1, 2, 4, 8, 16, 32;",
        "encoder.norm=group",
    ),
    ("train.global_batch=96", "train.micro_batch=24", "scale.workers=4", "train.norm_batch=16"): (
        "train.norm_batch",
        "16 with micro-batches of 24 on scale.workers=4",
        "1, 2, 3, 4, 6, 8, 12, 24, 48, 96;",
        "another model",
    ),
    ("sampling.steps=2000",): ("sampling.steps", "diffusion.steps=1000", "1..1000", "fewer"),
    ("data.augmentation.crop_area=[0.5, 0.1]",): ("data.augmentation.crop_area", "0.5, 0.1", "low <= high", "smaller"),
    ("data.augmentation.crop_aspect=[2, 1]",): ("data.augmentation.crop_aspect", "2.0, 1.0", "low <= high", "smaller"),
}

FILES = {
    # content of a preset file: (field; "" is the file itself, part of got, part of allowed)
    b"train: {steps: [}": ("", "line 1", "YAML"),
    b"seed: 1\nseed : {": ("", "line 2", "YAML"),
    b"- a list": ("", "tuple", "a mapping of sections"),
    b"just text": ("", "str", "a mapping of sections"),
    b"\xff\xd8\xff\xe0 a picture": ("", "text that is not UTF-8", "UTF-8"),
    b"train:": ("train", "None", "Train"),
    b"1: 2": ("1", "1", "strings"),
    b"encoder: {latent_din: 3}": ("encoder.latent_din", "an unknown key", "latent_dim"),
}


def _complaint(preset: str, overrides: tuple[str, ...] = ()) -> UserError:
    with pytest.raises(UserError) as caught:
        load_config(preset, overrides)
    line = str(caught.value)
    assert "\n" not in line
    assert (
        line == f"{caught.value.field}: got {caught.value.got}; allowed: {caught.value.allowed}; {caught.value.remedy}"
    )
    assert all((caught.value.field, caught.value.allowed, caught.value.remedy)), line
    return caught.value


@pytest.mark.parametrize("override", WRONG)
def test_wrong_value_is_one_line_with_field_got_allowed_remedy(override: str) -> None:
    field, got, allowed, remedy = WRONG[override]
    error = _complaint("demo", (override,))
    assert error.field == field
    assert got in str(error.got)
    assert allowed in error.allowed
    assert remedy in error.remedy


@pytest.mark.parametrize("overrides", CONTRADICTIONS)
def test_contradicting_fields_are_named_together(overrides: tuple[str, ...]) -> None:
    field, got, allowed, remedy = CONTRADICTIONS[overrides]
    error = _complaint(SMALL, overrides)
    assert error.field == field
    assert got in str(error.got)
    assert allowed in f"{error.allowed};"
    assert remedy in error.remedy


def test_what_a_contradiction_allows_is_accepted() -> None:
    for batch, workers in ((64, 3), (4096, 96), (97, 2)):
        allowed = _complaint("demo", (f"train.global_batch={batch}", f"scale.workers={workers}")).allowed.split(", ")
        assert [int(n) for n in allowed] == [n for n in range(1, batch + 1) if batch % n == 0]
        for legal in allowed:
            assert load_config("demo", (f"train.global_batch={batch}", f"scale.workers={legal}")).accumulation == 1


@pytest.mark.timeout(5)
def test_a_batch_of_any_size_is_answered_at_once() -> None:
    prime = 2_147_483_647
    error = _complaint("demo", (f"train.global_batch={prime}", "train.micro_batch=2"))
    assert error.allowed == f"1, {prime}"


@pytest.mark.parametrize("content", FILES)
def test_wrong_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "preset.yaml"
    path.write_bytes(content)
    field, got, allowed = FILES[content]
    error = _complaint(str(path))
    assert error.field == (field or str(path))
    assert got in str(error.got)
    assert allowed in error.allowed


def test_unknown_preset_and_missing_file_say_what_there_is(tmp_path: Path) -> None:
    assert _complaint("demoo").allowed == ", ".join(preset_names()) + ", or a .yaml file"
    assert {"demo", "cifar10", "imagenet"} < set(preset_names())
    assert _complaint(str(tmp_path / "none.yaml")).allowed == "an existing YAML file"
    assert _complaint(str(tmp_path)).field == "--preset"


def test_a_job_ends_with_code_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = cli.parser("a job")
    cli.add_config(arguments, preset="demo")
    monkeypatch.setattr(sys, "argv", ["job", "train.steps=abc"])
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda argv: dump_config(cli.config_of(cli.parse(arguments, argv))))
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "train.steps: got 'abc'; allowed: integer" in err


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "+1e-4", "1.0e-4", ".1e-3", "0.0001"])
def test_numbers_are_read_as_people_write_them(written: str, tmp_path: Path) -> None:
    assert load_config("demo", (f"optim.lr={written}",)).optim.lr == 1e-4
    path = tmp_path / "preset.yaml"
    path.write_text(f"optim: {{lr: {written}}}\n")
    assert load_config(str(path)).optim.lr == 1e-4


def test_an_integer_is_a_number_but_a_number_is_not_an_integer() -> None:
    assert load_config("demo", ("optim.lr=1",)).optim.lr == 1.0
    assert _complaint("demo", ("train.steps=1e3",)).field == "train.steps"


def test_overrides_change_one_leaf_and_the_later_one_wins() -> None:
    plain, changed = load_config("demo"), load_config("demo", ("train.steps=700", "train.steps=800", "seed=3"))
    assert (changed.train.steps, changed.seed) == (800, 3)
    restored = changed.model_copy(update={"seed": plain.seed, "train": plain.train})
    assert restored == plain
    assert load_config("demo", ("train.micro_batch=null",)).train.micro_batch is None


def test_fields_of_a_trial_are_replaced_and_checked() -> None:
    plain = load_config("demo")
    changed = with_fields(plain, {"encoder.lr_ratio": 3.0, "seed": 5})
    assert changed == load_config("demo", ("encoder.lr_ratio=3.0", "seed=5"))
    assert plain == load_config("demo")
    wrong = {"encoder.zzz": 1, "zzz.steps": 1, "seed.x": 1, "encoder.lr_ratio": 0.0, "scale.workers": 3}
    for field, value in wrong.items():
        with pytest.raises(UserError) as caught:
            with_fields(plain, {field: value})
        assert caught.value.field == field
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", preset_names())
def test_presets_round_trip(preset: str, tmp_path: Path) -> None:
    config = load_config(
        preset, ("seed=7", "optim.lr=1.7e-5", "denoiser.attention_resolutions=[]", "data.train_split='1e5'")
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(str(path)) == config
    assert parse_config(dump_config(config), "config.yaml") == config
    assert dump_config(load_config(str(path))) == dump_config(config)


def test_the_dump_names_every_field() -> None:
    written = yaml.safe_load(dump_config(load_config("imagenet")))
    assert {name for name, _ in _leaves(written)} == {name for name, _ in _leaves(RunConfig().model_dump())}


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("preset", preset_names())
def test_presets_state_only_differences(preset: str) -> None:
    config, default = load_config(preset).model_dump(), RunConfig().model_dump()
    differing = {name for name, value in _leaves(config) if value != dict(_leaves(default))[name]}
    stated = {name for name, _ in _leaves(yaml.safe_load((PRESETS / f"{preset}.yaml").read_text()))}
    assert stated == differing


def test_nothing_can_be_changed_afterwards() -> None:
    config = load_config("demo")
    nodes = [config, *(node for node in vars(config).values() if isinstance(node, BaseModel)), config.evaluation.probe]
    for node in nodes:
        name = next(iter(type(node).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(node, name, getattr(node, name))
    # Hashable all the way down: no list or dict is left that could be changed in place.
    assert hash(config) == hash(load_config("demo"))


def test_batches_are_shared_out_exactly() -> None:
    fields = ("train.global_batch=96", "train.micro_batch=8", "scale.workers=3", "train.norm_batch=24")
    config = load_config("demo", fields)
    assert (config.micro_batch, config.accumulation) == (8, 4)
    config = load_config("demo", ("train.global_batch=96", "scale.workers=3"))
    assert (config.micro_batch, config.accumulation) == (32, 1)


@pytest.mark.parametrize(
    ("fields", "group"),
    [
        ((), 32),
        (("scale.workers=4",), 32),
        (("train.norm_batch=8", "train.micro_batch=16"), 8),
        (("train.norm_batch=64",), 32),
        (("encoder.norm=group", "train.micro_batch=2"), None),
        (("encoder.arch=vit_small", "train.micro_batch=2"), None),
        (("method=palette", "denoiser.layer_mask_rate=0", "train.micro_batch=2"), None),
    ],
)
def test_groups_of_batch_norm_do_not_depend_on_the_workers(fields: tuple[str, ...], group: int | None) -> None:
    assert load_config("demo", fields).norm_batch == group


def test_the_groups_that_a_refusal_allows_are_accepted() -> None:
    split = ("train.global_batch=96", "train.micro_batch=12", "scale.workers=4")
    allowed = _complaint("demo", split).allowed.split(", ")
    assert allowed == ["1", "2", "3", "4", "6", "12", "24", "48"]
    for legal in allowed:
        assert load_config("demo", (*split, f"train.norm_batch={legal}")).norm_batch == int(legal)


def test_the_imagenet_preset_is_the_paper() -> None:
    """Tables 10 and 12, and FORMULAS' reading of the resize (8/7 of the crop)."""
    config = load_config("imagenet")
    assert (config.data.source_size, config.data.target_size) == (224, 128)
    assert round(config.data.source_size * config.data.eval_resize) == 256
    assert round(config.data.target_size * config.data.eval_resize) == 146
    assert (config.encoder.arch, config.encoder.lr_ratio, config.encoder.drop_path) == ("resnet50x2", 2.0, 0.1)
    assert (config.data.source_noise, config.data.augmentation.randaugment_rate) == (0.1, 0.65)
    assert (config.denoiser.layer_mask_rate, config.denoiser.guidance_mask_rate) == (0.15, 0.12)
    assert (config.diffusion.schedule, config.diffusion.steps, config.sampling.guidance) == ("inverted", 1000, 2.0)
    optim = config.optim
    assert (optim.betas, optim.weight_decay, optim.clip_norm) == ((0.9, 0.95), 0.05, 0.5)
    assert (optim.warmup_steps, optim.ema_decay) == (5000, 0.9999)
    assert (optim.decay, optim.final_lr_fraction) == ("cosine", 0.25)
    assert config.train.global_batch == 4096
    probe = config.evaluation.probe
    assert (probe.label_smoothing, probe.bias, probe.weight_std, probe.dropout) == (0.1, -10.0, 0.02, 0.1)
