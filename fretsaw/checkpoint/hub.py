"""A checkpoint by its name: a folder as it is, a download from the Hub, an adapter on its base."""

import functools
import re
from pathlib import Path

from fretsaw.checkpoint.adapter import CONFIG, WEIGHTS, LoraConfig, read_lora_config
from fretsaw.checkpoint.applied import opened
from fretsaw.checkpoint.headers import has_weights
from fretsaw.stage.progress import say

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


_SMALL_FILES = ("*.json", "tokenizer*", "*.jinja", "README.md", "LICENSE*")


def resolve(name_or_path: str | Path, *, weights: bool = True) -> Path:
    """Return a local folder as it is, or download a Hub id (`owner/name`) and return its folder.

    Of a LoRA adapter it is a folder in which the adapter is applied to its base, which is found or
    downloaded too. Without `weights` only the configuration is fetched. Raises ValueError where
    there is no such checkpoint, or an adapter that its base does not fit.
    """
    folder = _folder(name_or_path, weights)
    if not (folder / CONFIG).is_file():
        return folder
    is_here = Path(name_or_path).expanduser().is_dir()
    is_whole_on_hub = not is_here and not weights and (folder / "config.json").is_file()
    if has_weights(folder) or is_whole_on_hub:
        _say_once(
            f"{folder}: a checkpoint with {CONFIG} beside its weights, which is not applied; to "
            f"apply it, move it and {WEIGHTS} to a folder of their own and give that"
        )
        return folder
    base = _base_of(folder, read_lora_config(folder), weights)
    if not weights and not is_here:
        return base  # the adapter's weights are not here, and its layers are the base's
    name = folder.resolve().name if is_here else str(name_or_path).rpartition("/")[2]
    together = opened(folder, base, name, needs_weights=weights)
    _say_once(f"{name_or_path}: a LoRA adapter, merged into {base} as its weights are read")
    return together


def _base_of(folder: Path, adapter: LoraConfig, weights: bool) -> Path:
    """Return the folder of an adapter's base; a path is the adapter's folder's, then ours."""
    near = folder / Path(adapter.base).expanduser()
    try:
        base = near if near.is_dir() else _folder(adapter.base, weights, adapter.revision)
    except ValueError as error:
        raise ValueError(f"{adapter.file}: its base is not there: {error}") from error
    if (base / CONFIG).is_file() and not has_weights(base):
        raise ValueError(
            f"{adapter.file}: its base {adapter.base} is an adapter itself; make a checkpoint of "
            f"that with `fretsaw export {base} --out FOLDER`, and name it there"
        )
    return base


@functools.cache
def _say_once(text: str) -> None:
    say(text)


def _folder(name_or_path: str | Path, weights: bool, revision: str | None = None) -> Path:
    """Return a local folder, or that of a download."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf" and path.is_file():
        raise ValueError(
            f"{path}: a GGUF file, but a checkpoint is a folder; make one of it with "
            f"`fretsaw import {path} --out {path.stem}`, and give that"
        )
    if path.exists():
        raise ValueError(f"{path}: a file, but a checkpoint is a folder; give the folder it is in")
    name = str(name_or_path)
    if not _HUB_ID.fullmatch(name):
        raise ValueError(
            f"{name}: no such folder; give a checkpoint folder or a Hub id (owner/name)"
        )
    patterns = (*_SMALL_FILES, "*.safetensors") if weights else ("*config.json",)
    return _download(name, patterns, revision)


def _download(name: str, patterns: tuple[str, ...], revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=revision,
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
