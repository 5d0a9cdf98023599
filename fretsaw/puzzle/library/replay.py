"""Frontier replay: what replaces a subblock runs only from there on, from the parent's state.

The frontier is the parent's hidden state before one subblock, for all rows of a text. It walks
through the subblocks once; only the current one is in memory. The target, the parent's own
next-token log-probabilities, is kept where it is small and recomputed from the last state where
not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.model.attention import AttentionContext
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.kinds import Half
from fretsaw.model.place import HALVES, Place
from fretsaw.model.size import block_flops, head_flops
from fretsaw.training.losses import MAX_LOGITS, kl_from_log_probs

MAX_TARGET_BYTES = 1 << 30

Move = Callable[[Tensor, AttentionContext], Tensor]


def subblock(block: Block, half: Half) -> Move:
    """Return one half of a block as a function of state and context."""
    return block.attend if half == "attention" else lambda x, context: block.feed(x)


def subblocks(decoder: Decoder) -> list[Move]:
    """Return the 2 x layers subblocks, first layer's attention first."""
    blocks = [block for block in decoder.model.layers if isinstance(block, Block)]
    return [subblock(block, half) for block in blocks for half in HALVES]


class Frontier:
    """The hidden state of fixed rows of text before one subblock of the parent, the one `at`."""

    def __init__(self, parent: Decoder, token_ids: Int[Tensor, "rows seq"], batch_rows: int):
        self.parent, self.batch_rows, self.at = parent, batch_rows, Place(0)
        self.subblocks = subblocks(parent)
        self.context: AttentionContext = parent.context(1, token_ids.shape[1])
        self.states: Float[Tensor, "rows seq hidden"] = parent.model.embed_tokens(token_ids)
        self._ahead: list[Float[Tensor, "rows seq hidden"]] = []

    def batches(self) -> Iterator[Float[Tensor, "batch seq hidden"]]:
        """Yield the states in batches of rows."""
        yield from self.states.split(self.batch_rows)

    def after(
        self, moves: Sequence[Move], states: Float[Tensor, "rows seq hidden"] | None = None
    ) -> Float[Tensor, "rows seq hidden"]:
        """Return what these subblocks, of whatever model, make of the states here, or of others."""
        batches = []
        for x in (self.states if states is None else states).split(self.batch_rows):
            for move in moves:
                x = move(x, self.context)
            batches.append(x)
        return torch.cat(batches)

    def later(self, number: int) -> Float[Tensor, "rows seq hidden"]:
        """Return the parent's states after its next `number` subblocks; they are kept."""
        if number == 0:
            return self.states
        while len(self._ahead) < number:
            latest = self._ahead[-1] if self._ahead else self.states
            move = self.subblocks[self.at.number + len(self._ahead)]
            self._ahead.append(self.after([move], latest))
        return self._ahead[number - 1]

    def walk(self) -> None:
        """Go through the parent's next subblock."""
        self.states = self.later(1)
        self.at += 1
        del self._ahead[0]

    def walk_with(self, states: Float[Tensor, "rows seq hidden"]) -> None:
        """Go through the parent's next subblock, to states that were computed elsewhere."""
        self.states, self.at, self._ahead = states, self.at + 1, []

    def walk_to(self, at: Place) -> None:
        """Go on to before the subblock `at`."""
        while self.at < at:
            self.walk()


@dataclass(frozen=True)
class Figures:
    """How far a changed model is from its parent: the mean over the tokens of every row."""

    kl: Float[Tensor, " rows"]  # KL(parent || changed), nats
    lm_loss: Float[Tensor, " rows"]  # cross-entropy on the text, less the parent's, nats
    top1: Float[Tensor, " rows"]  # share of tokens whose likeliest successor is another

    def as_lists(self) -> dict[str, list[float]]:
        """Return plain numbers by name."""
        return {name: values.tolist() for name, values in vars(self).items()}


class Replay:
    """What is left of the parent in a model that is its own from some subblock on."""

    def __init__(self, parent: Decoder, windows: Int[Tensor, "rows seq_plus_1"], batch_rows: int):
        self.parent = parent
        self.token_ids, self.next_ids = windows[:, :-1], windows[:, 1:]
        self.frontier = Frontier(parent, self.token_ids, batch_rows)
        batches = self.token_ids.split(batch_rows)
        final = torch.cat([parent.hidden_states(rows) for rows in batches])
        num_bytes = final[..., 0].numel() * parent.config.vocab_size * 4
        self._keeps_log_probs = num_bytes <= MAX_TARGET_BYTES
        self._target: Float[Tensor, "rows seq vocab_or_hidden"] = final
        if self._keeps_log_probs:
            self._target = torch.cat([self._log_probs(rows) for rows in final.split(batch_rows)])

    def _log_probs(self, hidden: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens vocab"]:
        return F.linear(hidden, self.parent.head_weight).float().log_softmax(-1)

    @torch.inference_mode()
    def figures(self, states: Float[Tensor, "rows seq hidden"], at: Place) -> Figures:
        """Return how far a model is that has these states before subblock `at`, the parent's own
        subblocks from there on.
        """
        frontier = self.frontier
        parts = (t.split(frontier.batch_rows) for t in (states, self._target, self.next_ids))
        per_batch = []
        for x, target, text in zip(*parts, strict=True):
            for move in frontier.subblocks[at.number :]:
                x = move(x, frontier.context)
            per_batch.append(self._compare(target, self.parent.model.norm(x), text))
        return Figures(*(torch.cat(rows) for rows in zip(*per_batch, strict=True)))

    def kl(self, states: Float[Tensor, "rows seq hidden"], at: Place) -> Float[Tensor, " rows"]:
        """Return the KL alone, as `Sensitivity` estimates it."""
        return self.figures(states, at).kl

    def figures_of(self, decoder: Decoder) -> Figures:
        """Return how far a whole decoder is."""
        states = decoder.model.embed_tokens(self.token_ids)
        states = self.frontier.after(subblocks(decoder), states)
        return self.figures(states, Place(self.parent.config.num_hidden_layers))

    def _compare(self, target: Tensor, hidden: Tensor, text: Tensor) -> list[Tensor]:
        """Return the three figures of every row of a batch, a chunk of logits at a time."""
        size = max(1, MAX_LOGITS // self.parent.config.vocab_size)
        flat = (tensor.flatten(0, 1).split(size) for tensor in (target, hidden, text))
        per_token = []
        for wanted, chunk, next_ids in zip(*flat, strict=True):
            parent = wanted if self._keeps_log_probs else self._log_probs(wanted)
            child = self._log_probs(chunk)
            at = (torch.arange(len(next_ids)), next_ids)
            differs = (parent.argmax(-1) != child.argmax(-1)).float()
            kl = kl_from_log_probs(parent, child)
            per_token.append(torch.stack([kl, parent[at] - child[at], differs]))
        return list(torch.cat(per_token, 1).unflatten(1, text.shape).mean(2))


def flop_bound(config: ModelConfig, seq: int, candidates: Sequence[Place]) -> float:
    """Return how much replay can gain over full forwards, by FLOPs: sum(full) / sum(remaining).

    A candidate is counted at the parent's size on both sides; from an FFN the layer's attention
    need not run. The head runs on both sides.
    """
    blocks = [block_flops(config, block, context=seq / 2) for block in config.blocks]
    head = head_flops(config)
    full = sum(block.total for block in blocks) + head
    remaining = 0.0
    for at in candidates:
        first = blocks[at.layer].ffn if at.half == "ffn" else blocks[at.layer].total
        remaining += first + sum(block.total for block in blocks[at.layer + 1 :]) + head
    return full * len(candidates) / remaining
