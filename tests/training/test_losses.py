"""Losses against numbers worked by hand, and chunked against whole."""

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fretsaw.training import losses

HEAD = torch.eye(2)


def test_cross_entropy_of_two_words_by_hand() -> None:
    # logits (ln 3, 0) -> probabilities 3/4, 1/4; target 0 costs ln(4/3), target 1 costs ln 4
    hidden = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    total = losses.cross_entropy(hidden, HEAD, torch.tensor([0, 1]))
    assert math.isclose(total.item(), math.log(4 / 3) + math.log(4), rel_tol=1e-6)


def test_kl_of_two_words_by_hand() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2)
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    total = losses.kl_divergence(teacher, HEAD, student, HEAD)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert math.isclose(total.item(), expected, rel_tol=1e-6)


def test_kl_of_a_model_from_itself_is_exactly_zero() -> None:
    hidden, head = torch.randn(50, 8), torch.randn(30, 8)
    assert losses.kl_divergence(hidden, head, hidden, head).item() == 0.0


def test_cosine_distance_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    b = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    assert math.isclose(losses.cosine_distance(a, b).item(), 1 + 2 + 0, abs_tol=1e-6)


def test_chunks_give_the_same_loss_and_gradient(monkeypatch) -> None:
    hidden = torch.randn(37, 8, dtype=torch.float64)
    head = torch.randn(30, 8, dtype=torch.float64)
    teacher = torch.randn(37, 8, dtype=torch.float64)
    targets = torch.randint(30, (37,))

    def both() -> list[torch.Tensor]:
        x = hidden.clone().requires_grad_()
        weight = head.clone().requires_grad_()
        loss = losses.cross_entropy(x, weight, targets)
        loss = loss + losses.kl_divergence(teacher, head, x, weight)
        loss.backward()
        assert x.grad is not None
        assert weight.grad is not None
        return [loss.detach(), x.grad, weight.grad]

    whole = both()
    monkeypatch.setattr(losses, "MAX_LOGITS", 30 * 5)
    for a, b in zip(whole, both(), strict=True):
        # The logits are cast to float32 before the softmax, so agreement ends there.
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_no_more_than_a_chunk_of_logits_is_held(monkeypatch) -> None:
    """Neither the forward nor the backward of many tokens keeps or makes a larger tensor."""
    num_tokens, vocab_size, per_chunk = 64, 1000, 16
    hidden = torch.randn(num_tokens, 8, requires_grad=True)
    head = torch.randn(vocab_size, 8, requires_grad=True)
    targets = torch.randint(vocab_size, (num_tokens,))
    monkeypatch.setattr(losses, "MAX_LOGITS", vocab_size * per_chunk)
    with TorchDispatchSizes() as sizes:
        losses.token_logprobs(hidden, head, targets).sum().backward()
    assert sizes.largest == vocab_size * per_chunk


class TorchDispatchSizes(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple) else (made,):
            if isinstance(one, torch.Tensor):
                self.largest = max(self.largest, one.numel())
        return made


def test_kl_from_the_whole_vocabulary_is_the_dense_one() -> None:
    hidden, head = torch.randn(20, 8), torch.randn(30, 8)
    student = torch.randn(20, 8, requires_grad=True)
    dense = losses.kl_divergence(hidden, head, student, head)
    (dense_gradient,) = torch.autograd.grad(dense, student)
    log_probs, ids = losses.top_k(hidden, head, 30)
    assert (log_probs[:, -1] == -math.inf).all()
    listed = losses.kl_from_top_k(log_probs, ids, student, head)
    (gradient,) = torch.autograd.grad(listed, student)
    torch.testing.assert_close(listed, dense, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, dense_gradient, rtol=1e-5, atol=1e-5)


def test_kl_from_top_k_by_hand() -> None:
    # p = (1/2, 1/4, 1/4), q = (1/3, 1/3, 1/3); listed is the first, the others share a bucket:
    # 1/2 ln(3/2) + 1/2 ln(3/4)
    teacher, student = torch.tensor([[math.log(2), 0.0, 0.0]]), torch.zeros(1, 3)
    log_probs, ids = losses.top_k(teacher, torch.eye(3), 1)
    assert ids.tolist() == [[0]]
    torch.testing.assert_close(log_probs.exp(), torch.tensor([[0.5, 0.5]]))
    total = losses.kl_from_top_k(log_probs, ids, student, torch.eye(3))
    assert math.isclose(total.item(), 0.5 * math.log(1.5) + 0.5 * math.log(0.75), rel_tol=1e-5)


def test_kl_from_top_k_grows_to_the_dense_one(monkeypatch) -> None:
    hidden, head, student = torch.randn(20, 8), torch.randn(30, 8), torch.randn(20, 8)
    dense = losses.kl_divergence(hidden, head, student, head).item()
    sums = [
        losses.kl_from_top_k(*losses.top_k(hidden, head, k), student, head).item()
        for k in (1, 3, 10, 29)
    ]
    assert sums == sorted(sums)
    assert sums[-1] <= dense + 1e-4
    monkeypatch.setattr(losses, "MAX_LOGITS", 30 * 3)
    chunked = losses.kl_from_top_k(*losses.top_k(hidden, head, 10), student, head).item()
    assert math.isclose(chunked, sums[2], rel_tol=1e-5)
