"""Syntax of URIs: a local path, `file://`, `s3://` or `gs://`. Errors never repeat a URI that may hold a secret."""

import re
from urllib.parse import unquote, urlsplit

from soda_dist.errors import UserError

STORES = ("s3", "gs")
SCHEMES = "a local path, file://, s3:// or gs://"
_ONE_SLASH = re.compile(r"(?:s3[an]?|gc?s|https?|hdfs|file):|[A-Za-z][A-Za-z0-9+.-]+:/", re.IGNORECASE)


def split_uri(uri: str, field: str = "URI") -> tuple[str, str]:
    """Split a URI into its scheme and the rest: ("", PATH) or ("s3", "BUCKET/KEY"), the key without empty parts.

    Raises:
        UserError: nothing, an unknown scheme, no bucket, one slash instead of two, or credentials in the URI. `field`
            names what holds the URI.
    """
    text = uri.strip()
    scheme, separator, rest = text.partition("://")
    if not text:
        raise UserError(field, "nothing", SCHEMES, "name a folder")
    if not separator:
        if _ONE_SLASH.match(text):
            start = text.partition(":")[0]
            got, remedy = f"{start}: without //", f"write {start}://, or ./{start}: for a local path of this name"
            raise UserError(field, got, SCHEMES, remedy)
        return "", text
    if scheme == "file":
        if urlsplit(text).netloc not in ("", "localhost"):
            raise UserError(field, "file:// with a host", "file:///PATH", "write three slashes")
        return "", unquote(urlsplit(text).path)
    bucket, _, key = rest.partition("/")
    # A secret key may hold a slash, so that its `@` comes later: a bucket's name has neither `@` nor `:`.
    if "@" in bucket or ":" in bucket or "?" in rest:
        got = f"{scheme}:// with credentials, a port or options in it"
        raise UserError(field, got, f"{scheme}://BUCKET/PATH", "set credentials in the environment instead")
    if scheme not in STORES:
        raise UserError(field, f"{scheme}://", SCHEMES, "copy the data to one of them")
    if not bucket:
        raise UserError(field, text, f"{scheme}://BUCKET/PATH", "name a bucket")
    return scheme, "/".join([bucket, *(part for part in key.split("/") if part)])
