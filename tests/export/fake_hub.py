"""A stand-in for the Hugging Face Hub's HTTP API, in a thread: repositories, LFS objects, commits."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FakeHub:
    """What the server was sent.

    Attributes:
        status: of every answer; other than 200 it refuses.
        repositories: payloads of creations.
        files: committed bytes by name.
        card_errors: what the check of a model card answers; any makes it refuse.
        modes: how each file came, `file` (in the commit) or `lfsFile`.
        tokens: of the Authorization headers.
    """

    url: str = ""
    status: int = 200
    repositories: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    card_errors: list[str] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> dict:
        """The JSON answer to a POST."""
        if path.endswith("/repos/create"):
            payload = json.loads(body)
            self.repositories.append(payload)
            return {"url": f"{self.url}/{payload['organization']}/{payload['name']}"}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            return {"files": [{"path": n, "uploadMode": mode, "shouldIgnore": False} for n, mode in modes.items()]}
        if path.endswith("/objects/batch"):
            wanted = json.loads(body)["objects"]
            places = [{**each, "actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}} for each in wanted]
            return {"transfer": "basic", "objects": places}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                self._keep(line["key"], line["value"])
            repository = path.removeprefix("/api/models/").partition("/commit/")[0]
            return {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.url}/{repository}/commit/{'0' * 40}"}
        return {"errors": [{"message": error} for error in self.card_errors], "warnings": []}  # of validate-yaml

    def _keep(self, kind: str, value: dict) -> None:
        if kind == "file":
            self.files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            self.files[value["path"]] = self.objects[value["oid"]]
        if kind != "header":
            self.modes[value["path"]] = kind


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve until the block ends."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = hub.answer(self.path.partition("?")[0], self._body())
            status = 400 if answer.get("errors") else hub.status
            self._send(json.dumps(answer if hub.status == 200 else {"error": "no"}).encode(), status)

        def do_PUT(self) -> None:
            hub.objects[self.path.rpartition("/")[2]] = self._body()
            self._send(b"")

        def _body(self) -> bytes:
            if token := self.headers.get("Authorization"):
                hub.tokens.add(token)
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _send(self, content: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
