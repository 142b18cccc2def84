"""What several tests of metrics ask for."""

import socket

import pytest


@pytest.fixture
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that would download weights fail instead."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
