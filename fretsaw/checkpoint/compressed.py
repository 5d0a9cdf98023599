"""The `quantization_config` of compressed-tensors <-> each block's precision.

vLLM reads it: groups of matrices by name or by "Linear", each with the format of its weights and of
what they are multiplied with. Ours are weights in 8 bits with a scale a row ("channel") and
activations scaled as they come ("dynamic", a "token" each). Standard library only.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.kinds import MODULES, Precision

METHOD = "compressed-tensors"
_IN_8_BITS: tuple[Precision, ...] = ("fp8", "int8")
_TYPES: dict[Precision, str] = {"fp8": "float", "int8": "int"}
_FORMATS: dict[Precision, str] = {"fp8": "float-quantized", "int8": "int-quantized"}
_REMEDY = "save the checkpoint in bf16 or fp32 first"


# --- writing --------------------------------------------------------------------------------------


def quantisation_to_json(config: ModelConfig) -> dict[str, Any]:
    """Return the `quantization_config` of a network with matrices in 8 bits."""
    by_precision: dict[Precision, list[str]] = {}
    for i, block in enumerate(config.blocks):
        for part, precision in _subblocks(block):
            by_precision.setdefault(precision, []).append(rf"model\.layers\.{i}\.{part}\..*")
    ignored = [f"re:{pattern}" for pattern in by_precision.pop("full", [])]
    is_alike = len(by_precision) == 1 and not ignored
    groups = {
        f"group_{number}": {
            "targets": ["Linear"] if is_alike else [f"re:{pattern}" for pattern in patterns],
            "weights": _arguments(precision, strategy="channel", dynamic=False),
            "input_activations": _arguments(precision, strategy="token", dynamic=True),
            "output_activations": None,
            "format": _FORMATS[precision],
        }
        for number, (precision, patterns) in enumerate(by_precision.items())
    }
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head", *ignored],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _subblocks(block: BlockConfig) -> Iterable[tuple[str, Precision]]:
    if block.attention != "none":
        yield MODULES["attention"], block.attention_precision
    if block.ffn != "none":
        yield MODULES["ffn"], block.ffn_precision


def _arguments(precision: Precision, *, strategy: str, dynamic: bool) -> dict[str, Any]:
    return {
        "num_bits": 8,
        "type": _TYPES[precision],
        "symmetric": True,
        "strategy": strategy,
        "dynamic": dynamic,
        "observer": None if dynamic else "minmax",
    }


# --- reading --------------------------------------------------------------------------------------


def with_quantisation(config: ModelConfig, raw: Mapping[str, Any]) -> ModelConfig:
    """Return the network with its blocks' precisions as a `quantization_config` says.

    Raises `ValueError` for any other method, and for formats that are not ours.
    """
    if raw.get("quant_method") != METHOD:
        raise ValueError(
            f"config.json: quantization_config is of {raw.get('quant_method')!r}, and only "
            f"{METHOD} is read; {_REMEDY}"
        )
    if raw.get("kv_cache_scheme") is not None:
        raise ValueError(
            f"config.json: keys and values quantised too, which is not implemented; {_REMEDY}"
        )
    ignored = raw.get("ignore") or []
    groups: list[tuple[list[str], Precision]] = [
        (group["targets"], _precision(group)) for group in (raw.get("config_groups") or {}).values()
    ]

    def precision_of(module: str) -> Precision:
        for targets, precision in groups:
            if _is_meant(module, targets) and not _is_meant(module, ignored):
                return precision
        return "full"

    if _is_meant("lm_head", [t for targets, _ in groups for t in targets]) and not _is_meant(
        "lm_head", ignored
    ):
        raise ValueError(
            f"config.json: the output matrix is quantised, which is not read; {_REMEDY}"
        )
    blocks = []
    for i, block in enumerate(config.blocks):
        fields: dict[str, Any] = {}
        for kind in (block.attention_kind, block.ffn_kind):
            part = f"model.layers.{i}.{MODULES[kind.half]}"
            found = {precision_of(f"{part}.{name}") for name in kind.matrix_names}
            if len(found) > 1:
                raise ValueError(
                    f"config.json: layer {i} has its {kind.half}'s matrices in several precisions "
                    f"({', '.join(sorted(found))}), which is not read; {_REMEDY}"
                )
            fields |= {f"{kind.half}_precision": precision for precision in found}
        blocks.append(replace(block, **fields))
    return replace(config, blocks=tuple(blocks))


def _is_meant(module: str, targets: Iterable[str]) -> bool:
    return any(
        bool(re.match(target[3:], module))
        if target.startswith("re:")
        else target in ("Linear", module)
        for target in targets
    )


def _precision(group: Mapping[str, Any]) -> Precision:
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    for precision in _IN_8_BITS:
        wanted = {"num_bits": 8, "type": _TYPES[precision], "symmetric": True}
        ours = ({**wanted, "strategy": "channel"}, {**wanted, "strategy": "token", "dynamic": True})
        if all(
            part.items() <= given.items()
            for part, given in zip(ours, (weights, inputs), strict=True)
        ):
            return precision
    raise ValueError(
        f"config.json: weights in {weights.get('num_bits')} bits ({weights.get('type')}, by "
        f"{weights.get('strategy')}) with activations by {inputs.get('strategy')}, and only 8 bits "
        f"by channel with dynamic activations by token are read; {_REMEDY}"
    )
