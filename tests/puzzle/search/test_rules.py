"""Engine rules: what is not chosen, what exporting mends, and what leaves nothing."""

import pytest

from fretsaw.puzzle.search.rules import NO_RULES, rules_of, taken
from fretsaw.puzzle.search.solutions import search_table
from fretsaw.puzzle.search.table import Alternative, Pair, Table

ATTENTION = ("gqa8", "gqa4", "gqa2", "gqa1", "attn_linear", "attn_none")


def table_of(ffn: tuple[str, ...], num_layers: int = 2) -> Table:
    def alternatives(names: tuple[str, ...]) -> dict[str, Alternative]:
        return {name: Alternative(float(k), {"ms": 9.0 - k}) for k, name in enumerate(names)}

    layer = {"attention": alternatives(ATTENTION), "ffn": alternatives(ffn)}
    return Table((layer,) * num_layers)


def kept(table: Table, engine: str, tensor_parallel: int = 1, layer: int = 1) -> tuple[set, set]:
    found = taken(table, rules_of(engine, tensor_parallel)).layers[layer]
    return set(found["attention"]), set(found["ffn"])


LARGE = ("ffn14000", "ffn7168", "ffn7000", "ffn32", "ffn_linear", "ffn_none")


def test_what_each_engine_takes_of_a_large_network() -> None:
    table = table_of(LARGE)
    vllm = ({"gqa8", "gqa4", "gqa2", "gqa1", "attn_none"}, set(LARGE) - {"ffn_linear"})
    assert kept(table, "vllm") == vllm
    assert kept(table, "vllm", layer=0)[0] == vllm[0] - {"attn_none"}
    assert kept(table, "transformers", layer=0) == (set(ATTENTION), set(LARGE))
    # The parent's own 14000 is padded, like any checkpoint's; of the others multiples are taken.
    assert kept(table, "portable") == (vllm[0], {"ffn14000", "ffn7168"})
    assert kept(table, "llama.cpp") == (
        set(ATTENTION),
        {"ffn14000", "ffn7168", "ffn32", "ffn_linear"},
    )
    assert kept(table, "nvidia")[1] == {"ffn7168", "ffn_linear", "ffn_none"}


def test_a_small_networks_own_steps_are_padded_and_so_taken() -> None:
    small = table_of(("ffn384", "ffn336", "ffn192", "ffn40", "ffn_none"))
    assert kept(small, "portable")[1] == {"ffn384", "ffn336", "ffn192"}  # steps of 16
    tiny = table_of(("ffn64", "ffn40", "ffn_none"))
    assert kept(tiny, "portable")[1] == {"ffn64", "ffn40"}
    with pytest.raises(ValueError, match=r"layer 0 has no ffn that nvidia takes.*ffn64 \(an FFN"):
        taken(table_of(("ffn64", "ffn40")), rules_of("nvidia"))


def test_tensor_parallel_divides_heads_and_widths() -> None:
    table = table_of(("ffn14000", "ffn7168", "ffn_none"))
    heads, widths = kept(table, "vllm", 4)
    assert heads == {"gqa8", "gqa4", "attn_none"}
    assert widths == {"ffn14000", "ffn7168", "ffn_none"}
    with pytest.raises(ValueError, match=r"layer 0 has no attention that vllm takes.*over 16 dev"):
        taken(table_of(("ffn64",)), rules_of("vllm", 16))


def test_the_search_obeys_and_pairs_of_what_is_refused_go() -> None:
    table = table_of(("ffn384", "ffn_none"))
    pairs = (
        Pair(((0, "gqa8"), (1, "ffn_none")), 1.0),
        Pair(((0, "gqa8"), (1, "gqa4")), 2.0),
    )
    table = Table(table.layers, pairs=pairs)
    rules = rules_of("llama.cpp")
    assert taken(table, rules).pairs == pairs[1:]
    cheapest = {"ms": 4 * 8.0 - 4}
    (ruled,) = search_table(table, {"ms": 27.0}, rules=rules)
    assert all(ffn == "ffn384" for _, ffn in ruled.choices)
    assert search_table(table, cheapest, rules=NO_RULES)


def test_block_names_are_ruled_by_their_parts_and_foreign_names_are_not() -> None:
    names = ("gqa8+ffn384", "gqa8+ffn_none", "attn_none+ffn384", "anything")
    block = {name: Alternative(0.0, {"ms": 1.0}) for name in names}
    ruled = taken(Table(({"block": block},) * 2), rules_of("portable"))
    assert set(ruled.layers[0]["block"]) == {"gqa8+ffn384", "anything"}
    assert set(ruled.layers[1]["block"]) == {"gqa8+ffn384", "attn_none+ffn384", "anything"}


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(ValueError, match="engine 'tgi': unknown; choose one of portable, vllm"):
        rules_of("tgi")
