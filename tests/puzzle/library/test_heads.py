"""Key-value heads are turned and ordered without a change of function, so that their means fit."""

import pytest
import torch

from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.rope import rope_inv_freq, rope_tables, rotate
from fretsaw.puzzle.library.heads import _turn_keys, align_heads
from fretsaw.puzzle.library.slices import LayerOrder, sort_parent


def gram(x: torch.Tensor) -> torch.Tensor:
    """Return X'X of tokens x heads x head_dim."""
    return torch.einsum("thi,tkj->hikj", x, x).double()


def rotation(seed: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator).double())
    return q


def key_turn(angles: torch.Tensor) -> torch.Tensor:
    cos, sin = angles.cos().diag(), angles.sin().diag()
    return torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)]).double()


def config(num_heads: int, kv_heads: int, layers: int = 1) -> ModelConfig:
    return ModelConfig.uniform(
        **{"num_hidden_layers": layers, "num_key_value_heads": kv_heads, "intermediate_size": 16},
        **{"vocab_size": 50, "hidden_size": 24, "num_attention_heads": num_heads, "head_dim": 6},
    )


def test_key_turns_commute_with_rotary_embeddings() -> None:
    turn = key_turn(torch.tensor([0.3, -1.1, 2.0])).float()
    cos, sin = rope_tables(rope_inv_freq(config(4, 4)), torch.arange(5)[None])
    x = torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(rotate(x @ turn, cos, sin), rotate(x, cos, sin) @ turn)


def test_a_turned_copy_is_found_and_turned_back() -> None:
    base = torch.randn(200, 2, 6, generator=torch.Generator().manual_seed(1)).double()
    # heads 0 and 3 are one head in two bases, heads 1 and 2 another
    keys = torch.stack(
        [base[:, 0], base[:, 1], base[:, 1] @ key_turn(torch.tensor([0.5, 1.5, -2.0])),
         base[:, 0] @ key_turn(torch.tensor([-0.4, 3.0, 1.0]))], 1
    )  # fmt: skip
    values = torch.stack(
        [base[:, 1], base[:, 0], base[:, 0] @ rotation(1, 6), base[:, 1] @ rotation(2, 6)], 1
    )
    heads = align_heads(gram(keys), gram(values))
    assert {frozenset(pair.tolist()) for pair in heads.order.split(2)} == {
        frozenset((0, 3)),
        frozenset((1, 2)),
    }
    for x, turn in ((keys, heads.turn_keys), (values, heads.turn_values)):
        turned = torch.einsum("thi,hij->thj", x, turn)[:, heads.order]
        torch.testing.assert_close(turned[:, 0], turned[:, 1])
        torch.testing.assert_close(turned[:, 2], turned[:, 3])


def test_the_key_turn_is_the_best_of_its_kind() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 50, 6, generator=generator).double()
    best = (a - b @ _turn_keys(b.mT @ a)).square().sum()
    for _ in range(200):
        other = key_turn(torch.rand(3, generator=generator) * 6.3)
        assert (a - b @ other).square().sum() >= best - 1e-9


@pytest.mark.parametrize(("num_heads", "kv_heads"), [(4, 4), (12, 6), (8, 2), (3, 1)])
def test_the_function_stays(num_heads: int, kv_heads: int) -> None:
    decoder = Decoder(config(num_heads, kv_heads, layers=2)).double().eval()
    ids = torch.randint(50, (2, 9))
    before = decoder(ids)
    x = torch.randn(2, 100, kv_heads, 6)
    orders = [LayerOrder(heads=align_heads(gram(x[0]), gram(x[1])))] * 2
    assert sorted(orders[0].heads.order.tolist()) == list(range(kv_heads))  # type: ignore[union-attr]
    weight = decoder.model.layers[0].self_attn.v_proj.weight.clone()  # type: ignore[union-attr]
    sort_parent(decoder, orders)
    if kv_heads > 1:
        assert not torch.equal(decoder.model.layers[0].self_attn.v_proj.weight, weight)  # type: ignore[union-attr]
    torch.testing.assert_close(decoder(ids), before, rtol=0, atol=1e-6)  # tables are float32
