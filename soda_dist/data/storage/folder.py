"""Folders at any URI: a local path, `file://`, `s3://` or `gs://`.

The only module that uses pyarrow.fs and boto3. Writes are atomic: locally a temporary file is renamed; in an object
store an object appears when its upload ends. Errors that the user can fix are `UserError`.
"""

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from soda_dist.data.storage.errors import endpoint_url, explain_arrow, explain_boto, explain_code, without_credentials
from soda_dist.data.storage.retries import retry
from soda_dist.errors import UserError

Result = TypeVar("Result")
SCHEMES = "a local path, file://, s3:// or gs://"
TEMPORARY = ".soda-tmp-"
CONNECT_SECONDS, READ_SECONDS = 4, 8
ATTEMPTS = 5
S3_SETTINGS = (
    *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
    "AWS_ACCESS_KEY_ID",
)


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
            with self._filesystem().open_input_file(self._path(name)) as file:
                return file.read()

        return self.retry(name, whole)

    def open(self, name: str) -> pa.NativeFile:
        """Open the file for random access; its `read_at` is thread-safe."""
        return self.retry(name, lambda: self._filesystem().open_input_file(self._path(name)))

    def write(self, name: str, data: bytes | memoryview | pa.Buffer) -> None:
        """Create or replace the file, atomically."""

        def store() -> None:
            if self.is_local:
                _write_local(Path(self._path(name)), data)
                return
            # pyarrow would compress names that end in .gz once more.
            with self._filesystem().open_output_stream(self._path(name), compression=None) as stream:
                stream.write(data)

        self.retry(name, store)

    def exists(self, name: str) -> bool:
        """Whether `name` is a file."""
        info = self.retry(name, lambda: self._filesystem().get_file_info(self._path(name)))
        return info.type == fs.FileType.File

    def list(self, prefix: str = "") -> Sequence[Entry]:
        """List all files, at any depth, whose name starts with `prefix`, sorted; empty if the folder does not exist."""
        base = prefix.rpartition("/")[0]
        start = len(self._path("")) + 1
        entries = (Entry(info.path[start:], info.size) for info in self._infos(base, recursive=True) if info.is_file)
        return sorted(e for e in entries if e.name.startswith(prefix) and not _is_temporary(e.name))

    def folders(self, name: str = "") -> Sequence[str]:
        """List the names of the folders directly below `name`, sorted."""
        infos = self._infos(name, recursive=False)
        return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)

    def files(self, name: str = "") -> Sequence[Entry]:
        """List the files directly below the folder `name`, sorted; empty if it does not exist."""
        start = len(self._path("")) + 1
        infos = (info for info in self._infos(name, recursive=False) if info.is_file)
        return sorted(Entry(info.path[start:], info.size) for info in infos if not _is_temporary(info.path))

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

    def _infos(self, name: str, *, recursive: bool) -> Sequence[fs.FileInfo]:
        selector = fs.FileSelector(self._path(name), recursive=recursive, allow_not_found=True)

        def infos() -> Sequence[fs.FileInfo]:
            found = self._filesystem().get_file_info(selector)
            if not found and not self.is_local and self._filesystem().get_file_info(selector.base_dir).is_file:
                raise NotADirectoryError(selector.base_dir)
            try:
                for info in found:
                    info.path  # noqa: B018 - decodes the name
            except UnicodeDecodeError as error:
                got = f"a file whose name is not UTF-8: {error.object!r}"
                raise UserError(self.file_uri(name), got, "names in UTF-8", "rename it") from None
            return found

        return self.retry(name, infos)

    def _path(self, name: str) -> str:
        root = self.uri.partition("://")[2] or self.uri
        return f"{root.rstrip('/')}/{_checked(name)}" if name else root.rstrip("/")

    def _filesystem(self) -> fs.FileSystem:
        if self.is_local:
            return fs.LocalFileSystem()
        scheme, _, path = self.uri.partition("://")
        if scheme == "gs":
            return _gcs()
        return _s3(path.partition("/")[0], tuple(os.environ.get(name) for name in S3_SETTINGS))

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
            raise UserError(uri, "a path through a file", "a folder", "name a folder, or an unused path") from None
        except OSError as error:
            raise explain_arrow(uri, error) from error


