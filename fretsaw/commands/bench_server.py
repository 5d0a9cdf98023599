"""`fretsaw bench-server`: what clients of a server see.

Its short spelling is `fretsaw bench URL|CHECKPOINT`.
"""

import contextlib
import dataclasses
import os
import secrets
from pathlib import Path
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchServerOptions:
    """What clients of a server see."""

    server: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URL|CHECKPOINT")]
    """Where an OpenAI-compatible server answers, or a checkpoint to serve meanwhile."""
    scenario: str = "batch=8,in=64,out=64"
    """Requests at once, tokens of a prompt, tokens that are generated."""
    requests: int = 0
    """Requests in all; 0: four of every client."""
    warmup: int = 1
    """Requests of every client before, which do not count."""
    model: str = ""
    """What the server calls the model; by default the first it names."""
    api_key: str = ""
    """A key that requests carry; also read from FRETSAW_API_KEY."""
    vocab_size: int = 0
    """Prompts are random ids below it; 0: a checkpoint's own vocabulary, 256 at a URL."""
    timeout_s: float = 600.0
    """How long a server may say nothing."""
    seed: int | None = None
    """Seed of the prompts; by default drawn anew, since a server may know earlier prompts."""
    out: Path | None = None
    """A new file for the figures and every request's times, as JSON."""


def bench_server(argv: list[str]) -> None:
    """Run `fretsaw bench-server`."""
    options = tyro.cli(
        BenchServerOptions,
        args=argv,
        prog="fretsaw bench-server",
        description="Measure time to first token, time between tokens and tokens/s under load. To "
        "compare a child with its parent: fretsaw bench --parent DIR --child DIR --out DIR.",
    )
    from fretsaw.bench.load import Load, Server, measure_load, render_load, summarise
    from fretsaw.scenario.scenario import Scenario
    from fretsaw.stage.holder import hold
    from fretsaw.stage.whole import write_json

    if options.out is not None and options.out.exists():
        raise ValueError(f"--out {options.out}: already there; choose another file")
    scenario = Scenario.parse(options.scenario)
    load = Load(
        clients=scenario.batch,
        requests=options.requests or 4 * scenario.batch,
        prompt_tokens=scenario.prompt_tokens,
        output_tokens=scenario.output_tokens,
        vocab_size=options.vocab_size,
        seed=secrets.randbelow(2**31) if options.seed is None else options.seed,
    )
    key = options.api_key or os.environ.get("FRETSAW_API_KEY", "")
    server = Server(options.server, options.model, key, options.timeout_s)
    with hold(options.out) if options.out is not None else contextlib.nullcontext():
        load, seen = measure_load(server, load, warmup=options.warmup)
        found = summarise(seen)
        print(render_load(options.server, load, found))
        if options.out is not None:
            requests = [dataclasses.asdict(one) for one in seen]
            write_json(options.out, {"load": dataclasses.asdict(load), **found, "each": requests})
