"""Google Cloud Storage through pyarrow, after a first short request. Cached per process.

Where no credentials are found, requests are not signed, which public buckets answer.
"""

import logging
import os
from datetime import timedelta
from functools import lru_cache
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pyarrow as pa
from pyarrow import fs

from soda_dist.data.storage.errors import (
    check_scheme,
    explain_google_login,
    illegal_bucket,
    no_bucket,
    without_credentials,
)
from soda_dist.data.storage.s3 import PUBLIC
from soda_dist.errors import UserError

ENDPOINT = "CLOUD_STORAGE_EMULATOR_ENDPOINT"
"""Variable that Google's client reads: the address of a server that stands in for Google's."""
SETTINGS = (ENDPOINT, "GOOGLE_APPLICATION_CREDENTIALS")
ANSWER_SECONDS, ATTEMPTS = 5, 3
RETRY_TIME = timedelta(seconds=10)
logger = logging.getLogger(__name__)


def gcs(bucket: str) -> fs.FileSystem:
    """Return the file system of Google Cloud Storage; the first call per process and bucket contacts the store.

    Raises:
        UserError: no such bucket, no credentials, an endpoint that does not answer.
    """
    return _opened(bucket, tuple(os.environ.get(name) for name in SETTINGS))


@lru_cache(maxsize=64)
def _opened(bucket: str, _settings: tuple[str | None, ...]) -> fs.FileSystem:
    _check_bucket(bucket)
    filesystem = fs.GcsFileSystem(retry_time_limit=RETRY_TIME)
    try:
        filesystem.get_file_info(bucket)
    except (OSError, pa.ArrowException) as error:
        refused = explain_google_login(error)
        if refused and not os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") and _is_public(bucket):
            logger.warning(PUBLIC, f"gs://{bucket}")
            return fs.GcsFileSystem(anonymous=True, retry_time_limit=RETRY_TIME)
        if refused:
            raise refused from None
        # Files may be readable where the bucket is not, and a busy store may recover: the next request tells.
    return filesystem


def _endpoint() -> str:
    return os.environ.get(ENDPOINT) or "https://storage.googleapis.com"


def _is_public(bucket: str) -> bool:
    """Whether anyone may list the bucket."""
    try:
        url = f"{_endpoint()}/storage/v1/b/{quote(bucket, safe='')}/o?maxResults=1"
        urlopen(url, timeout=ANSWER_SECONDS).close()
    except (OSError, HTTPException):
        return False
    return True


def _check_bucket(bucket: str) -> None:
    """Ask for the bucket without credentials: only the answers "illegal name" and "does not exist" matter.

    pyarrow alone reports a missing bucket as an empty one, and waits two minutes for a silent endpoint.
    """
    endpoint = _endpoint()
    check_scheme(ENDPOINT, endpoint)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            urlopen(f"{endpoint}/storage/v1/b/{quote(bucket, safe='')}?fields=name", timeout=ANSWER_SECONDS).close()
        except HTTPError as error:
            error.close()
            if error.code == 404:
                raise no_bucket(f"gs://{bucket}") from None
            if error.code == 400:
                raise illegal_bucket(f"gs://{bucket}") from None
        except (OSError, HTTPException):
            if attempt < ATTEMPTS:
                continue
            got, remedy = f"{without_credentials(endpoint)}, which does not answer", "check the address and network"
            raise UserError("Google Cloud Storage", got, "a reachable endpoint", remedy) from None
        return
