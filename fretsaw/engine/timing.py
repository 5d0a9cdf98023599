"""How long a decoder takes at a scenario, in the two phases that serving has.

Times are those of the engine's own steps, so what is measured is what is served. A decode step is
timed in the middle of the output, where its context is the mean one.
"""

import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fretsaw.engine.engine import PAGE_SIZE, Engine
from fretsaw.engine.memory import page_bytes
from fretsaw.engine.sequence import Request
from fretsaw.model.decoder import Decoder


@dataclass(frozen=True)
class Load:
    """What is served: `batch` rows of `prompt_tokens`, each continued by `output_tokens`."""

    batch: int
    prompt_tokens: int
    output_tokens: int


def torch_dtype(name: str) -> torch.dtype:
    """Return the precision a scenario names, where the engine has it."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if name not in dtypes:
        raise ValueError(
            f"scenario: dtype={name} is not served by the embedded engine; use {', '.join(dtypes)}"
        )
    return dtypes[name]


def describe_hardware(device: str) -> dict[str, str | int]:
    """Return what identifies the machine behind a measured time."""
    if device.startswith("cuda"):
        return {"device": torch.cuda.get_device_name(device)}
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"model name\s*: (.*)", cpuinfo.read_text())
        name = found[1] if found else name
    return {"device": name, "threads": torch.get_num_threads()}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_prefill(decoder: Decoder, load: Load) -> float:
    """Return the milliseconds of reading all prompts, in one step."""
    run = [_engine(decoder, load) for _ in range(2)]  # the first warms up
    for engine in run:
        for prompt in _prompts(decoder, load, load.prompt_tokens):
            engine.add(Request(prompt, 1))
    return [_time_steps(engine, 1) for engine in run][-1]


def time_decode(decoder: Decoder, load: Load, *, num_steps: int = 4) -> float:
    """Return the milliseconds of decoding all output tokens, from `num_steps` in the middle."""
    engine = _engine(decoder, load)
    # Such that the last of the steps is still within the prompt and its output.
    middle = max(1, load.prompt_tokens + (load.output_tokens - num_steps - 2) // 2)
    for prompt in _prompts(decoder, load, middle):
        engine.add(Request(prompt, num_steps + 2))
    engine.pretend_computed()
    _time_steps(engine, 1)  # warms up
    return _time_steps(engine, num_steps) / num_steps * load.output_tokens


def _engine(decoder: Decoder, load: Load) -> Engine:
    longest = load.prompt_tokens + load.output_tokens + PAGE_SIZE
    num_pages = load.batch * -(-longest // PAGE_SIZE)
    return Engine(
        decoder,
        max_batch=load.batch,
        memory_mib=num_pages * page_bytes(decoder, PAGE_SIZE) / 2**20,
        chunk_tokens=load.batch * longest,
        reuses_prefixes=False,
    )


def _prompts(decoder: Decoder, load: Load, length: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(0)
    shape = (load.batch, max(1, length))
    drawn = torch.randint(decoder.config.vocab_size, shape, generator=generator)
    return [tuple(row) for row in drawn.tolist()]


def _time_steps(engine: Engine, num_steps: int) -> float:
    _synchronise(engine.decoder.device)
    started = time.perf_counter()
    for _ in range(num_steps):
        engine.step()
    _synchronise(engine.decoder.device)
    return (time.perf_counter() - started) * 1000
