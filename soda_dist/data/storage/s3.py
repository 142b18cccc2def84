"""Amazon S3 and stores like it, through pyarrow, after a first short request by boto3. Cached per process.

Without any credentials requests are not signed, which public buckets answer.
"""

import logging
import os
from functools import lru_cache
from typing import NamedTuple

from pyarrow import fs

from soda_dist.data.storage.errors import check_scheme, endpoint_url, explain_boto, explain_code, without_credentials
from soda_dist.errors import UserError

CONNECT_SECONDS, READ_SECONDS = 4, 8
ATTEMPTS = 5
SETTINGS = (
    *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
    "AWS_ACCESS_KEY_ID",
)
PUBLIC = "%s: no credentials found; reading it as a public bucket"
"""Warning that requests are not signed."""
logger = logging.getLogger(__name__)


class _Access(NamedTuple):
    """What the first request found: the bucket's region, and whether it is public and no credentials exist."""

    region: str | None
    anonymous: bool


def s3(bucket: str) -> fs.FileSystem:
    """Return the bucket's file system; the first call per process and environment contacts the store.

    Raises:
        UserError: no such bucket, no or refused credentials, an endpoint that does not answer.
    """
    return _opened(bucket, tuple(os.environ.get(name) for name in SETTINGS))


@lru_cache(maxsize=64)
def _opened(bucket: str, _settings: tuple[str | None, ...]) -> fs.FileSystem:
    endpoint = endpoint_url()
    place: dict[str, str] = {}
    if endpoint:
        check_scheme("AWS_ENDPOINT_URL", endpoint)
        scheme, _, host = without_credentials(endpoint).partition("://")
        place = {"endpoint_override": host, "scheme": scheme}
    access = _checked_access(bucket, endpoint)
    return fs.S3FileSystem(
        region=access.region,
        anonymous=access.anonymous,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=2 * READ_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # small objects become one PUT
        **place,
    )


def _checked_access(bucket: str, endpoint: str | None) -> _Access:
    """Check access by one short request.

    pyarrow alone would report a missing bucket as a missing file, and wait long for a silent endpoint.
    """
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return _Access(os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"), anonymous=False)
    anonymous = False
    try:
        session = boto3.Session()
        anonymous = session.get_credentials() is None
        region = session.region_name or "us-east-1"
        retries = {"total_max_attempts": 3, "mode": "standard"}
        signature = UNSIGNED if anonymous else None
        config = Config(
            connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries=retries, signature_version=signature
        )
        client = session.client("s3", region_name=region, endpoint_url=endpoint, config=config)
        answer = client.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except ClientError as error:
        refused = explain_code(bucket, str(error.response.get("Error", {}).get("Code", "")))
        if refused:
            raise refused from None
        if anonymous:
            allowed = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, the machine's role, or a public bucket"
            raise UserError("AWS credentials", "none", allowed, "set one of them") from None
        answer = error.response
    except (BotoCoreError, ValueError) as error:
        raise explain_boto(bucket, endpoint, error) from None
    if anonymous:
        logger.warning(PUBLIC, f"s3://{bucket}")
    found = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region")
    return _Access(found or region, anonymous)
