"""Types of the facts that readers take from `eval/STEP/TASK.json`; a result may lack any of them and hold others."""

from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from soda_dist.data.storage.metadata import check


class _Facts(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Estimate(_Facts):
    value: float | None = None
    standard_error: float | None = None


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    uri: str
    kind: str
    rows: dict[str, int]
    reencoded: dict[str, int | None] | None = None


class _Origin(_Facts):
    time: str = ""


class _Result(_Estimate):
    """A result of any task."""

    data: _Data | None = None
    provenance: _Origin = _Origin()
    label: str | None = None
    split: str | None = None
    splits: dict[str, str] = {}
    counts: dict[str, int] = {}


class _Encoder(_Facts):
    estimates: dict[str, _Estimate]


class _Classified(_Result):
    classes: int = 0
    majority: float = 0.0
    encoders: dict[str, _Encoder] = {}


class _Sampling(_Facts):
    method: str = ""
    steps: int = 0
    guidance: float = 0.0
    sources: int = 0


class _Drawn(_Facts):
    psnr: _Estimate = _Estimate()
    ssim: _Estimate = _Estimate()
    lpips: _Estimate | None = None
    fid: _Estimate | None = None


class _Reconstructed(_Result):
    images: int = 0
    settings: _Sampling = _Sampling()
    guidance: dict[str, _Drawn] = {}


class _Views(_Result):
    settings: _Sampling = _Sampling()
    sets: list[_Drawn] = []


class _FidSettings(_Facts):
    sampling: _Sampling = _Sampling()


class _Distances(_Result):
    settings: _FidSettings = _FidSettings()
    sets: dict[str, _Drawn] = {}


_KINDS: dict[str, TypeAdapter[Any]] = {
    "probe": TypeAdapter(_Classified),
    "knn": TypeAdapter(_Classified),
    "reconstruction": TypeAdapter(_Reconstructed),
    "novel_views": TypeAdapter(_Views),
    "fid": TypeAdapter(_Distances),
}
_ANY: TypeAdapter[Any] = TypeAdapter(_Result)


def check_result(task: str, result: Any, where: str) -> None:
    """Raise `UserError` about the file `where` if a fact of the result of `task` has another type than it should."""
    check(_KINDS.get(task, _ANY), result, where, f"a result of {task}, as written")
