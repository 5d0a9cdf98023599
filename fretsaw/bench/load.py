"""How long clients of a server wait, and how much it generates: any OpenAI-compatible one.

As many clients as the scenario's batch send one request after another to /v1/completions, streamed:
a prompt of random token ids, no two alike, and a fixed number of tokens to generate. What counts is
what a client sees. No torch.
"""

import contextlib
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fretsaw.checkpoint.folder import read_config
from fretsaw.checkpoint.hub import resolve
from fretsaw.client.openai import Client, Fault
from fretsaw.stage.progress import Progress

FIRST_ID = 3  # of the ids drawn: below are often special ones
PERCENTILES = (50, 99)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the clients do."""

    clients: int
    requests: int  # in all
    prompt_tokens: int
    output_tokens: int
    vocab_size: int  # ids are drawn below it
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request as its client saw it, in seconds from the start of the load."""

    sent: float
    arrivals: tuple[float, ...] = ()  # of every chunk that had an answer's text
    tokens: int = 0
    fault: str = ""  # why it failed

    @property
    def ended(self) -> float:
        """When the last of it came."""
        return self.arrivals[-1] if self.arrivals else self.sent


@dataclass(frozen=True)
class Server:
    """Where requests go, and as whom."""

    url: str  # its root, with or without /v1
    model: str = ""
    api_key: str = ""
    timeout_s: float = 600.0

    def client(self, max_concurrent: int = 1) -> Client:
        """Return what asks it, nothing twice."""
        return Client(
            self.url,
            api_key=self.api_key,
            deadline_s=self.timeout_s,
            max_concurrent=max_concurrent,
            through_proxy=False,
        )

    def named(self) -> "Server":
        """Return the server with the first model it serves, unless one is named.

        Raises `ValueError` where none answers as such a server does.
        """
        try:
            first = self.client().first_model()
            return replace(self, model=self.model or first)
        except Fault as fault:
            if fault.status == 0:
                raise ValueError(
                    f"bench: {self.url} does not answer ({fault.told}); check the address and that "
                    "the server runs"
                ) from fault
            if fault.status != 200:
                raise ValueError(
                    f"bench: {self.url} refuses ({fault.status}): {fault.told}"
                ) from fault
            if self.model:
                return self
            raise ValueError(
                f"bench: {self.url}/v1/models is not what an OpenAI-compatible server says; check "
                "the address, or name the model"
            ) from fault
        except ValueError as error:
            raise ValueError(f"bench: {error}") from error


# --- the load -------------------------------------------------------------------------------------


def run_load(
    server: Server, load: Load, tell: Callable[[int], None] = lambda done: None
) -> list[Seen]:
    """Put a load on a server; return what became of every request. `tell` hears how many ended."""
    client = server.client(load.clients)
    started = time.perf_counter()
    found: list[Seen] = []
    stop = threading.Event()
    shares = [range(number, load.requests, load.clients) for number in range(load.clients)]

    def ask(numbers: range) -> None:
        for number in numbers:
            if stop.is_set():
                return
            found.append(_one_request(client, server.model, load, number, started))
            tell(len(found))

    with ThreadPoolExecutor(load.clients) as pool:
        waiting = [pool.submit(ask, numbers) for numbers in shares]
        try:
            for done in as_completed(waiting):
                done.result()
        finally:
            stop.set()
    return found


def prompt_of(load: Load, number: int) -> list[int]:
    """Return the token ids of one request; no two share a prefix."""
    chance = random.Random(f"{load.seed} {number}")
    return [chance.randrange(FIRST_ID, load.vocab_size) for _ in range(load.prompt_tokens)]


