"""Which FFN channels matter: three orders, all from one Gram matrix of the activations.

A channel k gives x_k w_k to the FFN's output, w_k being its column of `down_proj`. Every order is a
full ranking, so that every narrower FFN is a prefix of it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def contribution_order(
    mean_abs: Float[Tensor, " ffn"], weight: Float[Tensor, "hidden ffn"]
) -> Int[Tensor, " ffn"]:
    """Return the channels by their own contribution, mean |x_k| |w_k| (Puzzle, appendix A)."""
    return (mean_abs * weight.norm(dim=0)).argsort(descending=True, stable=True)


def iterative_order(
    gram: Float[Tensor, "ffn ffn"], weight: Float[Tensor, "hidden ffn"]
) -> Int[Tensor, " ffn"]:
    """Return the channels in the reverse of the order in which dropping each costs least.

    Dropping the set S changes the output by sum_{i,j in S} G_ij w_i'w_j in squared error, G = X'X.
    So the next to go is the i with the least  2 sum_{j in S} H_ij + H_ii,  H = G o (W'W).
    """
    together = gram.double() * (weight.mT @ weight).double()
    cost = together.diagonal().clone()
    dropped = []
    for _ in range(len(cost)):
        i = int(cost.argmin())
        dropped.append(i)
        cost += 2 * together[i]
        cost[i] = torch.inf
    return torch.tensor(dropped[::-1], device=gram.device)


def repaired_order(
    gram: Float[Tensor, "ffn ffn"], weight: Float[Tensor, "hidden ffn"], *, ridge: float = 1e-4
) -> Int[Tensor, " ffn"]:
    """Return the same order where the kept channels are refitted after every drop.

    With W refitted by least squares, dropping i costs |w_i|^2 / (G^-1)_ii, and the others take over
    w_i (G^-1)_i. / (G^-1)_ii: optimal brain surgery (Hassibi and Stork, 1992) on whole columns.
    """
    size = len(gram)
    eye = torch.eye(size, dtype=torch.float64, device=gram.device)
    gram = gram.double()
    scale = gram.diagonal().mean()
    if scale == 0:
        return torch.arange(size, device=gram.device)
    inverse = torch.linalg.inv(gram + ridge * scale * eye)
    weight = weight.double().clone()
    alive = torch.ones(size, dtype=torch.bool, device=gram.device)
    dropped = []
    for _ in range(size):
        cost = weight.square().sum(0) / inverse.diagonal()
        i = int(cost.where(alive, torch.inf).argmin())
        dropped.append(i)
        alive[i] = False
        pivot = inverse[i] / inverse[i, i]
        weight -= weight[:, i, None] * pivot
        inverse -= inverse[:, i, None] * pivot
        inverse[i, i] = 1.0  # of a channel that is gone; never read again
    return torch.tensor(dropped[::-1], device=gram.device)
