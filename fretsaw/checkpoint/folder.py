"""Checkpoint folders in Hugging Face layout, in and out: the face of this room.

A network whose layers are all the same is a plain Llama; any other is DeciLM, which carries its
own modeling code. Reading is strict: every tensor the config calls for must be there with its
shape, and none besides. Torch is imported by the functions that touch weights, so that configs
are read without it.
"""

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fretsaw.artifact import atomic_folder, require_disk, write_json
from fretsaw.checkpoint import decilm, llama
from fretsaw.model.config import ModelConfig
from fretsaw.model.size import BYTES_PER_ELEMENT, num_params

if TYPE_CHECKING:
    import torch

    from fretsaw.chat import Toggle
    from fretsaw.checkpoint.shards import StoredTensor
    from fretsaw.model.decoder import Decoder
    from fretsaw.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
LAYERS = "layers.json"
_REMOTE_CODE = ("configuration_decilm.py", "modeling_decilm.py")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SMALL_FILES = ("*.json", "tokenizer*", "*.jinja", "README.md", "LICENSE*")
_DERIVED = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$")  # old buffers, recomputed


# --- finding -------------------------------------------------------------------------------------


def resolve(name_or_path: str | Path, *, weights: bool = True) -> Path:
    """Return a local folder as it is, or download a Hub id (`owner/name`) and return its folder.

    Without `weights` only the configuration is fetched.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path}: a file, but a checkpoint is a folder; give the folder it is in")
    name = str(name_or_path)
    if not _HUB_ID.fullmatch(name):
        raise ValueError(
            f"{name}: no such folder; give a checkpoint folder or a Hub id (owner/name)"
        )
    return _download(name, (*_SMALL_FILES, "*.safetensors") if weights else ("*config.json",))


def _download(name: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(
            name,
            allow_patterns=list(patterns),
            ignore_patterns=["original/*", "consolidated*"],
        )
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{name}: its licence must be accepted first; do so at https://huggingface.co/{name}, "
            "then log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{name}: no such folder, and nothing public of that name on the Hub; "
            "correct the name, or log in with `hf auth login` if it is private"
        ) from error
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.HfHubHTTPError,
    ) as error:
        raise ValueError(
            f"{name}: no such folder, and the Hub could not be reached ({type(error).__name__}); "
            "check the path or the connection, or download it where there is one"
        ) from error
    return Path(folder)


# --- reading -------------------------------------------------------------------------------------


def read_config(folder: Path) -> ModelConfig:
    """Read a checkpoint's architecture, without its weights and without torch.

    The ids that end a text are those of generation_config.json, then those only config.json has.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a checkpoint folder")
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: no config.json, so this is no checkpoint; "
            "give a folder in Hugging Face layout"
        )
    raw = _read_json(folder / "config.json")
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
    if (folder / "generation_config.json").is_file():
        generation = _read_json(folder / "generation_config.json")
        eos = (*llama.token_ids(generation.get("eos_token_id")), *config.eos_token_ids)
        config = replace(config, eos_token_ids=tuple(dict.fromkeys(eos)))
    return config


def read_dtype(folder: Path) -> str:
    """Return the precision a checkpoint's config states, float32 where it states none."""
    raw = _read_json(folder / "config.json")
    names = {name: short for short, name in llama.DTYPE_NAMES.items()}
    return names.get(raw.get("dtype") or raw.get("torch_dtype") or "", "fp32")


def load(
    folder: Path, *, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None
) -> "Decoder":
    """Read a checkpoint into a `Decoder`; `dtype` None is float32.

    Raises ValueError where names, shapes or values are not what config.json calls for. The weights
    are never held twice: modules are laid out without storage, then given what was read.
    """
    import torch

    from fretsaw.checkpoint import shards
    from fretsaw.model.decoder import Decoder

    config = read_config(folder)
    with torch.device("meta"):
        decoder = Decoder(config)
    stored = shards.read_headers(folder)
    stored = {name: entry for name, entry in stored.items() if not _DERIVED.search(name)}
    if config.tie_word_embeddings and "lm_head.weight" in stored:
        _check_tied(folder, stored)
        del stored["lm_head.weight"]
    shapes = {name: tuple(weight.shape) for name, weight in decoder.state_dict().items()}
    _check_names_and_shapes(folder, shapes, {name: entry.shape for name, entry in stored.items()})
    weights = {}
    for name, tensor in shards.read_tensors(stored):
        weights[name] = tensor.to(device, dtype or torch.float32, copy=True)
        if not torch.isfinite(weights[name]).all():
            raise ValueError(
                f"{folder}: {name} holds NaN or infinite values as {weights[name].dtype}; "
                "the checkpoint is damaged, download or train it again"
            )
    decoder.load_state_dict(weights, assign=True)
    return decoder