def _one_request(client: Client, model: str, load: Load, number: int, started: float) -> Seen:
    body = {
        "model": model,
        "prompt": prompt_of(load, number),
        "max_tokens": load.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent = time.perf_counter() - started
    arrivals: list[float] = []
    tokens = 0
    try:
        for came, event in client.stream("/v1/completions", body):
            choice = (event.get("choices") or [{"finish_reason": "none"}])[0]
            if choice.get("text") or not choice.get("finish_reason"):  # not a closing one
                arrivals.append(came - started)
            tokens = (event.get("usage") or {}).get("completion_tokens") or tokens
    except Fault as fault:
        status = f"{fault.status}: " if fault.status >= 400 else ""
        return Seen(sent=sent, fault=status + fault.told)
    if not arrivals:
        return Seen(sent=sent, fault="nothing was generated")
    return Seen(sent=sent, arrivals=tuple(arrivals), tokens=tokens or len(arrivals))


def measure_load(server: Server, load: Load, *, warmup: int) -> tuple[Load, list[Seen]]:
    """Warm a server up and put a load on it; a checkpoint at `server.url` is served meanwhile.

    Returns the load as it was, its vocabulary filled in, and every request. Raises `ValueError`
    where there is no server or the numbers make no load.
    """
    if load.vocab_size and load.vocab_size < FIRST_ID + 2:
        raise ValueError(f"bench: vocab_size {load.vocab_size}; give at least {FIRST_ID + 2}")
    if load.requests < load.clients or warmup < 0:
        raise ValueError(
            f"bench: {load.requests} requests of {load.clients} clients, warmup {warmup}; every "
            "client sends one at least, and warmup is 0 or more"
        )
    with contextlib.ExitStack() as stack:
        vocab_size = load.vocab_size or 256
        if not server.url.startswith(("http://", "https://")):
            folder = resolve(server.url)
            config = read_config(folder)
            row = load.prompt_tokens + load.output_tokens
            if row > config.max_position_embeddings:
                raise ValueError(
                    f"bench: in={load.prompt_tokens} and out={load.output_tokens} are {row} tokens "
                    f"a request, but the context is {config.max_position_embeddings}; lower them"
                )
            vocab_size = load.vocab_size or config.vocab_size
            url = stack.enter_context(serving(folder, ["--max-batch", str(load.clients)]))
            server = replace(server, url=url)
        load = replace(load, vocab_size=vocab_size)
        server = server.named()
        if warmup:
            before = replace(load, requests=warmup * load.clients, seed=-1 - load.seed)
            run_load(server, before)
        progress = Progress("bench")
        progress.start("loading", load.requests, unit="request")
        try:
            return load, run_load(server, load, lambda done: progress.step(done, row=False))
        finally:
            progress.close()


# --- figures --------------------------------------------------------------------------------------


def summarise(seen: Sequence[Seen]) -> dict[str, Any]:
    """Return throughput, and percentiles in milliseconds of what clients waited for.

    Between tokens: the gaps between the chunks of one answer. Raises `ValueError` where no request
    was answered.
    """
    good = [one for one in seen if not one.fault]
    faults = [one.fault for one in seen if one.fault]
    if not good:
        raise ValueError(f"bench: none of {len(seen)} requests was answered: {faults[0]}")
    seconds = max(one.ended for one in good) - min(one.sent for one in good)
    tokens = sum(one.tokens for one in good)
    gaps = [b - a for one in good for a, b in zip(one.arrivals, one.arrivals[1:], strict=False)]
    return {
        "requests": len(good),
        "failed": len(faults),
        "first_fault": faults[0] if faults else "",
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "requests_per_s": len(good) / seconds,
        "first_token_ms": _percentiles([one.arrivals[0] - one.sent for one in good]),
        "between_tokens_ms": _percentiles(gaps),
        "request_ms": _percentiles([one.ended - one.sent for one in good]),
    }


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    values = 1e3 * np.array(seconds)
    named = {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}
    return {"mean": float(values.mean()), **named}


def render_load(what: str, load: Load, found: dict[str, Any]) -> str:
    """Write the figures as a table for a terminal."""
    rows = {
        "first token": found["first_token_ms"],
        "between tokens": found["between_tokens_ms"],
        "whole request": found["request_ms"],
    }
    lines = [
        f"{what}: {load.requests} requests, {load.clients} at once, {load.prompt_tokens} tokens "
        f"in, {load.output_tokens} out",
        f"{'milliseconds':<18}{'mean':>10}{'p50':>10}{'p99':>10}",
    ]
    for name, row in rows.items():
        if row:
            lines.append(f"{name:<18}" + "".join(f"{row[key]:>10.2f}" for key in row))
    lines.append(
        f"{found['tokens_per_s']:,.1f} tokens/s, {found['requests_per_s']:.2f} requests/s "
        f"({found['tokens']:,} tokens in {found['seconds']:.1f} s)"
    )
    if found["failed"]:
        lines.append(f"{found['failed']} requests failed, the first with {found['first_fault']}")
    return "\n".join(lines)


# --- a server of our own --------------------------------------------------------------------------


@contextlib.contextmanager
def serving(checkpoint: Path, options: Sequence[str]) -> Iterator[str]:
    """Start `fretsaw serve` on a free port; yield its address, and end it afterwards.

    Raises `ValueError` where it does not start; why stands on stderr.
    """
    command = [sys.executable, "-m", "fretsaw", "serve", str(checkpoint), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            if found is None:
                raise ValueError(f"bench: no server started for {checkpoint}; it said why above")
            yield found[0]
        finally:
            process.terminate()
            process.wait()
