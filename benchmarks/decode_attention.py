"""Decoding rows' attention in bfloat16: how far it is from float64, and how long it takes.

    python benchmarks/decode_attention.py

Ours over pages against torch's scaled_dot_product_attention over contiguous rows, and against
scores that are rounded to bfloat16 before the softmax, as eager attention has them. Errors are root
mean squares over that of the exact result; times are medians of interleaved rounds on one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fretsaw.engine.page_memory import keep_freed_memory
from fretsaw.engine.runner import Decoding, attend_pages

PAGE, KV_HEADS, GROUP = 32, 4, 4
CASES = [
    (rows, context, head_dim)
    for head_dim in (64, 128)
    for rows, context in ((1, 512), (1, 2048), (1, 8192), (8, 512), (8, 2048))
]


def rounded(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend with scores in the precision of the queries."""
    scores = queries @ keys.mT * queries.shape[-1] ** -0.5
    return scores.float().softmax(-1).to(values.dtype) @ values


def compare(rows: int, context: int, head_dim: int, num_rounds: int) -> str:
    """Return one line of the table."""
    generator = torch.Generator().manual_seed(0)
    num_pages = context // PAGE
    queries = 2 * torch.randn(rows, KV_HEADS, GROUP, head_dim, generator=generator)
    shape = (rows * num_pages, KV_HEADS, PAGE, head_dim)
    keys, values = (scale * torch.randn(shape, generator=generator) for scale in (2, 1))
    queries, keys, values = (x.bfloat16() for x in (queries, keys, values))
    row = torch.arange(len(keys)) // num_pages
    masks = {KV_HEADS: torch.zeros(len(keys) * KV_HEADS, 1, PAGE, dtype=torch.bool)}
    decoding = Decoding(rows, len(keys), row, row + 1, masks, rows == 1)
    k, v = (
        pool.unflatten(0, (rows, num_pages)).transpose(1, 2).flatten(2, 3).contiguous()
        for pool in (keys, values)
    )
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: attend_pages(queries.flatten(1, 2), keys, values, decoding),
        "torch's": lambda: F.scaled_dot_product_attention(queries, k, v),
        "rounded": lambda: rounded(queries, k, v),
    }
    exact = F.scaled_dot_product_attention(queries.double(), k.double(), v.double()).flatten()
    size = exact.square().mean().sqrt()
    errors = {
        name: ((way().flatten().double() - exact).square().mean().sqrt() / size).item()
        for name, way in ways.items()
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(num_rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(1000 * (time.perf_counter() - started))
    cells = " | ".join(f"{errors[n]:.1e} {statistics.median(times[n]):.2f} ms" for n in ways)
    return f"{rows} x {context} | {head_dim} | {cells}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Attention of decoding rows in bfloat16.")
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print("rows x context | head_dim | ours | torch's | scores rounded")
    with torch.inference_mode():
        for case in CASES:
            print(compare(*case, options.rounds), flush=True)


if __name__ == "__main__":
    main()
