"""Small files that others may have written: read whole, up to a size, and parsed strictly."""

from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError

MAX_BYTES = 16 << 20
"""Size limit of a manifest, a result or a configuration."""
REMEDY = "restore the file, or recreate it"


class ContentError(UserError):
    """A file that was read and is not what this project writes: damaged, cut, or of other contents."""


def read_limited(folder: Folder, name: str, limit: int = MAX_BYTES) -> bytes:
    """Read a whole file.

    Raises:
        ContentError: more than `limit` bytes.
        FileNotFoundError: no such file.
    """
    with folder.open(name) as file:
        size = file.size()
        if size > limit:
            raise ContentError(folder.file_uri(name), f"{size:,} bytes", f"at most {limit:,} bytes", REMEDY)
        return folder.retry(name, lambda: file.read_at(size, 0))


def read_json(folder: Folder, name: str) -> Any:
    """Read a JSON value; raises as `read_limited` and `parse_json`."""
    return parse_json(read_limited(folder, name), folder.file_uri(name))


def parse_json(content: bytes, where: str) -> Any:
    """Parse JSON in UTF-8; `where` names it in errors.

    Raises:
        ContentError: not JSON, nested deeper than the parser allows, or text that cannot be written again.
    """
    try:
        return from_json(content)
    except ValueError:
        raise ContentError(where, "a file that is not JSON", "JSON", REMEDY) from None


def check(kind: TypeAdapter[Any], value: Any, where: str, allowed: str) -> None:
    """Validate a parsed value; raise its first problem as a `ContentError` about `where`."""
    try:
        kind.validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])[:100] or "content"
        raise ContentError(where, f"an invalid field {place} ({problem['msg']})", allowed, REMEDY) from None
