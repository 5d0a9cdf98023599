"""The one client of OpenAI-compatible servers: rollouts, costs, load and judges share it.

At most so many requests are under way at once. A call has a deadline that covers all its tries, but
only a client that may repeat itself tries again. Every request has a connection of its own: a
server may close an idle one just as it is used, and that request would have to be sent twice.
No torch.
"""

import contextlib
import email.utils
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fretsaw.stage.hashes import hash_json
from fretsaw.stage.whole import write_text

Body = Mapping[str, Any]
BUSY = (429, 502, 503, 504)  # worth another try
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0  # before the next try, where the server names no time
HEADERS = {"Connection": "close", "Accept-Encoding": "identity"}  # nothing stands between the times


class Fault(ValueError):
    """A call that came to nothing, in words that say what to do.

    `status` is HTTP's, 200 where an answer came that is none, 0 where none came; `told` is what the
    server said, or how the connection failed.
    """

    def __init__(self, text: str, *, status: int = 0, told: str = "", wait_s: float = 0.0):
        super().__init__(text)
        self.status, self.told, self.wait_s = status, told, wait_s


@dataclass
class Spend:
    """What a client has used so far."""

    requests: int = 0  # that it was asked for
    cached: int = 0  # of them answered from its folder
    tries: int = 0  # sent
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0  # in the currency of the prices


class Client:
    """Asks one server; `url` is its root, with or without /v1.

    `deadline_s` covers all tries of a call; of a stream it is how long the server may be silent.
    `cache` is a folder that keeps answers by what was asked, for those who ask only what has one
    answer: greedy or seeded. `prices` are of a million prompt and a million completion tokens.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        deadline_s: float = 600.0,
        max_concurrent: int = 64,
        may_repeat: bool = False,
        through_proxy: bool = True,
        cache: Path | None = None,
        prices: tuple[float, float] = (0.0, 0.0),
    ):
        """Raise ValueError where `url` is no address."""
        self.url = url.rstrip("/").removesuffix("/v1")
        is_here = _is_here(_host(url))
        self._http = httpx.Client(
            headers=HEADERS | ({"Authorization": f"Bearer {api_key}"} if api_key else {}),
            limits=httpx.Limits(max_connections=None),
            # No proxy leads to this machine, and none stands where times are taken.
            trust_env=through_proxy and not is_here,
        )
        self._deadline_s, self._may_repeat = deadline_s, may_repeat
        self._max_concurrent = max_concurrent
        self._slots = threading.BoundedSemaphore(max_concurrent)
        self._cache, self._prices = cache, prices
        self._lock = threading.Lock()
        self.spend = Spend()

    def first_model(self) -> str:
        """Return the first model that the server names."""
        match self.call("/v1/models"):
            case {"data": [{"id": str(model)}, *_]}:
                return model
            case _:
                rule = "give an OpenAI-compatible server's URL, or name the model"
                raise Fault(f"{self.url}: names no model at /v1/models; {rule}", status=200)

    def call(self, path: str, body: Body | None = None) -> Any:
        """Return the JSON that answers a GET, or with a body a POST. Raises `Fault`."""
        kept = None if self._cache is None or body is None else self._cache / _key(path, body)
        self._count(requests=1)
        if kept is not None and kept.is_file():
            self._count(cached=1)
            return json.loads(kept.read_bytes())
        with self._slots:
            answer = self._try_until_deadline(path, body)
        if kept is not None:
            with self._lock:
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_text(kept, json.dumps(answer))
        return answer

    def call_all(
        self, path: str, bodies: Iterable[Body], *, refused: Collection[int] = ()
    ) -> Iterator[tuple[int, Any]]:
        """Yield every POST's number and answer as they come; the first `Fault` ends them all.

        One whose status is in `refused` is that request's own, and is its answer.
        """
        with ThreadPoolExecutor(self._max_concurrent) as pool:
            waiting = {pool.submit(self.call, path, body): i for i, body in enumerate(bodies)}
            try:
                for done in as_completed(waiting):
                    error = done.exception()
                    own = isinstance(error, Fault) and error.status in refused
                    yield waiting.pop(done), error if own else done.result()
            finally:
                for future in waiting:
                    future.cancel()

    def stream(self, path: str, body: Body) -> Iterator[tuple[float, Any]]:
        """Yield the events of a streamed answer, each with the `time.perf_counter()` it came at.

        It is sent once, and neither read from the cache nor kept. Raises `Fault`.
        """
        usage = None
        self._count(requests=1)
        with self._slots, self._open(path, body, self._deadline_s) as response:
            for at, line in _lines(response.iter_bytes()):
                data = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or data == b"[DONE]":
                    continue  # a comment, or nothing that counts
                event = self._json(path, data)
                if not isinstance(event, dict):
                    raise self._no_json(path)
                usage = event.get("usage") or usage
                yield at, event
        self._count_tokens(usage)

    def _try_until_deadline(self, path: str, body: Body | None) -> Any:
        deadline, wait_s = time.monotonic() + self._deadline_s, FIRST_WAIT_S
        while True:
            try:
                return self._try(path, body, deadline)
            except Fault as fault:
                # Who does not answer a GET has not answered anything yet: the address may be wrong.
                is_passing = fault.status in BUSY or (fault.status == 0 and body is not None)
                next_s = fault.wait_s or wait_s
                if not (self._may_repeat and is_passing) or time.monotonic() + next_s > deadline:
                    raise
            time.sleep(next_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _try(self, path: str, body: Body | None, deadline: float) -> Any:
        with self._open(path, body, max(0.01, deadline - time.monotonic())) as response:
            answer = self._json(path, b"".join(_until(deadline, response.iter_bytes())))
        self._count_tokens(answer.get("usage") if isinstance(answer, dict) else None)
        return answer

    @contextlib.contextmanager
    def _open(self, path: str, body: Body | None, timeout_s: float) -> Iterator[httpx.Response]:
        """Send a request once; yield the answer's head, its body still to be read."""
        method, url = "GET" if body is None else "POST", self.url + path
        self._count(tries=1)
        try:
            with self._http.stream(method, url, json=body, timeout=timeout_s) as response:
                if not response.is_success:
                    status, told = response.status_code, _said(response.read())
                    wait_s = _retry_after_s(response.headers.get("Retry-After", ""))
                    rule = f"the server refused ({status}): {told}"
                    raise Fault(f"{url}: {rule}", status=status, told=told, wait_s=wait_s)
                yield response
        except httpx.RequestError as error:
            if isinstance(error, httpx.RemoteProtocolError) and _greets_otherwise(self.url):
                raise self._no_json(path) from error
            told = str(error) or type(error).__name__
            rule = f"no answer ({told}); check the address and that the server runs"
            raise Fault(f"{url}: {rule}", told=told) from error

    def _json(self, path: str, text: bytes) -> Any:
        """Return what an answer or an event is as JSON, unless it tells of an error."""
        try:
            found = json.loads(text)
        except ValueError as error:
            raise self._no_json(path) from error
        if isinstance(found, dict) and found.get("error"):
            told = _said(text)
            raise Fault(f"{self.url}{path}: the server failed: {told}", status=200, told=told)
        return found

    def _no_json(self, path: str) -> Fault:
        rule = "what answers speaks no JSON; give an OpenAI-compatible server's URL"
        return Fault(f"{self.url}{path}: {rule}", status=200, told="it speaks no JSON")

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, value in more.items():
                setattr(self.spend, name, getattr(self.spend, name) + value)

    def _count_tokens(self, usage: Mapping[str, Any] | None) -> None:
        names = ("prompt_tokens", "completion_tokens")
        counts = [(usage or {}).get(name) or 0 for name in names]
        money = sum(n * price / 1e6 for n, price in zip(counts, self._prices, strict=True))
        self._count(**dict(zip(names, counts, strict=True)), money=money)


