"""A checkpoint by its name: a folder as it is, or a download from the Hub."""

import re
from pathlib import Path

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


_SMALL_FILES = ("*.json", "tokenizer*", "*.jinja", "README.md", "LICENSE*")


def resolve(name_or_path: str | Path, *, weights: bool = True) -> Path:
    """Return a local folder as it is, or download a Hub id (`owner/name`) and return its folder.

    Without `weights` only the configuration is fetched.
    """
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
