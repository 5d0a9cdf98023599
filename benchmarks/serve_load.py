"""A parent and its child behind `fretsaw serve`, under the same load of streaming clients.

    python benchmarks/serve_load.py --parent runs/tiny/parent --child runs/tiny/1.5x-decode/distill

Both servers are up; rounds go to one and the other in turn, so that what else the machine does
falls on both. In a round every client sends one request after another: a prompt of random ids, and
a fixed number of tokens to generate, streamed. Beside it the engine alone, on the same requests at
once: what HTTP costs. The clients run in a process of their own.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from fretsaw.bench.load import Load, Seen, Server, prompt_of, run_load, serving, summarise
from fretsaw.stage.whole import write_json


def clients_process(url: str, load: Load) -> list[Seen]:
    """Run a round; called in the clients' own process."""
    return run_load(Server(url).named(), load)


def engine_alone(checkpoint: Path, load: Load, max_batch: int) -> float:
    """Return tokens/s of the engine on one request of every client at once, without HTTP."""
    import fretsaw
    from fretsaw.engine.engine import Engine
    from fretsaw.engine.sampling import Sampling
    from fretsaw.engine.sequence import Request

    engine = Engine(fretsaw.load(checkpoint).decoder, max_batch=max_batch)
    speeds = []
    for seed in range(4):
        drawn = replace(load, seed=seed)
        requests = [
            Request(tuple(prompt_of(drawn, number)), Sampling(max_tokens=load.output_tokens))
            for number in range(load.clients)
        ]
        started = time.perf_counter()
        num_tokens = sum(1 for _ in engine.generate(requests))
        speeds.append(num_tokens / (time.perf_counter() - started))
    return statistics.median(speeds[1:])


def summary(rounds: Sequence[list[Seen]]) -> dict[str, float]:
    """Return the median round's throughput, and what all clients waited for."""
    waits = summarise([one for seen in rounds for one in seen])
    return {
        "tokens_per_s": statistics.median(summarise(seen)["tokens_per_s"] for seen in rounds),
        **{
            f"{name}_{key}": waits[name][key]
            for name in ("first_token_ms", "between_tokens_ms")
            for key in ("p50", "p99")
        },
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
    load = Load(
        clients=options.clients,
        requests=options.clients * options.requests,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.max_tokens,
        vocab_size=vocab,
    )
    folders = {"parent": options.parent, "child": options.child}
    alone = {name: engine_alone(path, load, options.max_batch) for name, path in folders.items()}
    rounds: dict[str, list[list[Seen]]] = {name: [] for name in folders}
    server_options = ["--max-batch", str(options.max_batch)]
    with (
        serving(options.parent, server_options) as parent,
        serving(options.child, server_options) as child,
        multiprocessing.get_context("spawn").Pool(1) as clients,
    ):
        urls = {"parent": parent, "child": child}
        for url in urls.values():  # warm both up
            clients.apply(clients_process, (url, load))
        for seed in range(1, options.rounds + 1):
            for name, url in urls.items():
                drawn = replace(load, seed=seed)
                rounds[name].append(clients.apply(clients_process, (url, drawn)))
    results = {name: summary(found) for name, found in rounds.items()}
    speeds = {
        name: [summarise(seen)["tokens_per_s"] for seen in found] for name, found in rounds.items()
    }
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
