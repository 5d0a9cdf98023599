"""How long a decoder takes at a scenario, in the two phases that serving has.

Times are those of the engine's own steps, so what is measured is what is served. A decode step is
timed in the middle of the output, where its context is the mean one.
"""

import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fretsaw.engine.engine import PAGE_SIZE, Engine
from fretsaw.engine.page_memory import page_bytes
from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import Request
from fretsaw.model.decoder import Decoder

ENOUGH_MS, MAX_REPEATS = 50.0, 9


@dataclass(frozen=True)
class DecodeLoad:
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
    """Return what identifies the machine and the software behind a measured time."""
    software: dict[str, str | int] = {"torch": torch.__version__}
    if device.startswith("cuda"):
        return {"device": torch.cuda.get_device_name(device), **software}
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"model name\s*: (.*)", cpuinfo.read_text())
        name = found[1] if found else name
    return {"device": name, "threads": torch.get_num_threads(), **software}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_prefill(decoder: Decoder, load: DecodeLoad) -> float:
    """Return the milliseconds of reading all prompts, in one step."""

    engine = _engine(decoder, load)

    def once() -> list[float]:
        for prompt in _prompts(decoder, load, load.prompt_tokens):
            engine.add(Request(prompt, Sampling(max_tokens=1)))
        return [_time_step(engine)]

    once()  # warms up
    return _median_of_enough(once)


def time_decode(decoder: Decoder, load: DecodeLoad, *, num_steps: int = 4) -> float:
    """Return the milliseconds of decoding all output tokens, from `num_steps` in the middle."""
    # Such that the last of the steps is still within the prompt and its output.
    middle = max(1, load.prompt_tokens + (load.output_tokens - num_steps - 2) // 2)

    def once() -> list[float]:
        engine = _engine(decoder, load)
        for prompt in _prompts(decoder, load, middle):
            engine.add(Request(prompt, Sampling(max_tokens=num_steps + 2)))
        engine.pretend_computed()
        _time_step(engine)  # warms up
        return [_time_step(engine) for _ in range(num_steps)]

    return _median_of_enough(once) * load.output_tokens


def _median_of_enough(once: Callable[[], list[float]]) -> float:
    """Repeat what is short, until a moment's pause of the machine no longer counts."""
    times = once()
    for _ in range(MAX_REPEATS - 1):
        if sum(times) >= ENOUGH_MS:
            break
        times += once()
    return statistics.median(times)


def _engine(decoder: Decoder, load: DecodeLoad) -> Engine:
    longest = load.prompt_tokens + load.output_tokens + PAGE_SIZE
    num_pages = load.batch * -(-longest // PAGE_SIZE)
    engine = Engine(
        decoder,
        max_batch=load.batch,
        memory_mib=num_pages * page_bytes(decoder, PAGE_SIZE) / 2**20,
        chunk_tokens=load.batch * longest,
        reuses_prefixes=False,
    )
    engine.touch(num_pages)
    return engine


def _prompts(decoder: Decoder, load: DecodeLoad, length: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(0)
    shape = (load.batch, max(1, length))
    drawn = torch.randint(decoder.config.vocab_size, shape, generator=generator)
    return [tuple(row) for row in drawn.tolist()]


def _time_step(engine: Engine) -> float:
    _synchronise(engine.decoder.device)
    started = time.perf_counter()
    engine.step()
    _synchronise(engine.decoder.device)
    return (time.perf_counter() - started) * 1000
