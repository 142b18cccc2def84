"""An HTTP proxy before the S3 test server that fails on purpose, by seeded draws."""

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import SplitResult, urlsplit

ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>on purpose</Message></Error>"
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class Faults:
    """Share of requests that meet each fault; what is left passes. May be changed while the proxy runs.

    Attributes:
        refused: the connection is closed before an answer.
        broken: 500 InternalError.
        throttled: 503 SlowDown.
        cut: the body ends in its middle; only where there is one.
        delayed: the answer waits `seconds`.
        expired: 400 ExpiredToken.
        outage: how many requests from now on are all throttled.
    """

    refused: float = 0.0
    broken: float = 0.0
    throttled: float = 0.0
    cut: float = 0.0
    delayed: float = 0.0
    expired: float = 0.0
    outage: int = 0
    seconds: float = 1.0
    seed: int = 0
    met: Counter = field(default_factory=Counter)
    """How many requests met each fault, and `passed`."""

    def __post_init__(self) -> None:
        self._random, self._lock = random.Random(self.seed), threading.Lock()

    def draw(self, has_body: bool) -> str:
        with self._lock:
            if self.outage:
                self.outage -= 1
                self.met["throttled"] += 1
                return "throttled"
            place = self._random.random()
            for name in ("refused", "broken", "throttled", "delayed", "expired", *(("cut",) if has_body else ())):
                place -= getattr(self, name)
                if place < 0:
                    self.met[name] += 1
                    return name
            self.met["passed"] += 1
            return "passed"


class _Relay(BaseHTTPRequestHandler):
    """Passes requests on to `target`, or not."""

    faults: Faults
    target: SplitResult
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # a client that went away
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing: a test's output is its own."""

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _relay(self) -> None:
        if self.headers.get("Expect") == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body, fault = self._body(), self.faults.draw(has_body=self.command == "GET")
        if fault == "refused":
            self._hang_up()
            return
        if fault == "delayed":
            time.sleep(self.faults.seconds)
        answers = {
            "broken": (500, "InternalError"),
            "throttled": (503, "SlowDown"),
            "expired": (400, "ExpiredToken"),
        }
        if fault in answers:
            status, code = answers[fault]
            self._answer(status, [("Content-Type", "application/xml")], ERROR.format(code=code).encode())
            return
        peer = http.client.HTTPConnection(self.target.hostname or "", self.target.port, timeout=60)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP | {"expect"}}
        peer.request(self.command, self.path, body, {**kept, "Content-Length": str(len(body))})
        answer = peer.getresponse()
        data = answer.read()
        headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in HOP_BY_HOP]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self._answer(answer.status, headers, data, length, cut=fault == "cut" and len(data) > 1)
        peer.close()

    def _answer(self, status: int, headers: list, data: bytes, length: str | None = None, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)


for _method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
    setattr(_Relay, f"do_{_method}", _Relay._relay)


@contextmanager
def faulty_proxy(endpoint: str, faults: Faults) -> Iterator[str]:
    """The proxy's own endpoint, before that of `endpoint`."""
    handler = type("Relay", (_Relay,), {"faults": faults, "target": urlsplit(endpoint)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
