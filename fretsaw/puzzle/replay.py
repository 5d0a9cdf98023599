"""Frontier replay: a candidate for layer i runs only layers i..L, from the parent's state at i.

The frontier is the parent's hidden state at one place, for all scoring tokens. It walks through the
layers once; only the current one is in memory. The target, the parent's own next-token
log-probabilities, is kept where it is small and recomputed from the last hidden state where not.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.model.attention import AttentionContext
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.size import block_flops, head_flops
from fretsaw.training.losses import MAX_LOGITS, kl_from_log_probs

MAX_TARGET_BYTES = 1 << 30


class Replay:
    """The parent's frontier over fixed rows of text, and the KL of what replaces a subblock."""

    def __init__(
        self, parent: Decoder, token_ids: Int[Tensor, "rows seq"], batch_rows: int, *, score: bool
    ):
        self.parent, self.batch_rows = parent, batch_rows
        self.context: AttentionContext = parent.context(1, token_ids.shape[1])
        self.frontier: Float[Tensor, "rows seq hidden"] = parent.model.embed_tokens(token_ids)
        self.target: Float[Tensor, "rows seq vocab_or_hidden"] | None = None
        if score:
            final = torch.cat([parent.hidden_states(rows) for rows in token_ids.split(batch_rows)])
            vocab = parent.config.vocab_size
            self._keeps_log_probs = final[..., 0].numel() * vocab * 4 <= MAX_TARGET_BYTES
            if self._keeps_log_probs:
                batches = final.split(batch_rows)
                self.target = torch.cat([self._log_probs(batch) for batch in batches])
            else:
                self.target = final

    def _log_probs(self, hidden: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens vocab"]:
        return F.linear(hidden, self.parent.head_weight).float().log_softmax(-1)

    def advance(self, move: Callable[[Tensor], Tensor]) -> None:
        """Carry the frontier through one of the parent's subblocks."""
        for at in range(0, len(self.frontier), self.batch_rows):
            rows = slice(at, at + self.batch_rows)
            self.frontier[rows] = move(self.frontier[rows])

    def batches(self) -> Iterator[Float[Tensor, "batch seq hidden"]]:
        """Yield the frontier in batches of rows."""
        yield from self.frontier.split(self.batch_rows)

    @torch.inference_mode()
    def kl(self, replaced: Callable[[Tensor], Tensor], layer: int, *, after: str) -> Tensor:
        """Return KL(parent || child) of every row, in nats a token, with one subblock replaced.

        `replaced` runs the candidate from the frontier; with `after` "attention" the parent's FFN
        of the layer follows, with "ffn" nothing of it does; then the parent's later layers.
        """
        assert self.target is not None, "this replay was not made for scoring"
        later = self.parent.model.layers[layer + 1 :]
        block = self.parent.model.layers[layer]
        assert isinstance(block, Block)
        per_row = []
        targets = self.target.split(self.batch_rows)
        for rows, target in zip(self.batches(), targets, strict=True):
            x = replaced(rows)
            if after == "attention":
                x = block.feed(x)
            for following in later:
                x = following(x, self.context)
            per_row.append(self._kl_of_rows(target, self.parent.model.norm(x)))
        return torch.cat(per_row)

    def _kl_of_rows(self, target: Tensor, hidden: Tensor) -> Float[Tensor, " rows"]:
        flat_target, flat_hidden = target.flatten(0, 1), hidden.flatten(0, 1)
        size = max(1, MAX_LOGITS // self.parent.config.vocab_size)
        per_token = []
        for chunk, wanted in zip(flat_hidden.split(size), flat_target.split(size), strict=True):
            teacher = wanted if self._keeps_log_probs else self._log_probs(wanted)
            per_token.append(kl_from_log_probs(teacher, self._log_probs(chunk)))
        return torch.cat(per_token).view(hidden.shape[:2]).mean(1)


def flop_bound(config: ModelConfig, seq: int, candidates: list[tuple[int, str]]) -> float:
    """Return how much replay can gain over full forwards, by FLOPs: sum(full) / sum(remaining).

    A candidate is (layer, "attention" or "ffn"), counted at the parent's size on both sides; from
    an FFN the layer's attention need not run. The head runs on both sides.
    """
    blocks = [block_flops(config, block, context=seq / 2) for block in config.blocks]
    head = head_flops(config)
    full = sum(block.total for block in blocks) + head
    remaining = 0.0
    for layer, kind in candidates:
        first = blocks[layer].ffn if kind == "ffn" else blocks[layer].total
        remaining += first + sum(block.total for block in blocks[layer + 1 :]) + head
    return full * len(candidates) / remaining