@dataclass(frozen=True)
class Layers:
    """Where the layers of a network stand that has fewer than the one it came from.

    Layer i gives what layer `after[i]` of that one gave, which had `of` layers.
    """

    of: int
    after: tuple[int, ...]


def read_layers(folder: Path) -> Layers | None:
    """Return where a checkpoint's layers stand, None where it has all of its parent's."""
    path = folder / LAYERS
    if not path.is_file():
        return None
    raw = _read_json(path)
    return Layers(raw["of"], tuple(raw["after"]))


def write_layers(folder: Path, layers: Layers) -> None:
    """Say beside a checkpoint where its layers stand."""
    write_json(folder / LAYERS, {"of": layers.of, "after": list(layers.after)})


def check_tokenizer(tokenizer: "Tokenizer", config: ModelConfig) -> None:
    """Raise where the tokenizer can give ids that the model has no embedding for."""
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"tokenizer: {tokenizer.vocab_size} tokens, but the model embeds {config.vocab_size}; "
            "use the tokenizer the model was trained with"
        )


def _check_names_and_shapes(
    folder: Path, expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]
) -> None:
    wrong = [f"{name} is missing" for name in expected if name not in stored]
    wrong += [f"{name} is not in the config" for name in stored if name not in expected]
    wrong += [
        f"{name} is {stored[name]}, not {shape}"
        for name, shape in expected.items()
        if stored.get(name, shape) != shape
    ]
    if not wrong:
        return
    layers = _num_layers(stored), _num_layers(expected)
    depth = f"layers stored: {layers[0]}, in config.json: {layers[1]}; "
    shown = "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
    raise ValueError(
        f"{folder}: weights and config.json disagree ({depth if layers[0] != layers[1] else ''}"
        f"{shown}); give a folder whose files belong together"
    )


def _num_layers(names: Mapping[str, Any]) -> int:
    found = [re.match(r"model\.layers\.(\d+)\.", name) for name in names]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _check_tied(folder: Path, stored: Mapping[str, "StoredTensor"]) -> None:
    import torch

    from fretsaw.checkpoint import shards

    names = ("lm_head.weight", "model.embed_tokens.weight")
    pair = dict(shards.read_tensors({name: stored[name] for name in names if name in stored}))
    if len(pair) == 2 and not torch.equal(pair[names[0]], pair[names[1]]):
        raise ValueError(
            f"{folder}: config.json ties the embeddings, but lm_head.weight differs from "
            "model.embed_tokens.weight; set tie_word_embeddings to false"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object; download it again")
    return value


# --- writing -------------------------------------------------------------------------------------


def write(
    decoder: "Decoder",
    folder: Path,
    *,
    like: Path | None = None,
    tokenizer: "Tokenizer | None" = None,
    toggle: "Toggle" = "v1",
    dtype: str = "fp32",
    always_decilm: bool = False,
) -> None:
    """Write a checkpoint into an existing folder, with the tokenizer files of `like`.

    A plain Llama where all layers are the same (unless `always_decilm`), else DeciLM with the
    modeling code it needs. A `tokenizer` that is no longer that of `like` is written in its place;
    where it is a chat model's, the chat template goes with it, for the mode to be told as `toggle`
    says.
    """
    import torch

    from fretsaw.chat import is_chat
    from fretsaw.chat_template import write_chat_template
    from fretsaw.checkpoint import shards

    config = decoder.config
    layout = llama if config.is_homogeneous and not always_decilm else decilm
    raw = layout.config_to_json(config, dtype=dtype)
    require_disk(folder, math.ceil(num_params(config) * BYTES_PER_ELEMENT[dtype] * 1.01))
    write_json(folder / "config.json", raw)
    torch_dtype = getattr(torch, llama.DTYPE_NAMES[dtype])
    shards.write_tensors(folder, decoder.state_dict(), dtype=torch_dtype)
    if layout is decilm:
        for name in _REMOTE_CODE:
            shutil.copyfile(Path(__file__).with_name(name), folder / name)
    if tokenizer is not None:
        tokenizer.save(folder)
        if is_chat(tokenizer):
            write_chat_template(folder, toggle)
        ends = {"bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_ids)}
        write_json(folder / "generation_config.json", ends)
    for name in TOKENIZER_FILES if like is not None and tokenizer is None else ():
        if like is not None and (like / name).is_file():
            shutil.copyfile(like / name, folder / name)


def save(decoder: "Decoder", out: Path, *, like: Path | None = None, dtype: str = "fp32") -> None:
    """Write a checkpoint folder that is there whole or not at all."""
    with atomic_folder(out) as folder:
        write(decoder, folder, like=like, dtype=dtype)