def open_folder(uri: str) -> Folder:
    """Return the folder at `uri`; contacts no server.

    Raises:
        UserError: an unknown scheme, no bucket, or credentials in the URI.
    """
    scheme, separator, rest = uri.strip().partition("://")
    if not separator:
        if not uri.strip():
            raise UserError("URI", "nothing", SCHEMES, "name a folder")
        return Folder(str(Path(os.path.abspath(Path(uri.strip()).expanduser()))))  # noqa: PTH100 - keeps symbolic links
    if scheme == "file":
        return open_folder(unquote(urlsplit(uri.strip()).path))
    bucket, _, key = rest.partition("/")
    if "@" in bucket or "?" in rest:
        raise UserError(f"{scheme}://", "a URI with credentials or options in it", "BUCKET/PATH", "set AWS_* instead")
    if scheme not in ("s3", "gs"):
        raise UserError(f"{scheme}://", uri, SCHEMES, "copy the data to one of them")
    if not bucket:
        raise UserError("URI", uri, f"{scheme}://BUCKET/PATH", "name a bucket")
    return Folder(f"{scheme}://" + "/".join([bucket, *(part for part in key.split("/") if part)]))


def locate(uri: str) -> tuple[Folder, str]:
    """Split `uri` into the folder that holds it and its name there."""
    folder = open_folder(uri)
    parent, _, name = folder.uri.rpartition("/")
    if not name or parent.endswith(":/"):
        raise UserError(uri, "a root or a bucket", "a file in a folder", "name the file")
    return Folder(parent or "/"), name


def _checked(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"not a relative name: {name!r}")
    return name.rstrip("/")


def _is_temporary(name: str) -> bool:
    return name.rpartition("/")[2].startswith(TEMPORARY)


def _write_local(path: Path, data: bytes | memoryview | pa.Buffer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY + secrets.token_hex(8))
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@lru_cache(maxsize=1)
def _gcs() -> fs.FileSystem:
    return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=10))


@lru_cache(maxsize=64)
def _s3(bucket: str, _settings: tuple[str | None, ...]) -> fs.FileSystem:
    """Return the file system of a bucket, cached per process and environment."""
    endpoint = endpoint_url()
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        raise UserError("AWS_ENDPOINT_URL", "no scheme", "http://HOST[:PORT] or https://", "write the scheme")
    place: dict[str, str] = {}
    if endpoint:
        scheme, _, host = without_credentials(endpoint).partition("://")
        place = {"endpoint_override": host, "scheme": scheme}
    return fs.S3FileSystem(
        region=_checked_region(bucket, endpoint),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=2 * READ_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # small objects become one PUT
        **place,
    )


def _checked_region(bucket: str, endpoint: str | None) -> str | None:
    """Return the bucket's region, after one short request that checks access.

    pyarrow alone would send unsigned requests without credentials, report a missing bucket as a missing file, and wait
    long for a silent endpoint.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            allowed = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the machine's role"
            raise UserError("AWS credentials", "none", allowed, "set one of them")
        region = session.region_name or "us-east-1"
        retries = {"total_max_attempts": 3, "mode": "standard"}
        config = Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries=retries)
        client = session.client("s3", region_name=region, endpoint_url=endpoint, config=config)
        answer = client.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except ClientError as error:
        refused = explain_code(bucket, str(error.response.get("Error", {}).get("Code", "")))
        if refused:
            raise refused from None
        answer = error.response
    except (BotoCoreError, ValueError) as error:
        raise explain_boto(bucket, endpoint, error) from None
    return answer["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region") or region
