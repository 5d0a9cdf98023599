"""How far a small change of a state moves the output, to second order, without running on from it.

With h the states after a subblock and d what a change adds to them,

    KL(parent || changed) of a row  =  1/2 E_y[(sum_t g_t . d_t)^2],   g_t = d log p(y) / d h_t,

where y are next tokens drawn from the parent's own distributions, independently at every position.
One backward pass of a draw gives g after *every* subblock, so a change then costs a dot product.
The relative error of a mean is about sqrt(2 / (rows x draws)). The further the output moves, the
less the estimate holds.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from fretsaw.checkpoint.shards import save_tensors
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Block, Decoder
from fretsaw.model.place import Place
from fretsaw.model.size import gradient_bytes
from fretsaw.puzzle.library.replay import Frontier
from fretsaw.stage.whole import replace_file
from fretsaw.training.settings import MAX_LOGITS

MAX_PART_BYTES = 512 << 20  # in memory as it is made, and on disk
STORED = torch.bfloat16  # as `gradient_bytes` counts them


class Sensitivity:
    """Rows of text with the parent's gradients after every subblock, read as they are needed."""

    def __init__(self, frontier: Frontier, folder: Path):
        self.frontier = frontier
        self._files = sorted(folder.glob("rows-*.safetensors"))
        self._at: Place | None = None
        self._gradients: Float[Tensor, "draws rows seq hidden"] = torch.empty(0)

    def kl(self, states: Float[Tensor, "rows seq hidden"], at: Place) -> Float[Tensor, " rows"]:
        """Return about how far the output moves where the parent's states before `at` are these.

        KL(parent || changed), nats a token.
        """
        change = states - self.frontier.later(at.number - self.frontier.at.number)
        moved = [(g.float() * change).sum((1, 2)) for g in self.gradients(at)]
        return torch.stack(moved).square().mean(0) / (2 * states.shape[1])

    def gradients(self, at: Place) -> Float[Tensor, "draws rows seq hidden"]:
        """Return d log p(y) / d h of every draw, h the parent's states before `at`, in bf16."""
        if self._at != at:
            read = [_read(path, at) for path in self._files]
            self._at, self._gradients = at, torch.cat(read, 1).to(self.frontier.states.device)
        return self._gradients


def write_gradients(
    parent: Decoder, token_ids: Int[Tensor, "rows seq"], draws: int, seed: int, folder: Path,
    step: Callable[[int], None] = lambda num_rows: None,
) -> None:  # fmt: skip
    """Write the gradients of all rows, part by part; `step` is told how many rows are done."""
    for first in parts(parent.config, token_ids.shape, draws):
        step(first)
        write_part(parent, token_ids, first, draws, seed, folder)


def parts(config: ModelConfig, shape: Sequence[int], draws: int) -> range:
    """Return the first rows of the parts in which a text of this shape (rows seq) is written."""
    num_rows, seq = shape
    return range(0, num_rows, max(1, int(MAX_PART_BYTES / gradient_bytes(config, seq, draws))))


def write_part(
    parent: Decoder, token_ids: Int[Tensor, "rows seq"], first: int, draws: int, seed: int,
    folder: Path,
) -> None:  # fmt: skip
    """Write the gradients of the part that begins at row `first`, unless it is there."""
    path = folder / f"rows-{first:06d}.safetensors"
    if path.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = token_ids[first : first + parts(parent.config, token_ids.shape, draws).step]
    drawn = [strata(rows.shape[1], draws, (seed, first + row)) for row in range(len(rows))]
    gradients = _gradients(parent, rows, torch.cat(drawn))
    with replace_file(path) as beside:
        save_tensors(gradients, beside)


@torch.inference_mode(False)
@torch.enable_grad()
def _gradients(
    parent: Decoder, token_ids: Int[Tensor, "rows seq"], drawn: Float[Tensor, "tokens draws"]
) -> dict[str, Float[Tensor, "draws rows seq hidden"]]:
    """Return the gradients after every subblock, by how many subblocks are before.

    Only one block's graph is held at a time: it is computed again from the state before it.
    """
    context = parent.context(1, token_ids.shape[1])
    blocks = [block for block in parent.model.layers if isinstance(block, Block)]
    with torch.no_grad():
        states = [parent.model.embed_tokens(token_ids)]
        for block in blocks:
            states.append(block(states[-1], context))
    final = states[-1].requires_grad_()
    normed = parent.model.norm(final)
    at_head = head_gradients(normed.detach().flatten(0, 1), parent.head_weight, drawn)
    (after,) = _pulled_back(normed, [final], at_head.unflatten(1, token_ids.shape))
    found = {str(2 * len(blocks)): after.to(STORED)}
    for number, block in reversed(list(enumerate(blocks))):
        before = states[number].detach().requires_grad_()
        between = block.attend(before, context)
        pulled = _pulled_back(block.feed(between), [between, before], after)
        found[str(2 * number + 1)] = pulled[0].to(STORED)
        after = pulled[1]
        found[str(2 * number)] = after.to(STORED)
    return found


def _pulled_back(
    output: Tensor, inputs: Sequence[Tensor], gradients: Float[Tensor, "draws rows seq hidden"]
) -> list[Float[Tensor, "draws rows seq hidden"]]:
    """Return the gradients at each of the inputs, draw by draw."""
    pulled = [torch.autograd.grad(output, inputs, one, retain_graph=True) for one in gradients]
    return [torch.stack(of_input) for of_input in zip(*pulled, strict=True)]


def strata(num_tokens: int, draws: int, seed: Sequence[int]) -> Float[Tensor, "tokens draws"]:
    """Return numbers in [0, 1) for every token, one in each of `draws` equal parts, shuffled."""
    draw = np.random.default_rng(seed)
    order = draw.random((num_tokens, draws)).argsort(1)
    return torch.from_numpy((order + draw.random((num_tokens, draws))) / draws).float()


@torch.no_grad()
def head_gradients(
    hidden: Float[Tensor, "tokens hidden"],
    head_weight: Float[Tensor, "vocab hidden"],
    drawn: Float[Tensor, "tokens draws"],
) -> Float[Tensor, "draws tokens hidden"]:
    """Return d log p(y) / d hidden = w_y - sum_v p_v w_v, p = softmax(W h).

    y is the token at which the cumulative p passes a number of `drawn`, which is in [0, 1).
    """
    chunks = []
    size = max(1, MAX_LOGITS // len(head_weight))
    for states, numbers in zip(hidden.split(size), drawn.split(size), strict=True):
        p = F.linear(states, head_weight).float().softmax(-1)
        below = p.cumsum(-1)
        y = torch.searchsorted(below, numbers.to(p.device) * below[:, -1:])
        mean = p.to(head_weight.dtype) @ head_weight
        drawn_rows = head_weight[y.clamp_max(len(head_weight) - 1)]
        chunks.append((drawn_rows - mean[:, None]).transpose(0, 1))
    return torch.cat(chunks, 1)


def _read(path: Path, at: Place) -> Float[Tensor, "draws rows seq hidden"]:
    with safe_open(path, framework="pt") as opened:
        return opened.get_tensor(str(at.number))
