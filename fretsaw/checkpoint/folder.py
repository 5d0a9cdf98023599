"""Checkpoint folders in Hugging Face layout, in and out: the face of this room.

A network whose layers are all the same is a plain Llama; any other is DeciLM, which carries its
own modeling code. Reading is strict: every tensor the config calls for must be there with its
shape, and none besides. Torch is imported by the functions that touch weights, so that configs
are read without it.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fretsaw.chat.template import OTHERS, SETTINGS, read_settings
from fretsaw.checkpoint import compressed, decilm, llama
from fretsaw.checkpoint.adapter import read_applied
from fretsaw.checkpoint.beside import read_precisions, write_precisions
from fretsaw.checkpoint.expected import stored_tensors
from fretsaw.checkpoint.headers import StoredTensor, has_weights, read_headers
from fretsaw.checkpoint.json_object import read_json
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.kinds import Precision
from fretsaw.model.size import BYTES_PER_ELEMENT, num_params
from fretsaw.stage.artifact import require_disk
from fretsaw.stage.whole import atomic_folder, write_json

if TYPE_CHECKING:
    import torch

    from fretsaw.chat.toggle import Toggle
    from fretsaw.chat.tokenizer import Tokenizer
    from fretsaw.model.decoder import Decoder

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
_REMOTE_CODE = ("configuration_decilm.py", "modeling_decilm.py")
_STORED_AS = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


# --- reading -------------------------------------------------------------------------------------


def read_config(folder: Path) -> ModelConfig:
    """Read a checkpoint's architecture, without its weights and without torch.

    The ids that end a text are those of generation_config.json, then those only config.json has.
    """
    raw = _read_raw_config(folder)
    quantisation = raw.pop("quantization_config", None)
    match raw.get("model_type"):
        case "llama" | "mistral":
            config = llama.config_from_json(raw)
        case decilm.MODEL_TYPE:
            config = decilm.config_from_json(raw)
        case other:
            raise ValueError(
                f"{folder}: model_type is {other!r}, but only llama, mistral and "
                f"{decilm.MODEL_TYPE} are read; choose a checkpoint of the Llama family"
            )
    if quantisation is not None:
        config = compressed.with_quantisation(config, quantisation)
    if (folder / "generation_config.json").is_file():
        generation = read_json(folder / "generation_config.json")
        eos = (*llama.token_ids(generation.get("eos_token_id")), *config.eos_token_ids)
        config = replace(config, eos_token_ids=tuple(dict.fromkeys(eos)))
    return config


def _read_raw_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a checkpoint folder")
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: no config.json, so this is no checkpoint; "
            "give a folder in Hugging Face layout"
        )
    return read_json(folder / "config.json")


def read_dtype(folder: Path) -> str:
    """Return the precision in which a checkpoint's matrices are stored.

    Its headers say so, whatever its config states; the config where only that is there. Where
    tensors are of several precisions, it is that of most numbers.
    """
    raw = _read_raw_config(folder)
    if has_weights(folder):
        sizes = dict.fromkeys(_STORED_AS, 0)
        for entry in read_headers(folder).values():
            if entry.dtype in sizes:
                sizes[entry.dtype] += math.prod(entry.shape)
        return _STORED_AS[max(sizes, key=sizes.__getitem__)]
    names = {name: short for short, name in llama.DTYPE_NAMES.items()}
    return names.get(raw.get("dtype") or raw.get("torch_dtype") or "", "fp32")


def check(
    folder: Path, *, needs_weights: bool = True, needs_tokenizer: bool = False
) -> ModelConfig:
    """Raise what is wrong with a checkpoint as far as its small files and headers tell.

    It takes milliseconds, and no torch. What is there is checked whether it is needed or not; the
    values of the weights are, as they are loaded. Returns the architecture.
    """
    config = read_config(folder)
    if needs_tokenizer or (folder / "tokenizer.json").is_file():
        from fretsaw.chat.tokenizer import Tokenizer

        try:
            check_tokenizer(Tokenizer.from_folder(folder), config)
        except ValueError as error:
            where = "" if str(folder) in str(error) else f"{folder}: "
            raise ValueError(f"{where}{error}") from error
    if needs_weights or has_weights(folder):
        stored_tensors(folder, config)
    return config


def refuse_8_bits(folder: Path, config: ModelConfig) -> None:
    """Raise where a checkpoint's weights are in 8 bits, of which nothing is trained or cut."""
    if config.is_quantised:
        raise ValueError(
            f"{folder}: its weights are in 8 bits, for serving and evaluating only; give the "
            "checkpoint that it was exported from"
        )


