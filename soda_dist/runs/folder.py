"""The layout of a run's folder: its configuration, its attempts, its checkpoints, and where everything else goes.

No other file knows these names. They are written to storage, so they stay.
"""

from typing import Any

from soda_dist.config.load import dump_config, leaves, parse_config
from soda_dist.config.provenance import provenance
from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError

CONFIG, PROVENANCE, REPORT = "config.yaml", "provenance.json", "report.html"
CHECKPOINTS, EVALUATIONS = "checkpoints", "eval"
MANIFEST = "manifest.json"
"""Written last into a checkpoint's folder: a checkpoint without it does not count."""
FREE_SECTIONS = ("scale", "evaluation", "sampling")
FREE_TRAIN_FIELDS = (
    "steps",
    "log_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "micro_batch",
    "max_unreadable",
)
"""With FREE_SECTIONS: what may change between two attempts of a run. The weights depend on everything else."""


def read_config(run: Folder, flag: str = "--run") -> RunConfig:
    """The configuration that the run was last started with.

    Args:
        flag: names the run in errors.

    Raises:
        UserError: the folder has no configuration, or not one of this version.
    """
    text = config_text(run)
    if not text:
        raise UserError(flag, f"{run.uri}, which has no {CONFIG}", "the folder of a run", "check the URI")
    return parse_config(text, run.file_uri(CONFIG))


def config_text(run: Folder) -> str:
    """The configuration as it is stored; empty where the folder has none."""
    try:
        return run.read(CONFIG).decode()
    except FileNotFoundError:
        return ""


def write_config(run: Folder, config: RunConfig) -> None:
    """Store `config` as the run's."""
    run.write(CONFIG, dump_config(config).encode())


def attempts(run: Folder) -> list[dict[str, Any]]:
    """The provenance of each start of the run, oldest first."""
    return run.read_json(PROVENANCE) if run.exists(PROVENANCE) else []


def claim(run: Folder, config: RunConfig) -> None:
    """Store the configuration and the provenance of a new attempt.

    Raises:
        UserError: an earlier attempt has another value in a field that the weights depend on.
    """
    if config_text(run) and (difference := _difference(read_config(run), config)) is not None:
        field, old, new = difference
        raise UserError(field, f"{new}, but the run at {run.uri} has {old}", "the run's own value", "use another --run")
    write_config(run, config)
    run.write_json(PROVENANCE, [*attempts(run), provenance()])


def _difference(before: RunConfig, now: RunConfig) -> tuple[str, Any, Any] | None:
    old, new = leaves(before.model_dump()), leaves(now.model_dump())
    for field, value in new.items():
        section, _, name = field.partition(".")
        free = section in FREE_SECTIONS or (section == "train" and name in FREE_TRAIN_FIELDS)
        if not free and old.get(field) != value:
            return field, old.get(field), value
    return None


def checkpoint_folder(run: Folder, step: int) -> Folder:
    """Where the checkpoint of `step` lies, complete or not."""
    return run.child(f"{CHECKPOINTS}/{step:09d}")


def complete_steps(run: Folder) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    found = []
    for entry in run.list(CHECKPOINTS):
        parts = entry.name.split("/")
        if len(parts) == 3 and parts[2] == MANIFEST:
            found.append(int(parts[1]))
    return sorted(found)


def chosen_steps(run: Folder, wanted: str) -> list[int]:
    """The complete checkpoints that `wanted` names: a step, `latest` or `all`.

    Raises:
        UserError: no complete checkpoint, or none of this step.
    """
    steps = complete_steps(run)
    if not steps:
        raise UserError("--run", f"{run.uri}, which has no complete checkpoint", "a trained run", "pretrain first")
    if wanted == "all":
        return steps
    if wanted == "latest":
        return steps[-1:]
    if not wanted.isdigit() or int(wanted) not in steps:
        allowed = ", ".join([*map(str, steps), "latest", "all"])
        raise UserError("--step", wanted, allowed, "choose a complete checkpoint")
    return [int(wanted)]


def evaluation_folder(run: Folder, step: int, *, ema: bool) -> Folder:
    """Where the results and pictures of a checkpoint lie."""
    return run.child(f"{EVALUATIONS}/{step}" if ema else f"{EVALUATIONS}/{step}/without-ema")


def latents_folder(run: Folder, address: str) -> Folder:
    """Where the extracted latents of this address lie, a folder for each split."""
    return run.child(f"latents/{address}")


def samples_folder(run: Folder, address: str) -> Folder:
    """Where the drawn set of this address lies."""
    return run.child(f"samples/{address}")


def scratch_folder(run: Folder) -> Folder:
    """Where a training attempt keeps what ends with it."""
    return run.child("ray")
