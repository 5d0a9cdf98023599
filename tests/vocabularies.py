"""Tokenizers of the two kinds, without files: bytes under every token, and words with a space."""

import tokenizers
from tokenizers import decoders, models, normalizers

from fretsaw.chat.control_tokens import add_control_tokens
from fretsaw.chat.tokenizer import Tokenizer

TEXTS = ["<think>a</think>", "a is an end", "<TOOLCALL>[]</TOOLCALL>"]


def byte_level() -> Tokenizer:
    """Return one like Llama 3's."""
    tokenizer = Tokenizer.train(TEXTS * 3, 290)
    add_control_tokens(tokenizer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """Return one like Llama 2's: a space before every text, bytes for letters it lacks."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({"\u2581", "é", *"".join(TEXTS).replace(" ", "")})
    words = {("\u2581", "a"): "\u2581a", ("e", "n"): "en", ("en", "d"): "end"}
    vocabulary = {name: id for id, name in enumerate([*names, *letters, *words.values()])}
    inner = tokenizers.Tokenizer(
        models.BPE(vocabulary, list(words), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens(names[:3])
    tokenizer = Tokenizer(inner, bos_token_id=1, eos_token_ids=(2,))
    add_control_tokens(tokenizer)
    return tokenizer
