"""A small HTTP server whose answers can be made to fail on demand; what it is asked is kept."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .repository import HubError


@dataclass(frozen=True)
class Request:
    """A request as it came in; `path` is still quoted."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def token(self) -> str | None:
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token if kind == "Bearer" and token else None

    def json(self) -> Any:
        return json.loads(self.body)

    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass(frozen=True)
class Answer:
    """What is sent back. `ranges` says whether a part of the body may be asked for."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    ranges: bool = False

    @classmethod
    def json(cls, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
        return cls(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of a method whose path holds `pattern`.

    Args:
        status (`int`, *optional*): They are answered with this status, and nothing is done.
        headers (`dict`): Headers of that answer.
        read_at_most (`int`, *optional*): The connection is reset after so many bytes of the request's body.
        send_at_most (`int`, *optional*): It is closed after so many bytes of the answer's body.
        lose_answer (`bool`): The request is carried out, and the connection is reset instead of an answer.
        action (`Callable`, *optional*): Called before the request is carried out.
    """

    method: str
    pattern: str
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    read_at_most: int | None = None
    send_at_most: int | None = None
    lose_answer: bool = False
    action: Callable[[], Any] | None = None


class Server(ThreadingHTTPServer):
    """Listens on a free port of this machine; `handle(request)` of its owner gives the answers."""

    daemon_threads = True

    def __init__(self, handle: Callable[[Request], Answer]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.handle_call = handle
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.broken: list[str] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def fault_of(self, request: Request) -> Fault | None:
        """Takes the first fault that concerns a request."""
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == request.method and re.search(fault.pattern, request.path):
                    fault.times -= 1
                    return fault
        return None

    def seen(self, method: str, pattern: str = "") -> list[Request]:
        """The requests of a method whose path holds `pattern`, as a regular expression."""
        return [r for r in self.requests if r.method == method and re.search(pattern, r.path)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are part of the tests


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body go out in two writes; without this the second waits for the client's acknowledgement.
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.command, url.path, query, headers)
        fault = self.server.fault_of(request)
        if fault is not None and fault.read_at_most is not None:
            self.rfile.read(min(fault.read_at_most, int(self.headers.get("Content-Length", 0))))
            return self._reset()
        request = Request(self.command, request.path, query, headers, self._body())
        self.server.requests.append(request)
        if fault is not None and fault.action is not None:
            fault.action()
        if fault is not None and fault.status is not None:
            answer = Answer.json({"error": f"{fault.status} on purpose"}, fault.status, fault.headers)
        else:
            answer = self._answer_to(request)
        if fault is not None and fault.lose_answer:
            return self._reset()
        self._send(request, answer, fault.send_at_most if fault else None)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer_to(self, request: Request) -> Answer:
        try:
            return self.server.handle_call(request)
        except HubError as error:
            headers = {**error.headers, "X-Error-Message": error.message}
            if error.code:
                headers["X-Error-Code"] = error.code
            return Answer.json({"error": error.message}, error.status, headers)
        except Exception:
            self.server.broken.append(traceback.format_exc())
            return Answer.json({"error": "the loopback Hub is broken"}, 500)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, request: Request, answer: Answer, at_most: int | None) -> None:
        status, body, headers = answer.status, answer.body, dict(answer.headers)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if answer.ranges and asked:
            start, end = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
            status, headers["Content-Range"] = 206, f"bytes {start}-{end}/{len(body)}"
            body = body[start : end + 1]
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if request.method == "HEAD":
            return
        self.wfile.write(body if at_most is None else body[:at_most])
        if at_most is not None:
            self.wfile.flush()
            self.close_connection = True

    def _reset(self) -> None:
        """Ends the connection at once, as a network that breaks does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass
