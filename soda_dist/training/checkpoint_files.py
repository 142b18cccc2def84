"""Files of a checkpoint, verified before anything in them is used: size, digest, names and numbers."""

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from soda_dist.config.fields import Count, CountOrZero, Node
from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder
from soda_dist.data.storage.metadata import ContentError, check, read_limited
from soda_dist.errors import UserError
from soda_dist.training.build import build_model

BUFFERS, ONLINE_PROBE, STOP = "buffers.safetensors", "online_probe.safetensors", "stop.json"
REMEDY = "remove this checkpoint's folder to resume from the one before it"
LARGEST = 4 << 30
"""Size limit in bytes of files other than state and models; an online probe of 20,000 classes has 0.5 GB."""
CHUNK_BYTES = 16 << 20
"""Read at once when a file is only verified."""
HEADER_BYTES = 1 << 20
"""Room for the names of a model's tensors."""
_KEY = re.compile(r"([a-z_]+)/([^/]+)/([0-9]{1,15})")


def state_prefix(rank: int, world: int) -> str:
    """Return how the names of a rank's state files begin."""
    return f"state-{rank:05d}-of-{world:05d}-"


class _File(Node):
    name: Annotated[str, Field(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200)]
    bytes: CountOrZero
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Manifest(Node):
    version: int
    step: CountOrZero
    world: Count
    updates: CountOrZero
    files: Annotated[list[_File], Field(max_length=1_000_000)]


_MANIFEST: TypeAdapter[Any] = TypeAdapter(_Manifest)


def check_manifest(manifest: dict[str, Any], where: str, step: int) -> None:
    """Raise a `ContentError` about the file `where` if `manifest` is not as `save` writes it for `step`."""
    check(_MANIFEST, manifest, where, "a manifest of a checkpoint")
    names = [entry["name"] for entry in manifest["files"]]
    if len(set(names)) < len(names):
        raise ContentError(where, "a file listed twice", "each file once", REMEDY)
    if manifest["step"] != step or manifest["updates"] > step:
        got = f"step {manifest['step']} with {manifest['updates']} updates"
        raise ContentError(where, got, f"step {step}, with at most as many updates", REMEDY)


def listed(folder: Folder, manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the manifest's entry of a file; a `ContentError` if it has none."""
    for entry in manifest["files"]:
        if entry["name"] == name:
            return entry
    raise ContentError(folder.uri, f"a manifest without {name}", f"a checkpoint with {name}", REMEDY)


def read_file(folder: Folder, manifest: dict[str, Any], name: str, limit: int = LARGEST) -> bytes:
    """Read a file of the checkpoint.

    Raises:
        ContentError: not listed, missing, larger than `limit`, or of another size or digest than the manifest's.
    """
    expected, where = listed(folder, manifest, name), f"{folder.uri}/{name}"
    try:
        content = read_limited(folder, name, min(limit, expected["bytes"]))
    except FileNotFoundError:
        raise _missing(where) from None
    if len(content) != expected["bytes"] or hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise _other(where, len(content))
    return content


def verify(folder: Folder, expected: dict[str, Any]) -> None:
    """Compare a file with its entry in the manifest, in little memory; raises `ContentError` as `read_file`."""
    where, digest = f"{folder.uri}/{expected['name']}", hashlib.sha256()
    try:
        with folder.open(expected["name"]) as file:
            size = file.size()
            for start in range(0, size if size == expected["bytes"] else 0, CHUNK_BYTES):
                digest.update(folder.retry(where, lambda start=start: file.read_at(CHUNK_BYTES, start)))  # type: ignore[misc]
    except FileNotFoundError:
        raise _missing(where) from None
    if size != expected["bytes"] or digest.hexdigest() != expected["sha256"]:
        raise _other(where, size)


def _missing(where: str) -> ContentError:
    return ContentError(where, "nothing", "a file that the manifest lists", REMEDY)


def _other(where: str, size: int) -> ContentError:
    return ContentError(where, f"{size} bytes with another checksum", "the checksum in the manifest", REMEDY)


def read_tensors(folder: Folder, manifest: dict[str, Any], name: str, limit: int = LARGEST) -> dict[str, Tensor]:
    """Read a file's tensors by name; raises as `read_file` and `parse_tensors`."""
    return parse_tensors(read_file(folder, manifest, name, limit), f"{folder.uri}/{name}")


def parse_tensors(content: bytes, where: str) -> dict[str, Tensor]:
    """Parse safetensors; `where` names the file in errors.

    Raises:
        ContentError: not safetensors, or a value that is not finite.
    """
    try:
        tensors = load_tensors(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch lacks
        got = f"{len(content)} bytes that cannot be read ({str(error).splitlines()[0][:100]})"
        raise ContentError(where, got, "safetensors", REMEDY) from None
    for tensor_name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ContentError(where, f"{tensor_name[:100]} with values that are not finite", "finite values", REMEDY)
    return tensors


def parse_state_key(key: str, values: Tensor, kinds: Sequence[str], where: str) -> tuple[str, str, int]:
    """Split a state tensor's name into kind, parameter and first index; `ContentError` if it is no state."""
    found = _KEY.fullmatch(key)
    if found is None or found[1] not in kinds:
        raise ContentError(where, f"a tensor {key[:100]}", "KIND/PARAMETER/START", REMEDY)
    if values.ndim != 1 or values.dtype != torch.float32:
        got = f"{key[:100]} of {values.ndim} dimensions, {values.dtype}"
        raise ContentError(where, got, "1 dimension, torch.float32", REMEDY)
    return found[1], found[2], int(found[3])


def model_bytes(config: RunConfig) -> int:
    """Compute the size in bytes of a model's parameters and buffers without allocating them."""
    with torch.device("meta"):
        return size_of(build_model(config))


def size_of(module: torch.nn.Module) -> int:
    """Sum the bytes of a module's parameters and persistent buffers."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def check_size(size: int, expected: int, where: str) -> None:
    """Raise a `UserError` if a file of `size` bytes cannot hold `expected` bytes of tensors, or holds much more.

    Called before the network of a configuration of unknown origin is built.
    """
    if not expected <= size <= expected + HEADER_BYTES + expected // 4:
        allowed = f"about {expected:,} bytes, the network of the configuration beside it"
        raise UserError(where, f"{size:,} bytes", allowed, "use the file with its own configuration")