def load(
    folder: Path, *, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None
) -> "Decoder":
    """Read a checkpoint into a `Decoder`; `dtype` None is float32.

    Raises ValueError where names, shapes or values are not what config.json calls for, and for
    weights in 8 bits, of which nothing is trained or cut; before anything is read, where the device
    has no room. The weights are never held twice: modules are laid out without storage, then given
    what was read.
    """
    config = read_config(folder)
    refuse_8_bits(folder, config)
    return _load(folder, config, device, dtype)


def load_served(
    folder: Path,
    *,
    device: "torch.device | str" = "cpu",
    dtype: "torch.dtype | None" = None,
    weights: "Precision | None" = None,
) -> "Decoder":
    """Read a checkpoint as it is to be served: in 8 bits where it is, or is meant to be.

    `weights` says so of every matrix, in place of what the search chose. Raises as `load` does.
    """
    config = read_config(folder)
    decoder = _load(folder, config, device, dtype)
    wanted = served_blocks(folder, config, weights)
    if wanted == config.blocks:
        return decoder
    from fretsaw.model.quantised import quantised

    return quantised(decoder, wanted)


def read_served_config(folder: Path) -> ModelConfig:
    """Read a checkpoint's architecture with the precisions in which it is to be served."""
    config = read_config(folder)
    return replace(config, blocks=served_blocks(folder, config))


def served_blocks(
    folder: Path, config: ModelConfig, weights: "Precision | None" = None
) -> tuple[BlockConfig, ...]:
    """Return the blocks of a checkpoint in the precisions in which it is to be served."""
    if config.is_quantised:
        if weights is not None:
            raise ValueError(
                f"{folder}: its weights are in 8 bits already, so they can't be put in {weights}; "
                "give the checkpoint that it was exported from"
            )
        return config.blocks
    if weights is not None:
        return tuple(block.stored(weights, weights) for block in config.blocks)
    chosen = read_precisions(folder)
    if chosen is None:
        return config.blocks
    return tuple(b.stored(*pair) for b, pair in zip(config.blocks, chosen, strict=True))


def _load(
    folder: Path, config: ModelConfig, device: "torch.device | str", dtype: "torch.dtype | None"
) -> "Decoder":
    import torch

    from fretsaw.checkpoint import shards
    from fretsaw.checkpoint.room import require_memory
    from fretsaw.model.decoder import Decoder
    from fretsaw.model.without_storage import without_storage

    with without_storage():
        decoder = Decoder(config)
    kept_as = {name: buffer.dtype for name, buffer in decoder.named_buffers()}
    require_memory(folder, decoder, torch.device(device), dtype or torch.float32)
    stored = stored_tensors(folder, config)
    if config.tie_word_embeddings and "lm_head.weight" in stored:
        _check_tied(folder, stored)
        del stored["lm_head.weight"]
    adapter = read_applied(folder)
    updates = adapter.updates if adapter is not None else {}
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in shards.read_tensors(stored, kept_as):
        if name in updates:
            tensor = updates[name].added_to(tensor)
        kept = kept_as.get(name, dtype or torch.float32)
        weights[name] = tensor.to(device, kept, copy=True)
        numbers = weights[name].float() if kept.itemsize == 1 else weights[name]
        if not torch.stack(torch.aminmax(numbers)).isfinite().all():  # NaN is both, where it is
            raise ValueError(
                f"{folder}: {name} holds NaN or infinite values as {weights[name].dtype}; "
                "the checkpoint is damaged, download or train it again"
            )
    decoder.load_state_dict(weights, assign=True)
    return decoder


def check_tokenizer(tokenizer: "Tokenizer", config: ModelConfig) -> None:
    """Raise where the tokenizer can give ids that the model has no embedding for."""
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"tokenizer: {tokenizer.vocab_size} tokens, but the model embeds {config.vocab_size}; "
            "use the tokenizer the model was trained with"
        )


