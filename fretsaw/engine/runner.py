"""One step of the network over everything scheduled: decoding rows and pieces of prompts together.

The tokens of all sequences lie end to end, decoding rows first; only attention tells them apart.
A decoding row attends to pages where they are: every page gives its own softmax and weighted
values, and a row's pages are joined by a softmax over them (as in flash-decoding), so no keys or
values are ever gathered. A prompt's piece gathers its own pages and uses the usual kernel.

What a row may not see is left out, never outweighed: numbers of others may be NaN. A page of nobody
here is joined to nothing, scores behind a text's end are replaced, and values there are zeros (see
`Move`). In any precision scores, softmax and sums are of float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fretsaw.engine.pages import Move
from fretsaw.engine.sequence import Slice
from fretsaw.engine.weights import AttentionWeights, FfnWeights, PointwiseWeights, Weights
from fretsaw.model.decoder import Decoder
from fretsaw.model.rope import rope_inv_freq

MASKED = -1e30  # finite: a page masked as a whole must not give NaN
DTYPES = (torch.float32, torch.bfloat16)
CAST_BYTES = 2**20  # of the pages that are cast to float32 at a time: what stays in a cache


@dataclass(frozen=True)
class PromptPiece:
    """Consecutive tokens of one prompt."""

    first: int  # its first token among all of the step
    length: int
    start: int  # its position in the sequence
    pages: Int[Tensor, " pages"]


@dataclass(frozen=True)
class Decoding:
    """How decoding rows find their pages in the low range of memory."""

    num_rows: int
    span: int
    reader: Int[Tensor, " span"]  # the row that attends to a page; 0 for pages of nobody here
    part_of: Int[Tensor, " span"]  # the row that the result is part of, from 1; 0 for nobody's
    masks: Mapping[int, Bool[Tensor, "span_x_kv_heads 1 page_size"]]  # by kv_heads: no token there
    is_alone: bool  # there is one row, and every page is its own


@dataclass(frozen=True)
class Step:
    """What one forward computes, as tensors."""

    num_tokens: int  # what comes after them is padding
    token_ids: Int[Tensor, " tokens"]
    rotation: Tensor  # complex: tokens 1 half_head_dim
    page: Int[Tensor, " tokens"]  # where its keys and values go
    offset: Int[Tensor, " tokens"]
    decoding: Decoding | None
    pieces: tuple[PromptPiece, ...]


class Runner:
    """The weights laid out for decoding, and the key-value memory of every layer that attends."""

    def __init__(self, decoder: Decoder, num_pages: int, page_size: int, weights: Weights):
        self.config, self.page_size, self.weights = decoder.config, page_size, weights
        self.device, self.dtype = decoder.device, decoder.model.embed_tokens.weight.dtype
        if self.dtype not in DTYPES:
            raise ValueError(
                f"engine: weights are {self.dtype}, whose range is too small for masked scores; "
                "use float32 or bfloat16"
            )
        self._inv_freq = rope_inv_freq(self.config).to(self.device)
        self._eps = torch.tensor(self.config.rms_norm_eps, device=self.device)
        self._kv_heads = {b.num_key_value_heads for b in self.config.blocks} - {0}
        head_dim = self.config.head_dim
        shapes = [
            (num_pages, block.num_key_value_heads, page_size, head_dim)
            for block in self.config.blocks
        ]
        self.keys = [_zeros(shape, self.dtype, self.device) for shape in shapes]
        self.values = [_zeros(shape, self.dtype, self.device) for shape in shapes]

    def move(self, moves: Sequence[Move]) -> None:
        """Copy and clear pages, in order. Keys need no clearing: their scores are replaced."""
        attending = [i for i, keys in enumerate(self.keys) if keys.shape[1]]
        for clears, group in groupby(moves, key=lambda move: not move.num_tokens):
            if clears:
                cleared = torch.tensor([move.destination for move in group], device=self.device)
                for i in attending:
                    self.values[i].index_fill_(0, cleared, 0)
                continue
            for source, destination, num_tokens in group:
                for i in attending:
                    for pool in (self.keys[i], self.values[i]):
                        pool[destination, :, :num_tokens] = pool[source, :, :num_tokens]
                    if num_tokens < self.page_size:
                        self.values[i][destination, :, num_tokens:] = 0

    # --- from what is scheduled to tensors --------------------------------------------------------

    def lay_out(self, slices: Sequence[Slice], span: int, *, padded_to: int = 0) -> Step:
        """Return the tensors of a step; slices of one token that end a sequence come first.

        With `padded_to` there are that many tokens whatever is scheduled, and every sequence
        attends by itself: its numbers then do not depend on what else is in the batch.
        """
        token_ids: list[int] = []
        positions: list[int] = []
        pages: list[int] = []
        pieces: list[PromptPiece] = []
        num_rows = 0
        for slice in slices:
            sequence, end = slice.sequence, slice.start + slice.length
            if slice.length == 1 and slice.start and not pieces and not padded_to:
                num_rows += 1
                token_ids.append(sequence.token_ids[slice.start])
                positions.append(slice.start)
                pages.append(sequence.pages[slice.start // self.page_size])
                continue
            held = torch.tensor(sequence.pages[: -(-end // self.page_size)], device=self.device)
            pieces.append(PromptPiece(len(token_ids), slice.length, slice.start, held))
            token_ids += sequence.token_ids[slice.start : end]
            positions += range(slice.start, end)
            pages += [sequence.pages[at // self.page_size] for at in range(slice.start, end)]
        num_tokens = len(token_ids)
        for column in (token_ids, positions, pages):
            column += [0] * (padded_to - num_tokens)
        at = torch.tensor([token_ids, positions, pages], device=self.device)
        return Step(
            num_tokens=num_tokens,
            token_ids=at[0],
            rotation=self._rotation(at[1]),
            page=at[2],
            offset=at[1] % self.page_size,
            decoding=self._decoding(slices[:num_rows], span) if num_rows else None,
            pieces=tuple(pieces),
        )

    def _rotation(self, positions: Int[Tensor, " tokens"]) -> Tensor:
        angles = positions[:, None].float() * self._inv_freq
        return torch.polar(torch.ones_like(angles), angles)[:, None]

    def _decoding(self, slices: Sequence[Slice], span: int) -> Decoding:
        size = self.page_size
        part_of = np.zeros(span, dtype=np.int64)
        filled = np.zeros(span, dtype=np.int64)
        for row, slice in enumerate(slices):
            pages = slice.sequence.pages[: slice.start // size + 1]
            part_of[pages] = row + 1
            filled[pages] = size
            filled[pages[-1]] = slice.start + 1 - (len(pages) - 1) * size
        masked = torch.from_numpy(np.arange(size) >= filled[:, None]).to(self.device)[:, None]
        return Decoding(
            num_rows=len(slices),
            span=span,
            reader=torch.from_numpy(np.maximum(part_of - 1, 0)).to(self.device),
            part_of=torch.from_numpy(part_of).to(self.device),
            masks={heads: masked.repeat_interleave(heads, 0) for heads in self._kv_heads},
            is_alone=len(slices) == 1 and bool(part_of.all()),
        )

    # --- the network ------------------------------------------------------------------------------

    def hidden(self, step: Step) -> Float[Tensor, "tokens hidden"]:
        """Run all layers; keys and values are written on the way. The final norm is not applied."""
        x = F.embedding(step.token_ids, self.weights.embed)
        eps = self._eps
        for i, (attention, ffn) in enumerate(
            zip(self.weights.attention, self.weights.ffn, strict=True)
        ):
            match attention:
                case AttentionWeights(norm, qkv, out):
                    x = out.add_to(x, self._attend(i, qkv(rms_norm(x, norm, eps)), step))
                case PointwiseWeights(norm, entering, out):
                    x = out.add_to(x, entering(rms_norm(x, norm, eps), None))
            match ffn:
                case FfnWeights(norm, gate_up, down):
                    gate, up = gate_up(rms_norm(x, norm, eps)).chunk(2, -1)
                    x = down.add_to(x, F.silu(gate).mul_(up))
                case PointwiseWeights(norm, entering, out):
                    x = out.add_to(x, entering(rms_norm(x, norm, eps), None))
        return x

    def logits(self, hidden: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows vocab"]:
        """Apply the final norm and the head."""
        normed = rms_norm(hidden, self.weights.norm, self._eps)
        return self.weights.head(normed)

    def _attend(
        self, i: int, qkv: Float[Tensor, "tokens qkv"], step: Step
    ) -> Float[Tensor, "tokens heads_x_head_dim"]:
        num_heads = self.config.num_attention_heads
        kv_heads = self.config.blocks[i].num_key_value_heads
        head_dim = self.config.head_dim
        qkv = qkv.view(len(qkv), num_heads + 2 * kv_heads, head_dim)
        turned = rotate_pairs(qkv[:, : num_heads + kv_heads], step.rotation)
        queries, keys = turned[:, :num_heads], turned[:, num_heads:]
        values = qkv[:, num_heads + kv_heads :]
        real, at = step.num_tokens, (step.page[: step.num_tokens], step.offset[: step.num_tokens])
        self.keys[i][at[0], :, at[1]] = keys[:real]
        self.values[i][at[0], :, at[1]] = values[:real]
        parts = []
        if step.decoding is not None:
            own = queries[: step.decoding.num_rows]
            parts.append(attend_pages(own, self.keys[i], self.values[i], step.decoding))
        for piece in step.pieces:
            mine = slice(piece.first, piece.first + piece.length)
            if piece.start:
                seen = piece.start + piece.length
                k, v = (gather(pool[i], piece.pages, seen) for pool in (self.keys, self.values))
            else:
                k, v = keys[mine].transpose(0, 1), values[mine].transpose(0, 1)
            parts.append(attend_piece(queries[mine].transpose(0, 1), k, v))
        if len(qkv) > real:
            parts.append(qkv.new_zeros(len(qkv) - real, num_heads * head_dim))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def rms_norm(
    x: Float[Tensor, "tokens hidden"], weight: Float[Tensor, " hidden"], eps: Float[Tensor, ""]
) -> Float[Tensor, "tokens hidden"]:
    """Return x over its root mean square, times the weight; computed in float32."""
    wide = x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = torch.addcmul(eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()
    return (wide * scale).to(x.dtype) * weight


def rotate_pairs(
    x: Float[Tensor, "tokens heads head_dim"], rotation: Tensor
) -> Float[Tensor, "tokens heads head_dim"]:
    """Rotate queries and keys, given as complex numbers of unit length for every token and pair.

    The result has the halves interleaved; scores do not depend on the order, as long as queries
    and keys share it.
    """
    first, second = x.float().chunk(2, -1)
    turned = torch.view_as_real(torch.complex(first, second) * rotation)
    return turned.flatten(-2).to(x.dtype)


def attend_pages(
    queries: Float[Tensor, "rows heads head_dim"],
    keys: Float[Tensor, "pages kv_heads page_size head_dim"],
    values: Float[Tensor, "pages kv_heads page_size head_dim"],
    decoding: Decoding,
) -> Float[Tensor, "rows heads_x_head_dim"]:
    """Attend with one token a row to pages that lie anywhere in the first `span`."""
    span, (_, kv_heads, size, head_dim) = decoding.span, keys.shape
    num_rows, num_heads, _ = queries.shape
    group, scale = num_heads // kv_heads, head_dim**-0.5
    by_page = queries.view(num_rows, kv_heads, group, head_dim)
    by_page = by_page.expand(span, -1, -1, -1) if num_rows == 1 else by_page[decoding.reader]
    by_page = by_page.reshape(span * kv_heads, group, head_dim)
    k = keys[:span].reshape(span * kv_heads, size, head_dim)  # views: a range of whole pages
    v = values[:span].reshape(span * kv_heads, size, head_dim)
    scores = products(by_page, k.mT).mul_(scale).masked_fill_(decoding.masks[kv_heads], MASKED)
    if decoding.is_alone:
        joined = scores.view(span, num_heads, size).transpose(0, 1).reshape(num_heads, span * size)
        weights = joined.softmax(-1).view(num_heads, span, size).transpose(0, 1)
        mixed = products(weights.reshape(span * kv_heads, group, size), v)
        return mixed.view(span, -1).sum(0, keepdim=True).to(queries.dtype)
    # Every page by itself first, then the pages of a row are joined: a softmax reduced by row.
    part_of = decoding.part_of
    page_max = scores.amax(-1, keepdim=True)
    exponents = scores.sub_(page_max).exp_()
    page_sum, page_max = (x.view(span, num_heads) for x in (exponents.sum(-1), page_max))
    mixed = products(exponents, v).view(span, num_heads, head_dim)
    row_max = page_max.new_full((1 + num_rows, num_heads), -torch.inf)
    row_max.scatter_reduce_(0, part_of[:, None].expand(span, num_heads), page_max, "amax")
    weights = (page_max - row_max[part_of]).exp_()
    total = weights.new_zeros(1 + num_rows, num_heads)
    total.index_add_(0, part_of, page_sum * weights)
    joined = weights.new_zeros(1 + num_rows, num_heads, head_dim)
    joined.index_add_(0, part_of, mixed.mul_(weights[..., None]))
    # A row of padding owns no page; its numbers must be finite.
    joined = joined[1:] / total[1:].clamp(min=1e-30)[..., None]
    return joined.flatten(1).to(queries.dtype)


def products(
    a: Float[Tensor, "number rows inner"], b: Float[Tensor, "number inner columns"]
) -> Float[Tensor, "number rows columns"]:
    """Return a b in float32, whatever the precision of `b` and what of it the device multiplies in.

    A CPU has no product of bfloat16 that is not rounded to it, so there `b` is cast in pieces.
    """
    if b.dtype == torch.float32:
        return torch.bmm(a, b)
    if b.device.type != "cpu":
        return torch.bmm(a.to(b.dtype), b, out_dtype=torch.float32)
    product = a.new_empty(len(a), a.shape[1], b.shape[2], dtype=torch.float32)
    length = max(1, CAST_BYTES // (4 * b.shape[1] * b.shape[2]))
    for first in range(0, len(a), length):
        piece = slice(first, first + length)
        torch.bmm(a[piece].float(), b[piece].float(), out=product[piece])
    return product


def attend_piece(
    queries: Float[Tensor, "heads length head_dim"],
    keys: Float[Tensor, "kv_heads seen head_dim"],
    values: Float[Tensor, "kv_heads seen head_dim"],
) -> Float[Tensor, "length heads_x_head_dim"]:
    """Attend with the last `length` tokens of those seen, each to all up to itself."""
    length, seen = queries.shape[1], keys.shape[1]
    mask = None
    if length < seen:
        mask = torch.ones(length, seen, dtype=torch.bool, device=keys.device).tril(seen - length)
    mixed = F.scaled_dot_product_attention(
        queries[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=len(queries) != len(keys),
    )
    return mixed[0].transpose(0, 1).flatten(1)


def gather(
    pool: Float[Tensor, "pages kv_heads page_size head_dim"],
    pages: Int[Tensor, " own_pages"],
    seen: int,
) -> Float[Tensor, "kv_heads seen head_dim"]:
    """Return one sequence's keys or values, in order."""
    return pool[pages].transpose(0, 1).flatten(1, 2)[:, :seen]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros; on a CPU their memory is taken up only as it is written to."""
    if device.type != "cpu" or not shape[1]:
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)
