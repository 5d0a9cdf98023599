"""An HTTP server in a thread that answers as a test says, and remembers what it was asked."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One answer: pieces of its body, a pause before each."""

    pieces: tuple[bytes, ...]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    is_cut: bool = False  # more is promised than comes

    @classmethod
    def of(cls, value: Any, status: int = 200, **more: Any) -> "Reply":
        """Return a reply of JSON."""
        return cls((json.dumps(value).encode(),), status, **more)


MODELS = Reply.of({"data": [{"id": "scripted"}]})


@dataclass
class Asked:
    """One request as the server saw it."""

    path: str
    body: Any
    headers: dict[str, str]
    at: float  # time.monotonic()


@dataclass
class Scripted:
    """What is known of a running server."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def posted(self) -> list[Asked]:
        """The requests with a body."""
        return [one for one in self.asked if one.body is not None]


@contextmanager
def scripted(answer: Callable[[int, Any], Reply], models: Reply = MODELS) -> Iterator[Scripted]:
    """Run a server; `answer` is told a POST's number and body, and a GET is given `models`."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.note(None)
            self.reply(models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            number = self.note(body)
            with lock:
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            reply = answer(number, body)
            with lock:  # before the client has it: it may send the next at once
                server.at_once -= 1
            self.reply(reply)

        def note(self, body: Any) -> int:
            headers = {name.lower(): value for name, value in self.headers.items()}
            with lock:
                server.asked.append(Asked(self.path, body, headers, time.monotonic()))
                return len(server.posted) - 1

        def reply(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            length = sum(map(len, reply.pieces)) + (100 if reply.is_cut else 0)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            with suppress(ConnectionError):  # the client has had enough
                for piece in reply.pieces:
                    time.sleep(reply.pause_s)
                    self.wfile.write(piece)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        server = Scripted(f"http://127.0.0.1:{httpd.server_port}")
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            httpd.shutdown()