def _check_tied(folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    import torch

    from fretsaw.checkpoint import shards

    names = ("lm_head.weight", "model.embed_tokens.weight")
    pair = dict(shards.read_tensors({name: stored[name] for name in names if name in stored}))
    if len(pair) == 2 and not torch.equal(pair[names[0]], pair[names[1]]):
        raise ValueError(
            f"{folder}: config.json ties the embeddings, but lm_head.weight differs from "
            "model.embed_tokens.weight; set tie_word_embeddings to false"
        )


# --- writing -------------------------------------------------------------------------------------


def write(
    decoder: "Decoder",
    folder: Path,
    *,
    like: Path | None = None,
    tokenizer: "Tokenizer | None" = None,
    toggle: "Toggle | None" = None,
    dtype: str = "fp32",
    always_decilm: bool = False,
    served_as: Path | None = None,
) -> None:
    """Write a checkpoint into an existing folder, with the tokenizer files of `like`.

    A plain Llama where all layers are the same (unless `always_decilm`), else DeciLM with the
    modeling code it needs. It is to be served in the precisions of `served_as`, where given, which
    has its layers. A `tokenizer` that is no longer that of `like` is written in its place, with the
    settings of `like`; where it is a chat model's, our chat template goes with it. The mode is told
    as `toggle` says, where that is given.
    """
    import torch

    from fretsaw.checkpoint import shards

    config = decoder.config
    layout = llama if config.in_full.is_homogeneous and not always_decilm else decilm
    raw = layout.config_to_json(config.in_full, dtype=dtype)
    if config.is_quantised:
        raw["quantization_config"] = compressed.quantisation_to_json(config)
    elif served_as is not None and (chosen := read_precisions(served_as)) is not None:
        pairs = zip(config.blocks, chosen, strict=True)
        write_precisions(folder, (block.stored(*pair) for block, pair in pairs))
    require_disk(folder, math.ceil(num_params(config) * BYTES_PER_ELEMENT[dtype] * 1.01))
    write_json(folder / "config.json", raw)
    torch_dtype = getattr(torch, llama.DTYPE_NAMES[dtype])
    in_8_bits = frozenset(name for name, _ in decoder.named_buffers())
    shards.write_tensors(folder, decoder.state_dict(), dtype=torch_dtype, as_they_are=in_8_bits)
    if layout is decilm:
        copy_remote_code(folder)
    write_tokenizer(folder, config, like=like, tokenizer=tokenizer, toggle=toggle)


def write_tokenizer(
    folder: Path,
    config: ModelConfig,
    *,
    like: Path | None = None,
    tokenizer: "Tokenizer | None" = None,
    toggle: "Toggle | None" = None,
) -> None:
    """Write what a checkpoint's folder has of a tokenizer; `write` says what is taken."""
    from fretsaw.chat.control_tokens import is_chat
    from fretsaw.chat.llama3_template import write_chat_template

    if tokenizer is not None:
        settings = read_settings(like) if like is not None else {}
        for made_anew in ("chat_template", "added_tokens_decoder"):
            settings.pop(made_anew, None)
        tokenizer.save(folder, settings)
        if is_chat(tokenizer):
            write_chat_template(folder, toggle or "v1")
        kept = like / "generation_config.json" if like is not None else None
        own = read_json(kept) if kept is not None and kept.is_file() else {}
        ends = {"bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_ids)}
        write_json(folder / "generation_config.json", {**own, **ends})
    elif like is not None:
        copy_tokenizer(like, folder)
        if toggle is not None:
            own = folder / SETTINGS
            write_json(own, {**read_settings(folder), "reasoning_toggle": toggle})


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy what a checkpoint's folder has of a tokenizer, its chat templates included."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / OTHERS).is_dir():
        shutil.copytree(source / OTHERS, folder / OTHERS, dirs_exist_ok=True)


def copy_remote_code(folder: Path) -> None:
    """Write the modeling code that a DeciLM folder carries."""
    for name in _REMOTE_CODE:
        shutil.copyfile(Path(__file__).with_name(name), folder / name)


def save(decoder: "Decoder", out: Path, *, like: Path | None = None, dtype: str = "fp32") -> None:
    """Write a checkpoint folder that is there whole or not at all."""
    with atomic_folder(out) as folder:
        write(decoder, folder, like=like, dtype=dtype)
