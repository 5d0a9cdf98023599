"""Two hundred rude clients on one server for a minute: it must neither fall, leak nor fall silent.

    python benchmarks/serve_abuse.py [CHECKPOINT] [--seconds 60] [--clients 200]

Clients ask properly, leave in the middle of an answer or of their own request, send bodies that are
too large, no JSON, no UTF-8, no HTTP or full of wrong values, take a wrong path or key, and ask for
more than may wait. Checked: the server lives, every refusal is an OpenAI-shaped error that says
why, no connection ends without an answer unless its client left, all pages come back, and memory
stays flat.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

KEY = "right"
BODY_LIMIT_MIB = 0.25
MAX_GROWTH_MIB = 32  # from a third of the time on: allocators settle, leaks do not


@dataclass
class Tally:
    """What happened to all clients."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def refuse(self, status: int, body: bytes, what: str) -> None:
        """Note a refusal, and check that it says why."""
        self.answers[f"{what}: {status}"] += 1
        try:
            error = json.loads(body)["error"]
            is_told = bool(error["message"]) and set(error) == {"message", "type", "param", "code"}
        except (ValueError, KeyError, TypeError):
            is_told = False
        if not is_told or status >= 500:
            self.wrong.append(f"{what}: {status} {body[:200]!r}")


@dataclass
class Wire:
    """Where the server is."""

    host: str
    port: int
    tally: Tally
    draws: random.Random

    async def send(
        self, raw: bytes, what: str, *, leaves_after: int | None = None, expects: str = ""
    ) -> None:
        """Send bytes and read the response, or leave after some bytes of it.

        `expects` is how the status must begin; "-" lets the server close without a word.
        """
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(raw)
            await writer.drain()
            if leaves_after is not None:
                await reader.read(leaves_after)
                self.tally.answers[f"{what}: left"] += 1
                return
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            body = await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            if expects != "-" and leaves_after is None:
                self.tally.wrong.append(
                    f"{what}: the connection ended without an answer ({error!r})"
                )
            self.tally.answers[f"{what}: closed"] += 1
            return
        finally:
            writer.close()
        if b"transfer-encoding: chunked" in head.lower():
            body = b"".join(
                re.findall(rb"[0-9a-f]+\r\n(.*?)\r\n(?=[0-9a-f]+\r\n)", body, re.DOTALL)
            )
        if status >= 400 and expects != "-":
            self.tally.refuse(status, body, what)
        else:
            self.tally.answers[f"{what}: {status}"] += 1
        # Under this load any request may meet a full queue, which is an answer too.
        if expects and expects != "-" and str(status) not in (*expects.split("|"), "429"):
            self.tally.wrong.append(f"{what}: {status}, not {expects}: {body[:200]!r}")