def _host(url: str) -> str:
    """Return the host of an address."""
    with contextlib.suppress(httpx.InvalidURL):
        address = httpx.URL(url)
        if address.scheme in ("http", "https") and address.host:
            return address.host
    raise ValueError(f"{url!r} is no address; write http://HOST:PORT")


def _greets_otherwise(url: str) -> bool:
    """Whether who listens there answers a request with something that is not HTTP."""
    address = httpx.URL(url)
    port = address.port or {"http": 80, "https": 443}[address.scheme]
    with contextlib.suppress(OSError), socket.create_connection((address.host, port), 1.0) as there:
        there.settimeout(1.0)
        there.sendall(b"GET / HTTP/1.0\r\n\r\n")
        said = there.recv(64)
        return address.scheme == "http" and bool(said) and not said.startswith(b"HTTP/")
    return False


def _is_here(host: str) -> bool:
    """Whether a host is this machine, by its name alone."""
    try:
        return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _key(path: str, body: Body) -> str:
    """Return the name of an answer's file: what was asked decides, not where."""
    digest = hash_json([path, body])
    return f"{digest[:2]}/{digest[2:]}.json"  # no folder of a million files


def _said(text: bytes) -> str:
    """Return what a server says of its refusal; never nothing."""
    try:
        told = str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        told = text.decode(errors="replace").strip()[:500]
    return told or "it says nothing"


def _retry_after_s(header: str) -> float:
    """Return how long a server asks to be left alone: seconds, or until a date; 0: it does not."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(header))
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    return 0.0


def _until(deadline: float, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces that come in time; httpx itself counts from one piece to the next."""
    for piece in pieces:
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout("timed out")
        yield piece


def _lines(pieces: Iterable[bytes]) -> Iterator[tuple[float, bytes]]:
    """Yield the whole lines of a stream, each with the time when the last of it came."""
    rest = b""
    for piece in pieces:
        at = time.perf_counter()
        *lines, rest = (rest + piece).split(b"\n")
        yield from ((at, line) for line in lines)
    yield time.perf_counter(), rest
