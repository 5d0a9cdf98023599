"""A GGUF file's vocabulary -> the tokenizer files of a folder in Hugging Face layout.

The way back from `vocabulary.py`: llama.cpp names its ways of splitting a text, and here each name
stands for the same way in tokenizer.json. One that is not known is refused by its name.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from fretsaw.chat.template import write_chat_templates
from fretsaw.checkpoint.vocabulary import (
    CONTROL,
    LLAMA_3_WORDS,
    NORMAL,
    PREFIX,
    SPACES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    WORDS_AND_DIGITS,
    Vocabulary,
)
from fretsaw.stage.whole import write_json

_NAMED = (CONTROL, USER_DEFINED, UNKNOWN)  # found in a text by their names


def _split(pattern: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def _bytes(*, use_regex: bool) -> dict[str, Any]:
    options = {"add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
    return {"type": "ByteLevel", **options}


# llama.cpp's name -> how a text is split, and whether whole words are looked up first
_SPLITS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "llama-bpe": ([_split(LLAMA_3_WORDS), _bytes(use_regex=False)], True),
    "qwen2": ([_split(WORDS_AND_DIGITS), _bytes(use_regex=False)], False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, _bytes(use_regex=True)], False),
    "gpt-2": ([_bytes(use_regex=True)], False),
    "default": (
        [
            {"type": "Punctuation", "behavior": "Contiguous"},
            _bytes(use_regex=True),
            {"type": "Digits", "individual_digits": False},
            _split("[0-9][0-9][0-9]"),
        ],
        False,
    ),
}


def write_vocabulary(vocabulary: Vocabulary, folder: Path, *, max_len: int) -> None:
    """Write tokenizer.json, its config and the chat templates into a folder.

    Raises ValueError for a way of splitting texts that is not known.
    """
    raw = _tokenizer_json(vocabulary)
    tokenizers.Tokenizer.from_str(json.dumps(raw)).save(str(folder / "tokenizer.json"))
    ids = {
        "bos_token": vocabulary.bos_token_id,
        "eos_token": next(iter(vocabulary.eos_token_ids), None),
        "unk_token": vocabulary.unk_token_id,
        "pad_token": vocabulary.pad_token_id,
    }
    names = {key: vocabulary.tokens[id] for key, id in ids.items() if id is not None}
    write_json(folder / "special_tokens_map.json", names)
    own = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.adds_bos,
        "add_eos_token": vocabulary.adds_eos,
        "model_max_length": max_len,
    }
    write_json(folder / "tokenizer_config.json", {**own, **names})
    write_chat_templates(folder, vocabulary.chat_templates)


def _tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what tokenizer.json says."""
    ids = range(_num_tokens(vocabulary))
    tokens, types = vocabulary.tokens, vocabulary.types
    added = [
        {
            **{"id": id, "content": tokens[id], "special": types[id] != USER_DEFINED},
            **{"single_word": False, "lstrip": False, "rstrip": False, "normalized": False},
        }
        for id in ids
        if types[id] in _NAMED
    ]
    words = {tokens[id]: id for id in ids}
    if len(words) < len(ids):
        raise ValueError("tokenizer.ggml.tokens: two tokens of one name; download the file again")
    model: dict[str, Any] = {
        **{"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False},
        **{"continuing_subword_prefix": None, "end_of_word_suffix": None, "byte_fallback": False},
        **{"ignore_merges": False, "vocab": words},
    }
    if vocabulary.model == "gpt2":
        splits, looks_up_words = _splits(vocabulary.pre)
        merges = [merge.split(" ", 1) for merge in vocabulary.merges]
        model |= {"ignore_merges": looks_up_words, "merges": merges}
        normalizer, decoder = None, _bytes(use_regex=True)
        splitting = splits[0] if len(splits) == 1 else {"type": "Sequence", "pretokenizers": splits}
    else:
        model |= {"byte_fallback": True, "fuse_unk": True, "merges": _merges(vocabulary, words)}
        if vocabulary.unk_token_id is not None:
            model["unk_token"] = tokens[vocabulary.unk_token_id]
        steps = [PREFIX, SPACES] if vocabulary.adds_space else [SPACES]
        normalizer = {"type": "Sequence", "normalizers": steps}
        splitting, decoder = None, _spaces_back(strips=vocabulary.adds_space)
    return {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": added},
        **{"normalizer": normalizer, "pre_tokenizer": splitting, "decoder": decoder},
        **{"post_processor": _around(vocabulary), "model": model},
    }


def _num_tokens(vocabulary: Vocabulary) -> int:
    """Return how many tokens there are but for those at the end that nothing stands for."""
    num = len(vocabulary.tokens)
    while num and vocabulary.types[num - 1] == UNUSED:
        num -= 1
    return num


def _splits(pre: str) -> tuple[list[dict[str, Any]], bool]:
    if pre not in _SPLITS:
        raise ValueError(
            f"tokenizer.ggml.pre: {pre!r}, a way of splitting texts that is not known here "
            f"({', '.join(_SPLITS)} are), so ids would differ; take the model's own folder with "
            "its tokenizer.json"
        )
    return _SPLITS[pre]


def _merges(vocabulary: Vocabulary, words: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the joins that scores stand for: the token with the highest score comes first."""
    joined = [
        (token, id)
        for token, id in words.items()
        if vocabulary.types[id] == NORMAL and len(token) > 1
    ]
    joined.sort(key=lambda pair: (-vocabulary.scores[pair[1]], pair[1]))
    merges: list[tuple[str, str]] = []
    for token, _ in joined:
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [(left, right) for left, right in cuts if left in words and right in words]
        merges += sorted(known, key=lambda pair: (words[pair[0]], words[pair[1]]))
    return merges


def _spaces_back(*, strips: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strips:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _around(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """Return what puts the tokens around a text that the file says belong there."""
    before = vocabulary.bos_token_id if vocabulary.adds_bos else None
    after = vocabulary.eos_token_ids[0] if vocabulary.adds_eos else None
    if before is None and after is None:
        return None
    names = {id: vocabulary.tokens[id] for id in (before, after) if id is not None}

    def text(letter: str, type_id: int) -> list[dict[str, Any]]:
        pieces: list[dict[str, Any]] = [{"Sequence": {"id": letter, "type_id": type_id}}]
        if before is not None:
            pieces.insert(0, {"SpecialToken": {"id": names[before], "type_id": type_id}})
        if after is not None:
            pieces.append({"SpecialToken": {"id": names[after], "type_id": type_id}})
        return pieces

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": {
            name: {"id": name, "ids": [id], "tokens": [name]} for id, name in names.items()
        },
    }
