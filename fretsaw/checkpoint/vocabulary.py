"""A tokenizer as llama.cpp wants it: its two kinds of byte pair encoding, recognised or refused.

llama.cpp does not read tokenizer.json: it has the ways of splitting a text built in, by name, and
takes tokens with merges ("gpt2", over bytes) or with scores ("llama", over characters). What is
recognised here gives the same ids there; anything else would give other ids without a word.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from fretsaw.chat.format import chat_format, text_ends
from fretsaw.chat.template import read_chat_templates
from fretsaw.chat.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types

LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS_AND_DIGITS = LLAMA_3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")  # ours, and Qwen 2's
# how a text is split, and whether whole words are looked up first -> llama.cpp's name for it
_BYTE_LEVEL = {
    (("Split", LLAMA_3_WORDS), ("ByteLevel", "bare"), True): "llama-bpe",
    (("Split", WORDS_AND_DIGITS), ("ByteLevel", "bare"), False): "qwen2",
    (("Digits", "each"), ("ByteLevel", "words"), False): "smollm",
    (("ByteLevel", "words"), False): "gpt-2",
}
PREFIX = {"type": "Prepend", "prepend": "▁"}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer, and of the texts it is used on."""

    model: Literal["gpt2", "llama"]
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()  # gpt2 only
    scores: tuple[float, ...] = ()  # llama only
    adds_space: bool = False  # llama only: a space is put before the text
    adds_bos: bool
    adds_eos: bool = False
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]  # the tokenizer's own first
    unk_token_id: int | None
    pad_token_id: int | None = None
    chat_templates: Mapping[str, str]  # by name; the usual one is "default"


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Read a checkpoint's tokenizer for a model that embeds `size` tokens.

    Raises ValueError where llama.cpp would give other ids, or there are more tokens than `size`.
    """
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, but the model embeds "
            f"{size}; give the tokenizer the model was trained with"
        )
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    own = _read(folder / "tokenizer_config.json")
    model = raw["model"]
    added = {entry["id"]: entry for entry in raw.get("added_tokens") or ()}
    unknown = model.get("vocab", {}).get(model.get("unk_token"))

    def kind(id: int, token: str | None) -> int:
        if token is None:
            return UNUSED
        if id == unknown:
            return UNKNOWN
        if id in added:
            return CONTROL if added[id]["special"] else USER_DEFINED
        return BYTE if model.get("byte_fallback") and _is_byte(token) else NORMAL

    names = [tokenizer.token(id) for id in range(size)]
    bos = tokenizer.bos_token_id
    begin, end = tokenizer.begin_ids, tokenizer.end_ids
    if begin not in ((), (bos,)) or end not in ((), tokenizer.eos_token_ids[:1]):
        around = [tokenizer.token(id) for id in (*begin, *end)]
        raise ValueError(
            f"{folder / 'tokenizer.json'}: its post-processor puts {', '.join(map(repr, around))} "
            "around a text, but llama.cpp only its begin and end tokens; export with --format "
            "decilm"
        )
    shared: dict[str, Any] = {
        "tokens": tuple(f"[PAD{i}]" if name is None else name for i, name in enumerate(names)),
        "types": tuple(kind(id, name) for id, name in enumerate(names)),
        "adds_bos": bool(begin),
        "adds_eos": bool(end),
        "bos_token_id": bos,
        "eos_token_ids": text_ends(tokenizer, chat_format(folder, tokenizer)),
        "unk_token_id": unknown,
        "pad_token_id": _named(tokenizer, own.get("pad_token")),
        "chat_templates": read_chat_templates(folder),
    }
    pre = _byte_level_name(raw)
    if pre is not None:
        merges = tuple(" ".join(pair) for pair in _pairs(model))
        return Vocabulary(model="gpt2", pre=pre, merges=merges, **shared)
    if _is_character_level(raw):
        adds_space = raw["normalizer"]["normalizers"][0] == PREFIX
        scores = _scores(model, shared["tokens"])
        return Vocabulary(
            model="llama", pre="default", scores=scores, adds_space=adds_space, **shared
        )
    raise ValueError(
        f"{folder / 'tokenizer.json'}: llama.cpp has no tokenizer that splits texts as this one "
        "does, so its ids would differ; export with --format decilm, or train on a byte-level BPE "
        "(ours, Llama 3's, GPT-2's, SmolLM's) or a SentencePiece BPE with byte fallback"
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _named(tokenizer: Tokenizer, token: Any) -> int | None:
    name = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_id(name) if isinstance(name, str) else None


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the merges, which older files spell as one string each."""
    merges = model["merges"]
    return [tuple(m.split(" ", 1) if isinstance(m, str) else m) for m in merges]  # type: ignore[misc]


# --- over bytes -----------------------------------------------------------------------------------


def _byte_level_name(raw: dict[str, Any]) -> str | None:
    model = raw["model"]
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    is_plain = model["type"] == "BPE" and not any(model.get(key) for key in options)
    if not is_plain or raw.get("normalizer"):
        return None
    splitting = raw.get("pre_tokenizer") or {}
    steps = splitting.get("pretokenizers", [splitting])
    shape = (*map(_step, steps), bool(model.get("ignore_merges")))
    return _BYTE_LEVEL.get(shape)


def _step(step: dict[str, Any]) -> tuple[str, str]:
    match step:
        case {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated"}:
            return "Split", words
        case {"type": "Digits", "individual_digits": True}:
            return "Digits", "each"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "ByteLevel", "words" if step.get("use_regex", True) else "bare"
    return str(step.get("type")), "other"


# --- over characters ------------------------------------------------------------------------------


def _is_character_level(raw: dict[str, Any]) -> bool:
    model, normalizer = raw["model"], raw.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    return (
        model["type"] == "BPE"
        and bool(model.get("byte_fallback"))
        and not model.get("dropout")
        and not raw.get("pre_tokenizer")
        and steps in ([PREFIX, SPACES], [SPACES])
    )


def _scores(model: dict[str, Any], tokens: tuple[str, ...]) -> tuple[float, ...]:
    """Return scores under which the best join of two tokens is the first merge of the list.

    llama.cpp joins any two neighbours whose text is a token, the highest score first. So a token's
    score is minus the rank of its merges, which must stand together and be all there are.
    """
    pairs = _pairs(model)
    joined = [left + right for left, right in pairs]
    order = [joined[0], *(b for a, b in pairwise(joined) if a != b)] if joined else []
    vocab, known = model["vocab"], set(pairs)
    unlisted = (
        (token[:cut], token[cut:])
        for token in order
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab and (token[:cut], token[cut:]) not in known
    )
    missing = next(unlisted, None)
    if missing is not None or len(order) != len(set(order)):
        what = "{!r} + {!r} is no merge".format(*missing) if missing else "merges interleave"
        raise ValueError(
            f"tokenizer.json: {what}, so no scores give llama.cpp the same ids; "
            "export with --format decilm"
        )
    ranks = {token: rank for rank, token in enumerate(order)}
    return tuple(-float(ranks.get(token, len(order))) for token in tokens)
