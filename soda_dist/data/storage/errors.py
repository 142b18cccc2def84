"""Errors of disks and object stores as `UserError`, and which of them are transient."""

import errno
import os
from urllib.parse import urlsplit

from soda_dist.data.storage.retries import TRANSIENT_CODES, StoreError
from soda_dist.errors import UserError

CREDENTIAL_CODES = {
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "InvalidClientTokenId")
}
GOOGLE_REMEDY = "check the bucket's name and the credentials (gcloud auth application-default login)"
UNOPENED = "google::cloud::Status(UNAVAILABLE: the file did not open)"
"""Message, in the form of Google's client, for a file whose first request failed."""
NO_TOKEN = "OAuth2 access token"
"""In messages of Google's client that could not log in."""


def explain_arrow(uri: str, error: Exception) -> Exception:
    """Translate an error of pyarrow: `StoreError` if transient, `UserError` if the user can fix it, else itself.

    Google's client has no `FileNotFoundError` for a folder.
    """
    text = str(error)
    aws, google = _code(text, "AWS Error "), _code(text, "google::cloud::Status(")
    causes: dict[str, Exception] = {
        "No such directory": FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri),
        "because it is a file": through_a_file(uri),
        "conflicts with an existing file": through_a_file(uri),
        "not a directory": through_a_file(uri),
        "is a directory": UserError(uri, "a folder", "a file", "name a file"),
        "space left": UserError(uri, "a full disk", "free space", "free some space and rerun"),
        "ermission denied": _forbidden(uri),
        "Read-only": _forbidden(uri),
        "ACCESS_DENIED": _forbidden(uri),
        "NO_SUCH_BUCKET": no_bucket("s3://" + uri.partition("://")[2].partition("/")[0]),
        "NETWORK_CONNECTION": _unreachable(endpoint_url(), StoreError),
        "AWS Error ": _kind(aws)(
            uri, f"{aws} from the store", "a working store", "rerun later, or check bucket and region"
        ),
        "google::cloud::Status": _google(uri, google),
    }
    return next((cause for sign, cause in causes.items() if sign in text), error)


def _code(text: str, start: str) -> str:
    """Extract the error code after `start` from a message of pyarrow."""
    return text.partition(start)[2].partition(" during")[0].partition(":")[0]


def _kind(code: str) -> type[UserError]:
    return StoreError if code.partition(" ")[0] in TRANSIENT_CODES or "HTTP status 5" in code else UserError


def _google(uri: str, code: str) -> UserError:
    got = f"{code} from Google Cloud Storage"
    if code in TRANSIENT_CODES:
        return StoreError(uri, got, "a working store", "rerun later")
    return UserError(uri, got, "an accessible bucket", GOOGLE_REMEDY)


def _forbidden(uri: str) -> UserError:
    return UserError(uri, "no permission", "read and write access", "use another location or change its permissions")


def through_a_file(uri: str) -> UserError:
    """Name a path that goes through a file."""
    return UserError(uri, "a path through a file", "a folder", "name a folder, or an unused path")


def no_bucket(bucket: str) -> UserError:
    """Name a missing bucket by its URI."""
    return UserError(bucket, "a bucket that does not exist", "an existing bucket", "create or rename it")


def illegal_bucket(bucket: str) -> UserError:
    """Name a bucket, by its URI, whose name no store accepts."""
    return UserError(bucket, "an illegal bucket name", "an existing bucket", "correct the name")


def check_scheme(variable: str, endpoint: str) -> None:
    """Require an endpoint, the value of `variable`, to start with http:// or https://."""
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise UserError(variable, "no scheme", "http://HOST[:PORT] or https://", "write the scheme")


def explain_google_login(error: Exception) -> UserError | None:
    """Translate the error of a first request to Google Cloud Storage; None = no matter of credentials."""
    text = str(error)
    if NO_TOKEN not in text:
        return None
    reason = text.partition("underlying error message was: ")[2].partition(" error_info=")[0] or "none"
    allowed = "a service account's key, a login of gcloud, the machine's service account, or a public bucket"
    remedy = "set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login"
    return UserError("Google credentials", reason, allowed, remedy)


def _unreachable(endpoint: str | None, kind: type[UserError] = UserError) -> UserError:
    place = without_credentials(endpoint) if endpoint else "AWS"
    got = f"{place}, which does not answer"
    return kind("AWS_ENDPOINT_URL", got, "a reachable S3 endpoint", "check the address and network")


def without_credentials(endpoint: str) -> str:
    """Return the endpoint's scheme and host only."""
    return f"{urlsplit(endpoint).scheme}://{urlsplit(endpoint).netloc.rpartition('@')[2]}"


def endpoint_url() -> str | None:
    """Return the S3 endpoint set in the environment; None = AWS."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def explain_code(bucket: str, code: str) -> UserError | None:
    """Translate boto's error code for a bucket listing.

    None means that pyarrow should try: a denied listing may still allow paths below, a busy store may recover.
    """
    if code in ("NoSuchBucket", "404", "InvalidBucketName"):
        return no_bucket(f"s3://{bucket}")
    if code in CREDENTIAL_CODES:
        return UserError("AWS credentials", code, "valid credentials", "renew or correct them")
    return None


def explain_boto(bucket: str, endpoint: str | None, error: Exception) -> UserError:
    """Translate an error that kept boto from sending a request."""
    kind = type(error).__name__
    if kind in ("ProfileNotFound", "ConfigParseError"):
        return UserError("AWS_PROFILE", os.environ.get("AWS_PROFILE"), "an existing profile", "check ~/.aws/config")
    if "Credential" in kind or "Token" in kind or "SSO" in kind:
        return UserError("AWS credentials", kind, "complete, valid credentials", "renew or correct them")
    if kind == "ParamValidationError":
        return illegal_bucket(f"s3://{bucket}")
    return _unreachable(endpoint)
