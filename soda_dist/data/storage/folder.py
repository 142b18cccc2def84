"""Folders at any URI: a local path, `file://`, `s3://` or `gs://`.

Writes are atomic: locally a temporary file is renamed; in an object store an object appears when its upload ends. An
object store has no folders: a folder exists while an object's name goes through it. Errors that the user can fix are
`UserError`.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import pyarrow as pa
from pyarrow import fs

from soda_dist.config.uris import split_uri
from soda_dist.data.storage.errors import UNOPENED, explain_arrow, through_a_file
from soda_dist.data.storage.gcs import gcs
from soda_dist.data.storage.retries import retry
from soda_dist.data.storage.s3 import s3
from soda_dist.errors import UserError

Result = TypeVar("Result")
Writable: TypeAlias = bytes | memoryview | pa.Buffer
TEMPORARY = ".soda-tmp-"
_NO_NAME = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")
"""A part of a name that is empty, `.` or `..`: legal in object stores, unreadable through pyarrow."""


class Entry(NamedTuple):
    """A listed file: its name relative to the folder, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Folder:
    """A folder at a URI, which need not exist before the first write. Picklable: it holds only the URI.

    Names are relative, with `/` between parts. Methods raise `FileNotFoundError` for a missing file, and `UserError`
    for problems with the bucket, credentials, endpoint or permissions.
    """

    uri: str

    @property
    def is_local(self) -> bool:
        """Whether seeking is cheap: in an object store each read is a request."""
        return "://" not in self.uri

    def arrow(self) -> tuple[fs.FileSystem, str]:
        """Return pyarrow's file system and the path in it, for libraries that write themselves."""
        with self.explained(""):
            return self._filesystem(), self._path("")

    def child(self, name: str) -> "Folder":
        """Return the folder `name` below this one."""
        return Folder(f"{self.uri.rstrip('/')}/{_checked(name)}")

    def file_uri(self, name: str) -> str:
        """Return a file's URI, for messages."""
        return f"{self.uri.rstrip('/')}/{name}" if name else self.uri

    def read(self, name: str) -> bytes:
        """Read the whole file."""

        def whole() -> bytes:
            with self._filesystem().open_input_stream(self._path(name), compression=None) as stream:
                return stream.read()

        return self.retry(name, whole)

    def open(self, name: str) -> pa.NativeFile:
        """Open the file for random access; its `read_at` is thread-safe."""

        def opened() -> pa.NativeFile:
            file = self._filesystem().open_input_file(self._path(name))
            # On gs:// the first look at `closed` sends a request, whose failure would only show as a closed file.
            if file.closed:
                raise OSError(UNOPENED)
            return file

        return self.retry(name, opened)

    def write(self, name: str, data: Writable) -> None:
        """Create or replace the file, atomically."""

        def store() -> None:
            if self.is_local:
                _write_local(Path(self._path(name)), data)
                return
            # pyarrow would compress names that end in .gz once more.
            stream = self._filesystem().open_output_stream(self._path(name), compression=None)
            # Not in a `with`: leaving it closes the stream once more after a failed write, which hides the error.
            stream.write(data)
            stream.close()

        self.retry(name, store)

    @contextlib.contextmanager
    def replacing(self, name: str, scratch: str = "") -> Iterator[Path]:
        """Give a local path to write to; it becomes the file, atomically, when the block ends without an error.

        Where this folder is local, the path lies in its folder `scratch`, where it stays if the process is killed.
        """
        if self.is_local:
            with self.explained(name), _replacing_local(Path(self._path(name)), Path(self._path(scratch))) as path:
                yield path
            return
        with tempfile.TemporaryDirectory(prefix="soda-") as place:
            path = Path(place) / "file"
            yield path

            def store() -> None:
                stream = self._filesystem().open_output_stream(self._path(name), compression=None)
                with path.open("rb") as file:
                    shutil.copyfileobj(file, stream, 16 << 20)
                stream.close()  # not in a `with`, as in `write`

            self.retry(name, store)

    def exists(self, name: str) -> bool:
        """Whether `name` is a file."""
        info = self.retry(name, lambda: self._filesystem().get_file_info(self._path(name)))
        return info.type == fs.FileType.File

    def list(self, prefix: str = "") -> Sequence[Entry]:
        """List all files, at any depth, whose name starts with `prefix`, sorted; empty if the folder does not exist."""
        base = prefix.rpartition("/")[0]
        entries = (Entry(path, info.size) for path, info in self._infos(base, recursive=True) if info.is_file)
        return sorted(e for e in entries if e.name.startswith(prefix) and not _is_temporary(e.name))

    def folders(self, name: str = "") -> Sequence[str]:
        """List the names of the folders directly below `name`, sorted; empty if it does not exist.

        One level is listed; on gs:// all files below, since pyarrow does not return the folders of one level there.
        """
        infos = self._infos(name, recursive=self.uri.startswith("gs://"))
        start = len(_checked(name)) + 1 if _checked(name) else 0
        heads = ((path[start:].partition("/"), info) for path, info in infos)
        return sorted({head for (head, below, _), info in heads if below or info.type == fs.FileType.Directory})

    def files(self, name: str = "") -> Sequence[Entry]:
        """List the files directly below the folder `name`, sorted; empty if it does not exist."""
        infos = self._infos(name, recursive=False)
        return sorted(Entry(path, i.size) for path, i in infos if i.is_file and not _is_temporary(path))

    def remove(self, name: str) -> None:
        """Remove one file."""
        self.retry(name, lambda: self._filesystem().delete_file(self._path(name)))

    def remove_tree(self, name: str) -> None:
        """Remove the folder `name` and its contents, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self.retry(name, lambda: self._filesystem().delete_dir(self._path(_checked(name))))

    def discard_temporary(self) -> None:
        """Remove temporary files of killed writers; call only while nothing writes here."""
        if self.is_local:
            for path in Path(self.uri).rglob(f"{TEMPORARY}*"):
                path.unlink(missing_ok=True)

    def read_json(self, name: str) -> Any:
        """Read the file's JSON value; a `UserError` if it is not JSON."""
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError):
            got = "a file that is not JSON"
            raise UserError(self.file_uri(name), got, "JSON", "restore or recreate it") from None

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as indented JSON."""
        self.write(name, (json.dumps(value, indent=1) + "\n").encode())

    def _infos(self, name: str, *, recursive: bool) -> Sequence[tuple[str, fs.FileInfo]]:
        """List what is below `name`, with paths relative to this folder."""
        selector = fs.FileSelector(self._path(name), recursive=recursive, allow_not_found=True)
        start = len(self._path("").rstrip("/")) + 1

        def infos() -> Sequence[tuple[str, fs.FileInfo]]:
            found = self._filesystem().get_file_info(selector)
            if not found and not self.is_local and self._filesystem().get_file_info(selector.base_dir).is_file:
                raise NotADirectoryError(selector.base_dir)
            try:
                listed = [(info.path[start:], info) for info in found]
            except UnicodeDecodeError as error:
                got = f"a file whose name is not UTF-8: {error.object!r}"
                raise UserError(self.file_uri(name), got, "names in UTF-8", "rename it") from None
            for path, _ in listed:
                if _NO_NAME.search(path):
                    got = f"an object whose name has a part that is empty, . or ..: {path!r}"
                    raise UserError(self.file_uri(name), got, "names such as a/b/c.png", "rename it")
            return listed

        return self.retry(name, infos)

    def _path(self, name: str) -> str:
        root, inner = (self.uri.partition("://")[2] or self.uri).rstrip("/"), _checked(name)
        return f"{root}/{inner}" if inner else root or "/"

    def _filesystem(self) -> fs.FileSystem:
        scheme, _, path = self.uri.rpartition("://")
        bucket = path.partition("/")[0]
        return s3(bucket) if scheme == "s3" else gcs(bucket) if scheme == "gs" else fs.LocalFileSystem()

    def retry(self, name: str, act: Callable[[], Result]) -> Result:
        """Call `act`, which uses the file `name`, with retries of transient failures; raises as `explained`."""

        def explained() -> Result:
            with self.explained(name):
                return act()

        return retry(explained)

    @contextlib.contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Translate errors of pyarrow inside the block into this folder's errors."""
        uri = self.file_uri(name)
        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri) from None
        except IsADirectoryError:
            raise UserError(uri, "a folder", "a file", "name a file") from None
        except (NotADirectoryError, FileExistsError):
            raise through_a_file(uri) from None
        except OSError as error:
            raise explain_arrow(uri, error) from error
        except pa.ArrowException as error:  # Google's client reports some faults so
            if "google::cloud::Status" not in str(error):
                raise
            raise explain_arrow(uri, error) from error


