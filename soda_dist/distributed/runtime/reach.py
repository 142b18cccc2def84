"""Check in seconds that RAY_ADDRESS names a head that this process may join: Ray itself would retry for minutes."""

import socket
from typing import NoReturn

import grpc

from soda_dist.distributed.runtime.ray_internals import (
    NoTokenError,
    head_versions,
    own_versions,
    running_cluster,
    token_header,
)
from soda_dist.errors import UserError

CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 5.0
ALLOWED = "HOST:PORT of a running Ray head (port 6379 by default)"


def check_head(address: str) -> str:
    """Return the HOST:PORT of the cluster at `address`, `auto` for this machine's, after asking its head.

    Raises:
        UserError: not the form HOST:PORT, no such host, nothing there, a server that is not a Ray head, another
            version of Ray or Python, no token or a wrong one.
    """
    if "://" in address:
        scheme = address.partition("://")[0]
        meant = {"http": "the dashboard", "https": "the dashboard", "ray": "Ray Client"}.get(scheme, "another service")
        _refuse(f"{scheme}://, the address of {meant}", "name the head's HOST:PORT, or submit with ray job submit")
    head = running_cluster() if address == "auto" else address
    if head is None:
        _refuse("auto, and no Ray runs on this machine", "start it or unset the variable")
    host, _, port = head.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        _refuse(address, "correct it")
    _connect(host.strip("[]"), int(port), address)
    try:
        versions = head_versions(head, token_header(), ANSWER_SECONDS)
    except NoTokenError as error:
        _refuse_token(str(error))
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            _refuse_token("a token that the head refuses" if token_header() else "no token")
        _refuse(f"{address}, where a server does not answer as a Ray head", "name the head, not its dashboard")
    for (name, own), theirs in zip(own_versions().items(), versions, strict=True):
        if own != theirs:
            got = f"{address}, a head with {name} {theirs}"
            raise UserError("RAY_ADDRESS", got, f"{name} {own}, as here", f"use the same {name} everywhere")
    return head


def _connect(host: str, port: int, address: str) -> None:
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except socket.gaierror:
        _refuse(f"{address}, a host that does not resolve", "correct the name")
    except OSError:
        _refuse(f"{address}, where nothing answers", "start the cluster, correct the address or unset the variable")


def _refuse(got: str, remedy: str) -> NoReturn:
    raise UserError("RAY_ADDRESS", got, ALLOWED, remedy) from None


def _refuse_token(got: str) -> NoReturn:
    remedy = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token to the head's token"
    raise UserError("Ray's token", got, "the token of the cluster's head", remedy) from None
