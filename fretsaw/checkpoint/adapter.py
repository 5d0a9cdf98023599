"""A LoRA adapter (arXiv 2106.09685) as PEFT saves it: what its config says and its file holds.

A matrix W of the base becomes W + scale * up down, with the factors that PEFT calls lora_B and
lora_A; a tensor that is stored whole takes the base's place. Whatever else would change the network
is refused by name. Torch is imported where weights are added only.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fretsaw.checkpoint.headers import StoredTensor, read_header
from fretsaw.checkpoint.json_object import read_json

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
APPLIED = "fretsaw_adapter"  # where a folder of links keeps it beside its base's weights
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MERGE = "merge it with PEFT's merge_and_unload, save that, and give its folder"
PREFIX = "base_model.model."
_FACTORS = {
    ".lora_A.weight": ("down", False),
    ".lora_B.weight": ("up", False),
    ".lora_embedding_A": ("down", True),
    ".lora_embedding_B": ("up", True),
}
# Beside a tensor of a grown vocabulary PEFT stores it again, and what it was before.
_COPY = re.compile(r"\.(modules_to_save|original_module)(?=\.weight$)")
_READ = {
    *("peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora"),
    *("rank_pattern", "alpha_pattern", "init_lora_weights", "ensure_weight_tying"),
}
# How it was trained, and which tensors there should be, of which the file itself tells. PEFT
# itself leaves fan_in_fan_out out for matrices that are stored as Llama's are.
_OF_TRAINING = {
    *("auto_mapping", "bias", "corda_config", "eva_config", "exclude_modules", "fan_in_fan_out"),
    *("inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout"),
    *("lora_ga_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size"),
    *("target_modules", "task_type"),
}
_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # others change the base


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What `adapter_config.json` says that the weights depend on."""

    file: Path
    base: str  # a folder or a Hub id
    revision: str | None
    rank: int
    alpha: float
    ranks: Mapping[str, int]  # by a pattern of a module's name
    alphas: Mapping[str, float]
    is_rank_stabilised: bool
    ties: bool  # what is added to the embeddings is meant for the head too

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's factors."""
        return next((self.ranks[p] for p in self.ranks if _is_meant(p, module)), self.rank)

    def scale_of(self, module: str) -> float:
        """Return alpha / rank, or alpha / sqrt(rank) where the rank is stabilised (2312.03732)."""
        alpha = next((self.alphas[p] for p in self.alphas if _is_meant(p, module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilised else rank)


def _is_meant(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


@dataclass(frozen=True)
class Update:
    """What is added to one weight: `down` is (rank, in), `up` is (out, rank).

    An embedding is a matrix from the vocabulary, stored the other way round.
    """

    down: StoredTensor
    up: StoredTensor
    scale: float
    is_table: bool

    def added_to(self, weight: "Tensor") -> "Tensor":
        """Return weight + scale * up down, in float32."""
        from fretsaw.checkpoint import shards

        factors = dict(shards.read_tensors({"down": self.down, "up": self.up}))
        change = factors["up"].float() @ factors["down"].float()
        return weight.float() + self.scale * (change.T if self.is_table else change)


@dataclass(frozen=True)
class Adapter:
    """An adapter by the names of its base's weights."""

    config: LoraConfig
    updates: Mapping[str, Update]
    whole: Mapping[str, StoredTensor]  # stored in place of the base's

    @property
    def touches_tables(self) -> bool:
        """Whether the embeddings or the output matrix are not the base's."""
        return bool({TABLE, HEAD} & (self.updates.keys() | self.whole.keys()))


# --- the config -----------------------------------------------------------------------------------


def read_lora_config(folder: Path) -> LoraConfig:
    """Read an adapter's config. Raises ValueError for what would not be merged rightly."""
    file = folder / CONFIG
    raw = read_json(file)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{file}: peft_type is {kind!r}, and only LORA is read; {MERGE}")
    for key in sorted(raw.keys() - _READ - _OF_TRAINING):
        if raw[key]:
            raise ValueError(
                f"{file}: {key} is {raw[key]!r}, and only plain LoRA is read, without it; {MERGE}"
            )
    initial = raw.get("init_lora_weights", True)
    if initial not in _INITIAL:
        raise ValueError(
            f"{file}: init_lora_weights is {initial!r}, which takes a part out of the base's "
            "matrices first, and that is not read; save the adapter with "
            f"path_initial_model_for_weight_conversion, or {MERGE}"
        )
    base, revision = raw.get("base_model_name_or_path"), raw.get("revision")
    if not isinstance(base, str) or not base or not isinstance(revision, str | None):
        raise ValueError(
            f"{file}: base_model_name_or_path is {base!r}, revision {revision!r}; write there the "
            "folder or the Hub id of the checkpoint that the adapter was trained on"
        )
    return LoraConfig(
        file=file,
        base=base,
        revision=revision,
        rank=_rank(file, "r", raw.get("r", 8)),
        alpha=_alpha(file, "lora_alpha", raw.get("lora_alpha", 8)),
        ranks={p: _rank(file, p, n) for p, n in _patterns(file, raw, "rank_pattern").items()},
        alphas={p: _alpha(file, p, n) for p, n in _patterns(file, raw, "alpha_pattern").items()},
        is_rank_stabilised=bool(raw.get("use_rslora")),
        ties=bool(raw.get("ensure_weight_tying")),
    )


def _rank(file: Path, key: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(
            f"{file}: {key} is {value!r}, and a rank is a whole number from 1; {MERGE}"
        )
    return value


def _alpha(file: Path, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{file}: {key} is {value!r}, and lora_alpha is a number; {MERGE}")
    return float(value)


def _patterns(file: Path, raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    patterns = raw.get(key) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{file}: {key} is {patterns!r}, and it is an object; download it again")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{file}: {key} has {pattern!r}, no regular expression ({error}); correct it"
            ) from None
    return patterns


# --- the weights ----------------------------------------------------------------------------------


@dataclass
class _Pair:
    is_table: bool
    factors: dict[str, StoredTensor] = field(default_factory=dict)


def read_adapter(folder: Path) -> Adapter:
    """Read what an adapter adds, from its config and header alone.

    Raises ValueError where the file is not whole, is a pickle, or holds half of a pair.
    """
    config, file = read_lora_config(folder), folder / WEIGHTS
    if not file.is_file():
        if (folder / PICKLE).is_file():
            raise ValueError(
                f"{folder / PICKLE}: a pickle, which can run code when opened; save the adapter "
                f"with PEFT's save_pretrained, which writes {WEIGHTS}"
            )
        raise ValueError(
            f"{folder}: no {WEIGHTS}; give the folder that PEFT's save_pretrained wrote"
        )
    pairs: dict[str, _Pair] = {}
    whole: dict[str, StoredTensor] = {}
    header = read_header(file)
    for key, entry in header.items():
        name = key.removeprefix(PREFIX)
        if _COPY.search(key) and _COPY.sub("", key) in header:
            continue
        suffix = next((end for end in _FACTORS if name.endswith(end)), None)
        if suffix is None:
            whole[name.replace(".base_layer.", ".")] = entry
            continue
        which, is_table = _FACTORS[suffix]
        module = name.removesuffix(suffix)
        pair = pairs.setdefault(module, _Pair(is_table))
        if which in pair.factors or pair.is_table != is_table:
            raise ValueError(f"{file}: {key} stands beside other factors of {module}; {MERGE}")
        pair.factors[which] = entry
    updates: dict[str, Update] = {}
    for module, pair in pairs.items():
        if len(pair.factors) < 2:
            raise ValueError(f"{file}: holds one factor of {module} and not both; save it again")
        scale = config.scale_of(module)
        updates[f"{module}.weight"] = Update(**pair.factors, scale=scale, is_table=pair.is_table)
    if not updates and not whole:
        raise ValueError(f"{file}: holds no tensors; save the adapter again")
    return Adapter(config, updates, whole)


def read_applied(folder: Path) -> Adapter | None:
    """Return the adapter that is added to a folder's weights as they are read, None without one."""
    return read_adapter(folder / APPLIED) if (folder / APPLIED / CONFIG).is_file() else None


def with_whole(adapter: Adapter, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return where a base's tensors are once the adapter's whole ones are in their place.

    A head that was tied to the embeddings stands for itself where either is changed.
    """
    apart = {HEAD: stored[TABLE]} if adapter.touches_tables and TABLE in stored else {}
    return {**apart, **stored, **adapter.whole}
