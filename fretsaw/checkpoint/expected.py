"""Which tensors a config calls for, and whether a folder's headers have them. No torch."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fretsaw.checkpoint.adapter import read_applied, with_whole
from fretsaw.checkpoint.headers import StoredTensor, read_headers
from fretsaw.model.config import ModelConfig
from fretsaw.model.kinds import MODULES, Precision
from fretsaw.model.size import block_matrices

_DERIVED = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")  # old buffers, recomputed
_NORMS = {"attention": "input_layernorm", "ffn": "post_attention_layernorm"}
_PLAIN: tuple[str, ...] = ("F32", "F16", "BF16")
_STORED: dict[Precision, tuple[str, ...]] = {"full": _PLAIN, "fp8": ("F8_E4M3",), "int8": ("I8",)}

Shape = tuple[int, ...]


def expected_tensors(config: ModelConfig) -> dict[str, tuple[Shape, tuple[str, ...]]]:
    """Return the shape and the types (by safetensors' names) of every tensor of a network."""
    table = (config.vocab_size, config.hidden_size)
    expected: dict[str, tuple[Shape, tuple[str, ...]]]
    expected = {"model.embed_tokens.weight": (table, _PLAIN)}
    for i, block in enumerate(config.blocks):
        precisions = (block.attention_precision, block.ffn_precision)
        halves = zip(block.kinds, block_matrices(config, block), precisions, strict=True)
        for kind, matrices, precision in halves:
            at = f"model.layers.{i}"
            if matrices:
                expected[f"{at}.{_NORMS[kind.half]}.weight"] = ((config.hidden_size,), _PLAIN)
            for name, shape in matrices.items():
                matrix = f"{at}.{MODULES[kind.half]}.{name}.weight"
                expected[matrix] = (shape, _STORED[precision])
                if precision != "full":
                    expected[f"{matrix}_scale"] = ((shape[0], 1), _PLAIN)
    expected["model.norm.weight"] = ((config.hidden_size,), _PLAIN)
    if not config.tie_word_embeddings:
        expected["lm_head.weight"] = (table, _PLAIN)
    return expected


def stored_tensors(folder: Path, config: ModelConfig) -> dict[str, StoredTensor]:
    """Return where a network's tensors are, checked by name, shape and type.

    A head beside tied embeddings is among them: whether it equals them only its values tell.
    """
    stored = read_headers(folder)
    if (adapter := read_applied(folder)) is not None:
        stored = with_whole(adapter, stored)
    stored = {name: entry for name, entry in stored.items() if not _DERIVED.search(name)}
    expected = expected_tensors(config)
    if config.tie_word_embeddings and "lm_head.weight" in stored:
        expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    wrong = list(_differences(expected, stored))
    if wrong:
        layers = _num_layers(stored), _num_layers(expected)
        depth = f"layers stored: {layers[0]}, in config.json: {layers[1]}; "
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(
            f"{folder}: weights and config.json disagree "
            f"({depth if layers[0] != layers[1] else ''}{'; '.join(wrong[:4])}{more}); "
            "give a folder whose files belong together"
        )
    for name, (_, types) in expected.items():
        if stored[name].dtype not in types:
            raise ValueError(
                f"{stored[name].file}: {name} is stored as {stored[name].dtype}, which is not one "
                f"of {', '.join(types)}; save the checkpoint in bf16 or fp32 first"
            )
    return stored


def _differences(
    expected: Mapping[str, tuple[Shape, Any]], stored: Mapping[str, StoredTensor]
) -> Iterator[str]:
    yield from (f"{name} is missing" for name in expected if name not in stored)
    yield from (f"{name} is not in the config" for name in stored if name not in expected)
    for name, (shape, _) in expected.items():
        if name in stored and stored[name].shape != shape:
            yield f"{name} is {stored[name].shape}, not {shape}"


def _num_layers(names: Mapping[str, Any]) -> int:
    found = [re.match(r"model\.layers\.(\d+)\.", name) for name in names]
    return max((int(match[1]) + 1 for match in found if match), default=0)
