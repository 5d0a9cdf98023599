"""Settle, once, what to compute on and how precisely."""

import contextlib
import re
import time

import torch

from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.stage.progress import say

PROBE = ModelConfig.uniform(
    num_hidden_layers=2,
    num_key_value_heads=4,
    intermediate_size=384,
    vocab_size=512,
    hidden_size=128,
    num_attention_heads=8,
    head_dim=16,
)
NEEDED_GAIN = 1.1  # bf16 must pay at least this much


def check_device(device: str) -> None:
    """Raise for a device that is none, or that this machine does not have."""
    found = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device)
    if found is None:
        raise ValueError(f"device {device!r} is none; give auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if device.startswith("cuda") and int(found[1] or 0) >= count:
        raise ValueError(f"device {device}: torch finds {count} GPUs here; give auto or cpu")


def settle(device: str, dtype: str) -> tuple[str, str]:
    """Return a device and a dtype for "auto": the accelerator if there is one, bf16 where it pays.

    Whether it pays is measured on two training steps of a small network, not read off a data sheet:
    many CPUs multiply bf16 faster but lose more on the casts.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        gain = _step_seconds(device, "fp32") / _step_seconds(device, "bf16")
        dtype = "bf16" if gain > NEEDED_GAIN else "fp32"
        say(f"precision: {dtype} on {device} (a training step in bf16 is {gain:.2f}x as fast)")
    return device, dtype


def autocast(device: torch.device, dtype: str) -> contextlib.AbstractContextManager:
    """Do matrix work in bf16 where asked; weights, norms and losses stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16")


def _step_seconds(device: str, dtype: str) -> float:
    """Return the seconds of the best of three training steps on 2048 tokens."""
    decoder = Decoder(PROBE).to(device)
    token_ids = torch.zeros(16, 128, dtype=torch.long, device=device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        with autocast(decoder.device, dtype):
            loss = decoder(token_ids).float().square().mean()
        loss.backward()
        loss.item()
        best = min(best, time.perf_counter() - started)
    return best