def request(body: bytes, *, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    """Return a POST's bytes; the connection ends after its response."""
    named = {
        "Host": "a",
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Authorization": f"Bearer {KEY}",
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def asking(draws: random.Random, **more: object) -> bytes:
    fields: dict[str, object] = {
        "prompt": [draws.randrange(3, 200) for _ in range(draws.randrange(1, 40))],
        "max_tokens": draws.randrange(1, 60),
        "seed": draws.randrange(100),
        **more,
    }
    return json.dumps(fields).encode()


COMPLETIONS = "/v1/completions"


async def ask(wire: Wire) -> None:
    body = asking(wire.draws, n=wire.draws.randrange(1, 4), stop=["e", "zz"])
    await wire.send(request(body, path=COMPLETIONS), "ask", expects="200")


async def stream(wire: Wire) -> None:
    body = asking(wire.draws, stream=True)
    await wire.send(request(body, path=COMPLETIONS), "stream", expects="200")


async def leave_a_stream(wire: Wire) -> None:
    body = asking(wire.draws, stream=True, n=4, ignore_eos=True)
    raw = request(body, path=COMPLETIONS)
    await wire.send(raw, "leave a stream", leaves_after=wire.draws.randrange(1, 3000))


async def leave_an_answer(wire: Wire) -> None:
    raw = request(asking(wire.draws, n=8, ignore_eos=True), path=COMPLETIONS)
    await wire.send(raw, "leave an answer", leaves_after=0)


async def leave_a_body(wire: Wire) -> None:
    raw = request(asking(wire.draws), path=COMPLETIONS)
    await wire.send(raw[: wire.draws.randrange(len(raw))], "leave a body", leaves_after=0)


async def send_too_much(wire: Wire) -> None:
    size = int(BODY_LIMIT_MIB * 2**20 * wire.draws.uniform(1.1, 6))
    raw = request(b'{"prompt": "' + b"a" * size + b'"}', path=COMPLETIONS)
    await wire.send(raw, "too large", expects="413")


async def send_no_json(wire: Wire) -> None:
    body = wire.draws.choice(
        [b"{", b"", b"[1]", b"null", b'{"prompt": NaN}', b"[" * 50_000, b'{"a": 1}{']
    )
    await wire.send(request(body, path=COMPLETIONS), "no JSON", expects="400")


async def send_no_utf8(wire: Wire) -> None:
    bad = wire.draws.choice([b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\\ud800"])
    raw = request(b'{"prompt": "' + bad + b'"}', path=COMPLETIONS)
    await wire.send(raw, "no UTF-8", expects="400")


async def send_wrong_values(wire: Wire) -> None:
    wrong: dict[str, object] = wire.draws.choice(
        [
            {"max_tokens": -1},
            {"max_tokens": 10**9},
            {"n": 10**6},
            {"temperature": 99},
            {"stop": ["a"] * 2 + list("bcdef")},
            {"prompt": [10**9]},
            {"prompt": []},
            {"prompt": {"a": []}},
            {"prompt": "long " * 20_000},
            {"nonsense": True},
            {"logprobs": "many"},
            {"seed": 2**80},
        ]
    )
    raw = request(asking(wire.draws, **wrong), path=COMPLETIONS)
    await wire.send(raw, "wrong values", expects="400")


async def send_wrong_messages(wire: Wire) -> None:
    messages: object = wire.draws.choice(
        [[], "hi", [{"role": "king"}], [{"role": "assistant", "content": "a"}], [None], [[]]]
    )
    body = json.dumps({"messages": messages}).encode()
    await wire.send(request(body), "wrong messages", expects="400")


async def take_a_wrong_path(wire: Wire) -> None:
    path = wire.draws.choice(["/v1/responses", "/v1/embeddings", "/../../etc/passwd", "/%00%ff"])
    await wire.send(request(b"{}", path=path), "wrong path", expects="404")


async def bring_a_wrong_key(wire: Wire) -> None:
    raw = request(b"{}", Authorization=wire.draws.choice(["Bearer x", "x", "", "Bearer \xff"]))
    await wire.send(raw, "wrong key", expects="401")


async def send_another_type(wire: Wire) -> None:
    raw = request(b"a=b", Content_Type="application/x-www-form-urlencoded")
    await wire.send(raw, "wrong type", expects="415")


async def speak_no_http(wire: Wire) -> None:
    raw = wire.draws.randbytes(wire.draws.randrange(1, 500)) + b"\r\n\r\n"
    await wire.send(raw, "no HTTP", expects="-")


RUDE: tuple[tuple[int, Callable[[Wire], Awaitable[None]]], ...] = (
    (20, ask),
    (20, stream),
    (15, leave_a_stream),
    (10, leave_an_answer),
    (5, leave_a_body),
    (4, send_too_much),
    (5, send_no_json),
    (5, send_no_utf8),
    (5, send_wrong_values),
    (3, send_wrong_messages),
    (2, take_a_wrong_path),
    (2, bring_a_wrong_key),
    (2, send_another_type),
    (2, speak_no_http),
)


async def one_client(wire: Wire, until: float) -> None:
    weights, acts = zip(*RUDE, strict=True)
    while time.monotonic() < until:
        (act,) = wire.draws.choices(acts, weights)
        try:
            async with asyncio.timeout(60):
                await act(wire)
        except TimeoutError:
            wire.tally.wrong.append(f"{act.__name__}: no answer within 60 s")


async def metrics(host: str, port: int) -> dict[str, float]:
    reader, writer = await asyncio.open_connection(host, port)
    head = f"Host: a\r\nConnection: close\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    writer.write(f"GET /metrics HTTP/1.1\r\n{head}".encode())
    text = (await reader.read()).decode()
    writer.close()
    lines = [line.split() for line in text.splitlines() if line.startswith("fretsaw_")]
    return {name: float(value) for name, value in lines}


def memory_of(found: dict[str, float], process: str) -> float:
    """Return a process's memory in MiB."""
    return found[f'fretsaw_resident_bytes{{process="{process}"}}'] / 2**20


async def abuse(host: str, port: int, options: argparse.Namespace) -> bool:
    """Run the clients; return whether all went as it must."""
    tally, started = Tally(), time.monotonic()
    until = started + options.seconds
    wires = [
        Wire(host, port, tally, random.Random(options.seed * 100_003 + client))
        for client in range(options.clients)
    ]
    running = [asyncio.create_task(one_client(wire, until)) for wire in wires]
    memory: list[float] = []
    while time.monotonic() < until:
        await asyncio.sleep(options.seconds / 12)
        found = await metrics(host, port)
        parts = [memory_of(found, process) for process in ("server", "engine")]
        memory.append(sum(parts))
        shown = ("open_answers", "running", "waiting", "pages_used")
        state = "  ".join(f"{name} {found[f'fretsaw_{name}']:.0f}" for name in shown)
        mib = " + ".join(f"{part:.1f}" for part in parts)
        print(f"{time.monotonic() - started:5.0f} s  {mib} MiB  {state}", flush=True)
    await asyncio.gather(*running)
    for _ in range(500):
        found = await metrics(host, port)
        if found["fretsaw_open_answers"] == found["fretsaw_pages_used"] == 0:
            break
        await asyncio.sleep(0.02)
    for name, count in sorted(tally.answers.items()):
        print(f"{count:8}  {name}")
    settled = memory[len(memory) // 3]
    growth = memory[-1] - settled
    print(f"memory: {settled:.1f} MiB after a third, {memory[-1]:.1f} at the end ({growth:+.1f})")
    for line in tally.wrong[:20]:
        print(f"WRONG {line}")
    leaked = found["fretsaw_pages_used"] + found["fretsaw_open_answers"]
    if leaked:
        print(f"WRONG {found['fretsaw_pages_used']:.0f} pages are still held")
    if growth > MAX_GROWTH_MIB:
        print(f"WRONG memory grew by {growth:.1f} MiB")
    return not (tally.wrong or leaked or growth > MAX_GROWTH_MIB)


def main() -> None:
    parser = argparse.ArgumentParser(description="rude clients")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="else the tests' small one")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        if options.checkpoint is None:
            sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
            from serving import write_toggled

            write_toggled(Path(made))
        run(options.checkpoint or Path(made), options)


def run(checkpoint: Path, options: argparse.Namespace) -> None:
    """Let the clients loose on a server; exit with 1 if anything went wrong."""
    command = [sys.executable, "-m", "fretsaw", "serve", str(checkpoint), "--port", "0"]
    command += ["--api-key", KEY, "--max-body-mib", str(BODY_LIMIT_MIB), "--max-queue", "128"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        greeting = process.stdout.readline()
        found = re.search(r"http://([\d.]+):(\d+)", greeting)
        if found is None:
            raise SystemExit("the server did not start")
        print(greeting, end="")
        is_good = asyncio.run(abuse(found[1], int(found[2]), options))
        is_alive = process.poll() is None
        process.terminate()
        code = process.wait(timeout=60)
    if not is_alive or code != 0:
        print(f"WRONG the server ended with {code}")
    if not (is_good and is_alive and code == 0):
        raise SystemExit(1)
    print("no crash, no page held, memory flat, every refusal told why")


if __name__ == "__main__":
    main()
