"""Decoding rows' attention: as exact as torch's own, and blind to all that is not the row's."""

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fretsaw.engine.runner import Decoding, attend_pages

PAGE, KV_HEADS, GROUP, HEAD_DIM = 32, 2, 4, 64
Pool = Float[Tensor, "pages kv_heads page_size head_dim"]


def pages_of(lengths: list[int], num_pages: int) -> list[list[int]]:
    """Return the pages of every row, in no order, with pages of nobody between them."""
    drawn = torch.randperm(num_pages, generator=torch.Generator().manual_seed(1)).tolist()
    return [[drawn.pop() for _ in range(-(-length // PAGE))] for length in lengths]


def decoding_of(lengths: list[int], pages: list[list[int]], span: int) -> Decoding:
    part_of = torch.zeros(span, dtype=torch.long)
    mask = torch.ones(span, PAGE, dtype=torch.bool)
    for row, (length, own) in enumerate(zip(lengths, pages, strict=True)):
        for number, page in enumerate(own):
            part_of[page] = row + 1
            mask[page, : min(PAGE, length - number * PAGE)] = False
    return Decoding(
        num_rows=len(lengths),
        span=span,
        reader=(part_of - 1).clamp(min=0),
        part_of=part_of,
        masks={KV_HEADS: mask[:, None].repeat_interleave(KV_HEADS, 0)},
        is_alone=len(lengths) == 1 and bool(part_of.all()),
    )


def pool_of(lengths: list[int], pages: list[list[int]], num_pages: int) -> tuple[Pool, Pool]:
    """Return keys and values of large scores; what no row may see is NaN, but for zeros behind."""
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.full((2, num_pages, KV_HEADS, PAGE, HEAD_DIM), torch.nan)
    for length, own in zip(lengths, pages, strict=True):
        for number, page in enumerate(own):
            seen = min(PAGE, length - number * PAGE)
            shape = (2, KV_HEADS, seen, HEAD_DIM)
            keys[page, :, :seen], values[page, :, :seen] = torch.randn(shape, generator=generator)
            values[page, :, seen:] = 0  # as `Move` leaves them; the keys are NaN there
    return 2 * keys, values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "lengths", [[512], [2048], [8192], [7], [33, 512, 1], [2048, 31, 700], [8192, 64]]
)
def test_it_is_no_further_from_float64_than_torchs_own(
    lengths: list[int], dtype: torch.dtype
) -> None:
    """At most 1.5 times the library's distance: both round the result once, sums differ in order.

    In float32, whose rounding is far below any logit's, within 1e-5 where that is more.
    """
    num_own = sum(-(-length // PAGE) for length in lengths)
    for num_others in (0, 5):
        num_pages = num_own + num_others
        pages = pages_of(lengths, num_pages)
        keys, values = (pool.to(dtype) for pool in pool_of(lengths, pages, num_pages))
        shape = (len(lengths), KV_HEADS * GROUP, HEAD_DIM)
        queries = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(2))
        queries = queries.to(dtype)
        found = attend_pages(queries, keys, values, decoding_of(lengths, pages, num_pages))
        for row, (length, own) in enumerate(zip(lengths, pages, strict=True)):
            query = queries[row, None, :, None]
            k, v = (
                pool[own].transpose(0, 1).flatten(1, 2)[None, :, :length] for pool in (keys, values)
            )
            exact = attend(query.double(), k.double(), v.double())
            ours = (found[row].double() - exact).abs()
            theirs = (attend(query, k, v).double() - exact).abs()
            least = 1e-5 if dtype == torch.float32 else 0
            assert ours.square().mean().sqrt() <= max(1.5 * theirs.square().mean().sqrt(), least)
            assert ours.max() <= max(1.5 * theirs.max(), least)


def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, keys, values, enable_gqa=True).flatten()
