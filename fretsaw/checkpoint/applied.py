"""A base and a LoRA adapter as one checkpoint folder, made of links.

Every command then opens it as any other: the adapter's factors are added as the weights are read,
and its hash is over the files of both. The folder is kept in the cache, under a name that follows
from what it links to.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fretsaw.chat.template import OTHERS, TEMPLATE, read_chat_templates, write_chat_templates
from fretsaw.checkpoint.adapter import (
    APPLIED,
    CONFIG,
    HEAD,
    MERGE,
    TABLE,
    WEIGHTS,
    Adapter,
    read_adapter,
)
from fretsaw.checkpoint.beside import LAYERS, PRECISIONS
from fretsaw.checkpoint.expected import Shape, expected_tensors
from fretsaw.checkpoint.folder import TOKENIZER_FILES, read_config
from fretsaw.checkpoint.headers import INDEX, SINGLE, has_weights, weight_files
from fretsaw.checkpoint.json_object import read_json
from fretsaw.model.config import ModelConfig
from fretsaw.stage.cache import cache_folder
from fretsaw.stage.hashes import hash_json

_OF_BASE = ("config.json", "generation_config.json", PRECISIONS, LAYERS, "README.md")
_STORED = ("F32", "F16", "BF16")


def opened(folder: Path, base: Path, name: str, *, needs_weights: bool = True) -> Path:
    """Return a folder called `name` in which the adapter in `folder` is applied to its base.

    Raises ValueError, from config and headers alone, where the two do not fit.
    """
    adapter, config = read_adapter(folder), read_config(base)
    together = check_fit(adapter, base, config)
    links = {one: base / one for one in _OF_BASE if (base / one).is_file()}
    if needs_weights or has_weights(base):
        links |= {file.name: file for file in weight_files(base)}
        if not (base / SINGLE).is_file():
            links[INDEX] = base / INDEX
    links |= _tokenizer_links(folder, base)
    links |= {f"{APPLIED}/{one}": folder / one for one in (CONFIG, WEIGHTS)}
    texts = {}
    if together != config:
        raw = read_json(base / "config.json")
        raw["vocab_size"] = together.vocab_size
        raw["tie_word_embeddings"] = together.tie_word_embeddings
        texts["config.json"] = json.dumps(raw, indent=2) + "\n"
        del links["config.json"]
    templates = read_chat_templates(folder) or read_chat_templates(base)
    return _folder_of(name, links, texts, templates)


def _tokenizer_links(folder: Path, base: Path) -> dict[str, Path]:
    """Return the tokenizer's files, all of the adapter's where it has one, else the base's."""
    source = folder if (folder / "tokenizer.json").is_file() else base
    names = [name for name in TOKENIZER_FILES if name not in (*_OF_BASE, TEMPLATE)]
    return {name: source / name for name in names if (source / name).is_file()}


def _folder_of(
    name: str, links: dict[str, Path], texts: dict[str, str], templates: dict[str, str]
) -> Path:
    """Make the folder of these links and texts, if it is not there; whole or not at all."""
    targets = {one: os.path.abspath(target) for one, target in links.items()}
    root = cache_folder("adapters")
    if root is None:
        raise ValueError(
            f"{name}: an adapter and its base are opened in a folder of links, and there is no "
            "home to keep it in; set XDG_CACHE_HOME to an absolute path"
        )
    out = root / hash_json([targets, texts, templates])[:24] / name
    if out.is_dir():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=out.parent, prefix="."))
    try:
        (beside / APPLIED).mkdir()
        for one, target in targets.items():
            (beside / one).symlink_to(target)
        for one, text in texts.items():
            (beside / one).write_text(text, encoding="utf-8")
        if templates.keys() - {"default"}:
            (beside / OTHERS).mkdir()
        write_chat_templates(beside, templates)
        with _another_may_be_first():
            beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out


@contextlib.contextmanager
def _another_may_be_first() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


# --- what must fit --------------------------------------------------------------------------------


def check_fit(adapter: Adapter, base: Path, config: ModelConfig) -> ModelConfig:
    """Return the network that a base becomes, whose head and vocabulary may be the adapter's own.

    Raises ValueError, naming the tensor, where the adapter does not fit.
    """
    if config.is_quantised:
        raise ValueError(
            f"{base}: its weights are in 8 bits, to which no adapter can be added; name in "
            f"{adapter.config.file} the checkpoint that it was exported from"
        )
    if config.tie_word_embeddings and adapter.touches_tables:
        changed = adapter.whole.keys() | adapter.updates.keys()
        if adapter.config.ties and HEAD not in changed:
            raise ValueError(
                f"{adapter.config.file}: ensure_weight_tying is true, but only the embeddings are "
                f"stored; {MERGE}"
            )
        config = replace(config, tie_word_embeddings=False)
    if (table := adapter.whole.get(TABLE)) and len(table.shape) == 2:
        if table.shape[0] != config.vocab_size and HEAD not in adapter.whole:
            _refuse_shape(adapter, base, TABLE, table.shape, (config.vocab_size, *table.shape[1:]))
        config = replace(config, vocab_size=table.shape[0])
    shapes = {name: shape for name, (shape, _) in expected_tensors(config).items()}
    for name, entry in adapter.whole.items():
        _refuse_unknown(adapter, base, name, shapes)
        if entry.shape != shapes[name]:
            _refuse_shape(adapter, base, name, entry.shape, shapes[name])
        _refuse_type(adapter, name, entry.dtype)
    for name, update in adapter.updates.items():
        _refuse_unknown(adapter, base, name, shapes)
        rank = adapter.config.rank_of(name.removesuffix(".weight"))
        out_in = shapes[name][::-1] if update.is_table else shapes[name]
        if len(out_in) != 2 or update.is_table != (name == TABLE):
            raise ValueError(
                f"{adapter.config.file.with_name(WEIGHTS)}: factors of {name}, which is no such "
                f"matrix in its base {base}; {MERGE}"
            )
        for factor, expected in (
            (update.down, (rank, out_in[1])),
            (update.up, (out_in[0], rank)),
        ):
            if factor.shape != expected:
                _refuse_shape(adapter, base, factor.key, factor.shape, expected)
            _refuse_type(adapter, factor.key, factor.dtype)
    return config


def _refuse_unknown(adapter: Adapter, base: Path, name: str, shapes: dict[str, Shape]) -> None:
    if name not in shapes:
        raise ValueError(
            f"{adapter.config.file.with_name(WEIGHTS)}: changes {name}, which its base {base} does "
            f"not have; correct base_model_name_or_path in {CONFIG}, or {MERGE}"
        )


def _refuse_shape(adapter: Adapter, base: Path, name: str, shape: Shape, expected: Shape) -> None:
    raise ValueError(
        f"{adapter.config.file.with_name(WEIGHTS)}: {name} is {shape}, and to fit its base {base} "
        f"by the ranks of {CONFIG} it would be {expected}; correct base_model_name_or_path, or "
        "give the files that were saved together"
    )


def _refuse_type(adapter: Adapter, name: str, dtype: str) -> None:
    if dtype not in _STORED:
        raise ValueError(
            f"{adapter.config.file.with_name(WEIGHTS)}: {name} is stored as {dtype}, which is not "
            f"one of {', '.join(_STORED)}; save the adapter in bf16 or fp32"
        )
