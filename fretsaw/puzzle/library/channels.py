"""Which FFN channels matter: three orders, all from one Gram matrix of the activations.

A channel k gives x_k w_k to the FFN's output, w_k being its column of `down_proj`. Every order is a
full ranking, so that every narrower FFN is a prefix of it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64  # updates that are applied together


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

    With W refitted by least squares and A = G^-1, dropping i costs |w_i|^2 / A_ii, and the others
    take over w_i A_i. / A_ii: optimal brain surgery (Hassibi and Stork, 1992) on whole columns.
    That is a rank-one update of A, and of C = W'W a rank-two one:

        A <- A - q q',  q = A_i. / sqrt(A_ii);      C <- C - p v' - v p',  p = A_i. / A_ii,
                                                                          v = C_i. - C_ii p / 2

    The next choice needs the two diagonals alone, and one row of each matrix. So `BLOCK` updates
    are kept as factors, then applied as one product, and what is gone is left out.
    """
    gram = gram.double()
    scale = gram.diagonal().mean()
    alive = torch.arange(len(gram), device=gram.device)
    if scale == 0:
        return alive
    inverse = torch.linalg.inv(gram + ridge * scale * torch.eye(len(gram)).to(gram))
    products = weight.double().mT @ weight.double()
    dropped = []
    while len(alive):
        gone = _drop_block(inverse, products, min(BLOCK, len(alive)))
        dropped.append(alive[gone])
        kept = torch.ones(len(alive), dtype=torch.bool, device=gram.device)
        kept[gone] = False
        alive, inverse, products = (
            alive[kept],
            *(matrix[kept][:, kept] for matrix in (inverse, products)),
        )
    return torch.cat(dropped).flip(0)


def _drop_block(
    inverse: Float[Tensor, "left left"], products: Float[Tensor, "left left"], num_dropped: int
) -> Int[Tensor, " dropped"]:
    """Return the next channels to go, in order; both matrices are updated in place."""
    q, p, v = inverse.new_empty(3, num_dropped, len(inverse))
    inverse_diagonal, norms = inverse.diagonal().clone(), products.diagonal().clone()
    gone = []
    for done in range(num_dropped):
        i = int((norms / inverse_diagonal).argmin())
        gone.append(i)
        before = slice(done)
        row = inverse[i] - q[before, i] @ q[before]
        crossed = products[i] - p[before, i] @ v[before] - v[before, i] @ p[before]
        p[done] = row / row[i]
        q[done] = row / row[i].sqrt()
        v[done] = crossed - crossed[i] / 2 * p[done]
        inverse_diagonal -= q[done].square()
        norms -= 2 * p[done] * v[done]
        inverse_diagonal[i], norms[i] = 1.0, torch.inf  # gone: never again the least
    inverse -= q.mT @ q
    products -= p.mT @ v + v.mT @ p
    return torch.tensor(gone, device=inverse.device)
