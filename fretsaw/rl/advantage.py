"""From the rewards of a group of answers to the advantage of each."""

from jaxtyping import Bool, Float64
from torch import Tensor


def group_advantages(
    rewards: Float64[Tensor, "groups group_size"],
    is_finished: Bool[Tensor, "groups group_size"],
    *,
    normalise: bool = True,
) -> Float64[Tensor, "groups group_size"]:
    """Return the advantages of GRPO as the Llama-Nemotron code computes them.

    With v_i = 1 where answer i ended by itself and n = sum_j v_j, over the others of the group:

        b_i = sum_{j != i} r_j v_j / (n - 1)        A_i = r_i - b_i
        s_i = sum_{j != i} r_j^2 v_j / (n - 1)      std_i = sqrt(s_i - b_i^2)

    With `normalise` A_i is divided by std_i where that is a positive number, and left as it is
    elsewhere. The divisor is n - 1 for truncated answers too, so theirs is no mean. A group with at
    most one finished answer, and one whose rewards are all equal, has advantages of exactly 0.

    Source: arXiv 2505.00949, section 5.1; GRPO: arXiv 2402.03300.
    """
    valid = is_finished.to(rewards.dtype)
    num_valid = valid.sum(1, keepdim=True)
    others = (num_valid - 1).clamp(min=1)
    weighted, squared = rewards * valid, rewards.square() * valid
    baseline = (weighted.sum(1, keepdim=True) - weighted) / others
    advantages = rewards - baseline
    if normalise:
        variance = (squared.sum(1, keepdim=True) - squared) / others - baseline.square()
        std = variance.clamp(min=0).sqrt()
        advantages = advantages / std.where(std > 0, 1.0)
    is_flat = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return advantages.where((num_valid > 1) & ~is_flat, 0.0)
