"""How long a decoder takes at a scenario, in the two phases that serving has.

Times are those of the engine's own `prefill` and `decode`, so what is measured is what is served. A
decode step is timed in the middle of the output, where its context is the mean one.
"""

import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fretsaw.engine.engine import decode, new_cache, prefill
from fretsaw.model.decoder import Decoder


@dataclass(frozen=True)
class Load:
    """What is served: `batch` rows of `prompt_tokens`, each continued by `output_tokens`."""

    batch: int
    prompt_tokens: int
    output_tokens: int


def torch_dtype(name: str) -> torch.dtype:
    """Return the precision a scenario names, where the engine has it."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
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


@torch.inference_mode()
def time_prefill(decoder: Decoder, load: Load) -> float:
    """Return the milliseconds of one prefill of the whole batch."""
    generator = torch.Generator().manual_seed(0)
    shape = (load.batch, load.prompt_tokens)
    prompts = torch.randint(decoder.config.vocab_size, shape, generator=generator)
    rows = prompts.tolist()
    prefill(decoder, rows, new_cache(decoder, load.batch, load.prompt_tokens))  # warms up
    cache = new_cache(decoder, load.batch, load.prompt_tokens)
    _synchronise(decoder.device)
    started = time.perf_counter()
    prefill(decoder, rows, cache)
    _synchronise(decoder.device)
    return (time.perf_counter() - started) * 1000


@torch.inference_mode()
def time_decode(decoder: Decoder, load: Load, *, num_steps: int = 4) -> float:
    """Return the milliseconds of decoding all output tokens, from `num_steps` in the middle."""
    middle = load.prompt_tokens + load.output_tokens // 2
    cache = new_cache(decoder, load.batch, middle + num_steps + 1)
    cache.set_lengths(torch.full((load.batch,), max(0, middle - num_steps // 2)))
    token_ids = torch.zeros(load.batch, dtype=torch.long, device=decoder.device)
    decode(decoder, token_ids, cache)
    _synchronise(decoder.device)
    started = time.perf_counter()
    for _ in range(num_steps):
        decode(decoder, token_ids, cache)
    _synchronise(decoder.device)
    return (time.perf_counter() - started) * 1000 / num_steps * load.output_tokens
