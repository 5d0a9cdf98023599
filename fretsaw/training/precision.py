"""Settle, once, what to compute on and how precisely; and whether torch.compile works here."""

import functools
import shutil
import time

import torch

from fretsaw.progress import say


def settle(device: str, dtype: str) -> tuple[str, str]:
    """Return a device and a dtype for "auto": the accelerator if there is one, bf16 where it pays."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        gain = bf16_gain(device)
        dtype = "bf16" if gain > 1.5 else "fp32"
        say(f"precision: {dtype} on {device} (bf16 multiplies {gain:.1f}x as fast as fp32)")
    return device, dtype


@functools.cache
def bf16_gain(device: str) -> float:
    """Return how much faster a bf16 matrix product is than one in fp32; 0 where it fails."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 512, device=device, dtype=dtype)
        b = torch.randn(512, 1024, device=device, dtype=dtype)
        best = float("inf")
        for _ in range(8):
            started = time.perf_counter()
            (a @ b).sum().item()
            best = min(best, time.perf_counter() - started)
        seconds.append(best)
    return seconds[0] / seconds[1]


def has_compiler() -> bool:
    """Whether torch.compile can build kernels for the CPU."""
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))
