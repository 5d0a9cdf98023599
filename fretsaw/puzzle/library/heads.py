"""Key-value heads made alike before they are averaged, without a change of the parent's function.

The order of the key-value heads is free (queries and output columns move along), and so is the
basis of each head's values: V -> V R with O -> O R for any rotation R. Of its keys every rotary
pair of dimensions may be turned by an angle, if the queries turn too, since rotary embeddings
commute with it. So heads that will be pooled are first brought together, each turned onto its
neighbours: their mean then says more than the mean of unlike bases.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Gram = Float[Tensor, "kv_heads head_dim kv_heads head_dim"]


@dataclass(frozen=True)
class HeadAlignment:
    """How key-value heads are turned and ordered; `order` holds the old places."""

    order: Int[Tensor, " kv_heads"]
    turn_values: Float[Tensor, "kv_heads head_dim head_dim"]  # by old place: V -> V R
    turn_keys: Float[Tensor, "kv_heads head_dim head_dim"]


def align_heads(keys: Gram, values: Gram) -> HeadAlignment:
    """Return the turns and the order that make neighbours alike, from K'K and V'V (keys unrotated).

    Heads are joined in groups of the number's smallest prime factor, then the groups in groups, so
    that means over 2, 4, 8, ... neighbours are all of like heads. At every level the most alike go
    first; unlikeness is the share of the heads' energy that is left after turning.
    """
    num_heads, head_dim = values.shape[:2]
    eye = torch.eye(head_dim, dtype=torch.float64, device=values.device)
    turn_keys, turn_values = (eye.repeat(num_heads, 1, 1) for _ in range(2))
    groups = [[h] for h in range(num_heads)]
    while len(groups) > 1:
        size = next(p for p in range(2, len(groups) + 1) if len(groups) % p == 0)
        # Of a group its mean counts: Gram matrices of means of turned heads.
        of_keys = _of_means(keys.double(), turn_keys, groups)
        of_values = _of_means(values.double(), turn_values, groups)
        merged = []
        for members in _partition(of_keys, of_values, size):
            first, *others = members
            for other in others:
                heads = groups[other]
                turn_keys[heads] @= _turn_keys(of_keys[other, :, first])
                turn_values[heads] @= _turn(of_values[other, :, first])
            merged.append([h for g in members for h in groups[g]])
        groups = merged
    order = torch.tensor(groups[0], device=values.device)
    return HeadAlignment(order, turn_values, turn_keys)


def _of_means(
    gram: Gram, turn: Float[Tensor, "kv_heads head_dim head_dim"], groups: list[list[int]]
) -> Float[Tensor, "groups head_dim groups head_dim"]:
    turned = torch.einsum("hij,hiak,akl->hjal", turn, gram, turn)
    rows = torch.stack([turned[group].mean(0) for group in groups])
    return torch.stack([rows[:, :, group].mean(2) for group in groups], 2)


def _partition(keys: Gram, values: Gram, size: int) -> list[list[int]]:
    """Return groups of `size`, greedily: the most alike pair, then who is most like them."""
    unlike = _unlikeness(keys, _turn_keys) + _unlikeness(values, _turn)
    free = list(range(len(unlike)))
    groups = []
    while free:
        pairs = [(unlike[a, b].item(), a, b) for a in free for b in free if a < b]
        group = list(min(pairs)[1:])
        while len(group) < size:
            others = [h for h in free if h not in group]
            group.append(min(others, key=lambda h: unlike[h, group].sum().item()))
        free = [h for h in free if h not in group]
        groups.append(group)
    return groups


def _unlikeness(gram: Gram, turn: Callable[[Tensor], Tensor]) -> Float[Tensor, "heads heads"]:
    """Return |A - B R|^2 / (|A|^2 + |B|^2) of every two heads, with the best turn R of B."""
    heads = range(len(gram))
    energy = torch.stack([gram[h, :, h].trace() for h in heads])
    shared = torch.tensor(
        [[(turn(gram[b, :, a]) * gram[b, :, a]).sum() for b in heads] for a in heads],
        dtype=gram.dtype,
        device=gram.device,
    )
    total = energy[:, None] + energy
    return 1 - 2 * shared / total.clamp_min(torch.finfo(gram.dtype).tiny)


def _turn(cross: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Return the rotation R of least |A - B R|, from B'A (orthogonal Procrustes)."""
    u, _, vh = torch.linalg.svd(cross)
    return u @ vh


def _turn_keys(cross: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Return the same among turns of the rotary pairs (j, j + d/2), each by an angle of its own."""
    half = len(cross) // 2
    a, b, c, d = (
        cross[:half, :half].diagonal(),
        cross[:half, half:].diagonal(),
        cross[half:, :half].diagonal(),
        cross[half:, half:].diagonal(),
    )
    angle = torch.atan2(b - c, a + d)
    cos, sin = angle.cos().diag(), angle.sin().diag()
    return torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)])
