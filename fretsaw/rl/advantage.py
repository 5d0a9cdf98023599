"""From the rewards of a group of answers to the advantage of each."""

import torch
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

    The variance is computed in two passes, with m_i the mean of the others' rewards and
    k_i = (n - v_i) / (n - 1), which is 1 for a finished answer:

        s_i - b_i^2 = sum_{j != i} (r_j - m_i)^2 v_j / (n - 1) - k_i (k_i - 1) m_i^2

    What is no larger than the rounding of these sums, an advantage or a variance, counts as 0.

    Source: arXiv 2505.00949, section 5.1; GRPO: arXiv 2402.03300.
    """
    group_size = rewards.shape[1]
    valid = is_finished.to(rewards.dtype)
    num_valid = valid.sum(1, keepdim=True)
    others = valid[:, None, :] * (1 - torch.eye(group_size).to(rewards))
    num_others = others.sum(2)
    divisor = (num_valid - 1).clamp(min=1)
    sums = others @ rewards[:, :, None]
    mean = sums[:, :, 0] / num_others.clamp(min=1)
    rounding = group_size * torch.finfo(rewards.dtype).eps * rewards.abs().amax(1, keepdim=True)
    advantages = rewards - sums[:, :, 0] / divisor
    advantages = advantages.where(advantages.abs() > rounding, 0.0)
    if normalise:
        ratio = num_others / divisor
        squares = (others * (rewards[:, None, :] - mean[:, :, None]).square()).sum(2) / divisor
        excess = ratio * (ratio - 1) * mean.square()
        least = rounding.square() + rounding * excess.sqrt()
        variance = squares - excess
        advantages = advantages / variance.sqrt().where(variance > least, 1.0)
    is_flat = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return advantages.where((num_valid > 1) & ~is_flat, 0.0)
