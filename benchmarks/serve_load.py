"""A parent and its child behind `fretsaw serve`, under the same load of streaming clients.

    python benchmarks/serve_load.py --parent runs/tiny/parent --child runs/tiny/1.5x-decode/distill

Both servers are up; rounds go to one and the other in turn, so that what else the machine does
falls on both. In a round every client sends one request after another: a prompt of random ids, and
a fixed number of tokens to generate, streamed. Beside it the engine alone, on the same requests at
once: what HTTP costs. The clients run in a process of their own.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from fretsaw.artifact import write_json


@dataclass(frozen=True)
class Load:
    """What the clients of one round do."""

    clients: int
    requests: int  # of every client, one after another
    prompt_tokens: int
    max_tokens: int
    vocab: int


@dataclass
class Round:
    """What they saw."""

    tokens_per_s: float
    first_token_ms: list[float]
    inter_token_ms: list[float]


@contextmanager
def serving(checkpoint: Path, options: Sequence[str]) -> Iterator[str]:
    """Start a server on a free port; yield its address."""
    command = [sys.executable, "-m", "fretsaw", "serve", str(checkpoint), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        greeting = process.stdout.readline()
        found = re.search(r"http://\S+", greeting)
        if found is None:
            raise SystemExit(f"{checkpoint}: the server did not start")
        print(greeting, end="", flush=True)
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def bodies(load: Load, client: int, seed: int) -> list[dict[str, Any]]:
    """Return one client's requests; no two share a prefix."""
    draws = np.random.default_rng((seed, client))
    ids = draws.integers(3, load.vocab, (load.requests, load.prompt_tokens)).tolist()
    fixed = {"max_tokens": load.max_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    return [{"prompt": prompt, **fixed} for prompt in ids]


async def one_client(
    session: aiohttp.ClientSession, url: str, requests: Sequence[dict[str, Any]], seen: Round
) -> None:
    for body in requests:
        last, is_first = time.perf_counter(), True
        async with session.post(f"{url}/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                now = time.perf_counter()
                gaps = seen.first_token_ms if is_first else seen.inter_token_ms
                gaps.append((now - last) * 1e3)
                last, is_first = now, False


async def one_round(url: str, load: Load, seed: int) -> Round:
    seen = Round(0.0, [], [])
    requests = [bodies(load, client, seed) for client in range(load.clients)]
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        started = time.perf_counter()
        await asyncio.gather(*(one_client(session, url, own, seen) for own in requests))
        seconds = time.perf_counter() - started
    seen.tokens_per_s = load.clients * load.requests * load.max_tokens / seconds
    return seen


def clients_process(url: str, load: Load, seed: int) -> Round:
    """Run a round; called in the clients' own process."""
    return asyncio.run(one_round(url, load, seed))


def engine_alone(checkpoint: Path, load: Load, max_batch: int) -> float:
    """Return tokens/s of the engine on one request of every client at once, without HTTP."""
    import fretsaw
    from fretsaw.engine.engine import Engine
    from fretsaw.engine.sequence import Request

    engine = Engine(fretsaw.load(checkpoint).decoder, max_batch=max_batch)
    speeds = []
    for seed in range(4):
        prompts = [bodies(load, client, seed)[0]["prompt"] for client in range(load.clients)]
        requests = [Request(tuple(prompt), load.max_tokens) for prompt in prompts]
        started = time.perf_counter()
        num_tokens = sum(1 for _ in engine.generate(requests))
        speeds.append(num_tokens / (time.perf_counter() - started))
    return statistics.median(speeds[1:])


def summary(rounds: Sequence[Round]) -> dict[str, float]:
    first = np.concatenate([r.first_token_ms for r in rounds])
    inter = np.concatenate([r.inter_token_ms for r in rounds])
    return {
        "tokens_per_s": statistics.median(r.tokens_per_s for r in rounds),
        "first_token_ms_p50": float(np.percentile(first, 50)),
        "first_token_ms_p99": float(np.percentile(first, 99)),
        "inter_token_ms_p50": float(np.percentile(inter, 50)),
        "inter_token_ms_p99": float(np.percentile(inter, 99)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="a parent and a child under the same load")
    parser.add_argument("--parent", type=Path, required=True)
    parser.add_argument("--child", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2, help="of a client and round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from fretsaw.checkpoint.folder import read_config

    vocab = read_config(options.parent).vocab_size
    load = Load(options.clients, options.requests, options.prompt_tokens, options.max_tokens, vocab)
    folders = {"parent": options.parent, "child": options.child}
    alone = {name: engine_alone(path, load, options.max_batch) for name, path in folders.items()}
    rounds: dict[str, list[Round]] = {name: [] for name in folders}
    server_options = ["--max-batch", str(options.max_batch)]
    with (
        serving(options.parent, server_options) as parent,
        serving(options.child, server_options) as child,
        multiprocessing.get_context("spawn").Pool(1) as clients,
    ):
        urls = {"parent": parent, "child": child}
        for url in urls.values():  # warm both up
            clients.apply(clients_process, (url, load, 0))
        for seed in range(1, options.rounds + 1):
            for name, url in urls.items():
                rounds[name].append(clients.apply(clients_process, (url, load, seed)))
    results = {name: summary(found) for name, found in rounds.items()}
    speeds = {name: [r.tokens_per_s for r in found] for name, found in rounds.items()}
    ratios = [c / p for p, c in zip(speeds["parent"], speeds["child"], strict=True)]
    noise = statistics.median(
        abs(b / a - 1) for a, b in zip(speeds["parent"], speeds["parent"][1:], strict=False)
    )
    print(f"\n{'':24}{'parent':>12}{'child':>12}")
    for key in results["parent"]:
        row = "".join(f"{results[name][key]:12.2f}" for name in folders)
        print(f"{key:24}{row}")
    print(f"{'engine alone, tokens/s':24}" + "".join(f"{alone[name]:12.2f}" for name in folders))
    ratio = statistics.median(ratios)
    print(
        f"\nserved, the child is {ratio:.2f}x the parent (median of {len(ratios)} rounds, from "
        f"{min(ratios):.2f} to {max(ratios):.2f}; a round's speed differs from the next by "
        f"{noise:.1%}); the engines alone {alone['child'] / alone['parent']:.2f}x"
    )
    if options.out:
        write_json(
            options.out,
            {
                "load": asdict(load),
                "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
                "results": results,
                "engine_alone_tokens_per_s": alone,
                "ratios": ratios,
                "noise": noise,
            },
        )
        print(json.dumps({"out": str(options.out)}))


if __name__ == "__main__":
    main()