def open_folder(uri: str) -> Folder:
    """Return the folder at `uri`; contacts no server.

    Raises:
        UserError: as `split_uri`.
    """
    scheme, rest = split_uri(uri)
    if scheme:
        return Folder(f"{scheme}://{rest}")
    return Folder(str(Path(os.path.abspath(Path(rest).expanduser()))))  # noqa: PTH100 - keeps symbolic links


def locate(uri: str) -> tuple[Folder, str]:
    """Split `uri` into the folder that holds it and its name there."""
    folder = open_folder(uri)
    parent, _, name = folder.uri.rpartition("/")
    if not name or parent.endswith(":/"):
        raise UserError(uri, "a root or a bucket", "a file in a folder", "name the file")
    return Folder(parent or "/"), name


def _checked(name: str) -> str:
    """Return the name without parts that are empty or `.`, as a disk reads it."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        raise ValueError(f"not a relative name: {name!r}")
    return "/".join(part for part in parts if part not in ("", "."))


def _is_temporary(name: str) -> bool:
    return name.rpartition("/")[2].startswith(TEMPORARY)


def _write_local(path: Path, data: Writable) -> None:
    with _replacing_local(path, path.parent) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def _replacing_local(path: Path, scratch: Path) -> Iterator[Path]:
    """Give a path in `scratch`, and rename it to `path` at the end, when it is safe on the disk."""
    for folder in (scratch, path.parent):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # as below /proc
            raise UserError(str(folder), "a place that takes no folder", "a writable folder", "name another") from None
    temporary = scratch / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
