"""Text <-> token ids: `tokenizer.json` read, trained and written through the tokenizers library.

`encode` gives the ids of the text and nothing else: no begin-of-text is added (`text_ids` does),
and text that happens to spell a special token stays text, so what a user types never becomes a
control token.
"""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from fretsaw.stage.whole import write_json

_REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 character decodes to
_LONG = 4096  # characters
_BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")  # a single byte in a SentencePiece vocabulary
# How Llama 3 splits a text before merging, but for digits, which stand alone here: contractions,
# words with what comes before them, digits, other signs with the line ends after them, line ends,
# spaces. So a text that follows a blank line has the ids that it has alone.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_NOT_WHOLE = (
    "the text holds half of a surrogate pair, or bytes that are not UTF-8; write whole characters "
    "in UTF-8"
)


def _byte_level_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level token's name stands for.

    Printable Latin-1 stands for itself; the other bytes, in order, for the characters from 256 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


_BYTE_OF = _byte_level_alphabet()


class Tokenizer:
    """A vocabulary with its special ids; the first of `eos_token_ids` is the tokenizer's own."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None = None,
        eos_token_ids: Sequence[int] = (),
    ):
        inner.encode_special_tokens = True
        self._inner = inner
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(eos_token_ids)
        self._find_special()

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read a checkpoint's tokenizer.json, and the special ids from the files beside it."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(
                f"{folder}: no tokenizer.json; give a folder that has one, or convert its "
                "tokenizer.model with transformers (AutoTokenizer(...).save_pretrained)"
            )
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path}: not a tokenizer ({error}); download it again") from error
        own = {**_read(folder, "special_tokens_map.json"), **_read(folder, "tokenizer_config.json")}
        model, generation = _read(folder, "config.json"), _read(folder, "generation_config.json")
        bos = _named_id(inner, own.get("bos_token"))
        eos = [_named_id(inner, own.get("eos_token"))]
        eos += [id for raw in (generation, model) for id in _as_list(raw.get("eos_token_id"))]
        return cls(
            inner,
            bos_token_id=model.get("bos_token_id") if bos is None else bos,
            eos_token_ids=list(dict.fromkeys(id for id in eos if id is not None)),
        )

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = ("<s>", "</s>"),
    ) -> "Tokenizer":
        """Train a byte-level BPE whose digits stand alone; the same texts give the same vocabulary.

        The first special token begins a text, the second ends it.
        """
        smallest = 256 + len(special_tokens)
        if vocab_size < smallest:
            raise ValueError(
                f"tokenizer: vocab_size {vocab_size} is below the {smallest} that the bytes and "
                f"special tokens take; use at least {smallest}"
            )
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(special_tokens),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        ids = range(len(special_tokens[:2]))  # the trainer numbers them first, in order
        if ids:  # what other software puts before a text, as we do
            begin = special_tokens[0]
            inner.post_processor = processors.TemplateProcessing(
                single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, 0)]
            )
        return cls(inner, bos_token_id=ids[0] if ids else None, eos_token_ids=ids[1:])

    def add_special_tokens(self, tokens: Sequence[str]) -> None:
        """Add tokens that text never encodes to; those that are there already stay as they are."""
        self._inner.add_special_tokens(list(tokens))
        self._find_special()

    def _find_special(self) -> None:
        added = self._inner.get_added_tokens_decoder()
        self._added_ids = frozenset(added)  # their names are their text
        self._special_ids = {token.content: id for id, token in added.items() if token.special}
        names = sorted(self._special_ids, key=len, reverse=True)  # the longest that fits wins
        self._special_names = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")

    def end_texts_with(self, token: str) -> None:
        """Make a token the first of those that end a text."""
        id = self.token_id(token)
        assert id is not None, f"{token}: the tokenizer has no such token"
        others = (other for other in self.eos_token_ids if other != id)
        self.eos_token_ids = (id, *others)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    @functools.cached_property
    def begin_ids(self) -> tuple[int, ...]:
        """What begins a plain text: what tokenizer.json's post-processor puts before it.

        That alone counts, as in transformers 5; a begin-of-text token that has a name begins texts
        only where it is put before them.
        """
        return self._around[0]

    @functools.cached_property
    def end_ids(self) -> tuple[int, ...]:
        """What the post-processor puts after a text."""
        return self._around[1]

    @functools.cached_property
    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        added = self._inner.encode("", add_special_tokens=True).ids
        text = self._inner.encode("a", add_special_tokens=False).ids  # may have no ids
        whole = self._inner.encode("a", add_special_tokens=True).ids
        places = range(len(added), -1, -1)
        at = next((i for i in places if whole == [*added[:i], *text, *added[i:]]), len(added))
        return tuple(added[:at]), tuple(added[at:])

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a plain text to go on from, with what begins it."""
        return (*self.begin_ids, *self.encode(text))

    def encode(self, text: str) -> list[int]:
        """Return the ids of the text alone; raise ValueError where it is no Unicode text."""
        if len(text) > _LONG:  # a batch lets other threads run meanwhile, and costs a little more
            return self.encode_batch([text])[0]
        try:
            return self._inner.encode(text, add_special_tokens=False).ids
        except TypeError:  # how the library refuses half of a surrogate pair
            raise ValueError(_NOT_WHOLE) from None

    def encode_raw(self, text: str) -> list[int]:
        """Return the ids of a text in which the names of special tokens stand for these tokens."""
        ids: list[int] = []
        for piece in self._special_names.split(text):
            id = self._special_ids.get(piece)
            ids += self.encode(piece) if id is None else [id]
        return ids

    def places(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Return where in the text each of its tokens begins; names may stand for special tokens.

        All parts of a character begin where it does.
        """
        places, at = [], 0
        for piece in self._special_names.split(text) if parse_special else [text]:
            is_special = parse_special and piece in self._special_ids
            places += [at + place for place in ([0] if is_special else self._places(piece))]
            at += len(piece)
        return places

    def _places(self, text: str) -> list[int]:
        encoding = self._inner.encode(text, add_special_tokens=False)
        if not self._is_byte_level:
            return [begin for begin, _ in encoding.offsets]
        # The offsets of these leave out spaces, but their bytes are the text's.
        of_byte = [i for i, character in enumerate(text) for _ in character.encode()]
        begins = itertools.accumulate((len(self.token_bytes(id)) for id in encoding.ids), initial=0)
        return [of_byte[byte] if byte < len(of_byte) else len(text) for byte in begins][:-1]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of every text, computed in parallel."""
        try:
            encoded = self._inner.encode_batch(texts, add_special_tokens=False)
        except TypeError:
            raise ValueError(_NOT_WHOLE) from None
        return [one.ids for one in encoded]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of the ids; a broken UTF-8 character is one replacement mark."""
        text = self._inner.decode(ids, skip_special_tokens=skip_special)
        if _REPLACEMENT not in text or self._is_byte_level:
            return text
        # SentencePiece's decoder gives a mark for every byte, whole characters beside it included.
        names = [name for id in ids if (name := self.token(id)) is not None]
        if skip_special:
            names = [name for name in names if name not in self._special_ids]
        decoder = self._inner.decoder
        return text if decoder is None else decoder.decode(_with_marks(names))

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its name, such as `<s>`; None if there is none."""
        return self._inner.token_to_id(token)

    def token(self, id: int) -> str | None:
        """Return the name of a token by its id; None if there is none."""
        return self._inner.id_to_token(id)

    def is_special(self, id: int) -> bool:
        """Whether a token is one that text never encodes to."""
        return self.token(id) in self._special_ids

    def special_tokens(self) -> dict[str, tokenizers.AddedToken]:
        """Return the tokens that text never encodes to, by name, with the rules around them."""
        added = self._inner.get_added_tokens_decoder().values()
        return {token.content: token for token in added if token.special}

    def to_json(self) -> str:
        """Return what tokenizer.json says."""
        return self._inner.to_str()

    def token_bytes(self, id: int) -> bytes:
        """Return what one token stands for, be it part of a character; a special token's name."""
        name = self.token(id)
        if name is None or id in self._added_ids:
            return (name or "").encode()
        if self._is_byte_level:
            return bytes(_BYTE_OF[c] for c in name)
        byte = _BYTE_NAME.fullmatch(name)
        return bytes([int(byte[1], 16)]) if byte else name.replace("\u2581", " ").encode()

    @functools.cached_property
    def _is_byte_level(self) -> bool:
        return b'"ByteLevel"' in self._inner.decoder.__getstate__()

    def save(self, folder: Path, kept: Mapping[str, Any] = {}) -> None:
        """Write tokenizer.json and what transformers' AutoTokenizer needs to open it.

        `kept` are settings that stand in tokenizer_config.json besides, such as a padding token.
        """
        named = {"bos_token": self.bos_token_id}
        named["eos_token"] = self.eos_token_ids[0] if self.eos_token_ids else None
        names = {key: self.token(id) for key, id in named.items() if id is not None}
        self._inner.save(str(folder / "tokenizer.json"))
        others = {key: value for key, value in kept.items() if key.endswith("_token")}
        others = {key: value for key, value in others.items() if isinstance(value, str | dict)}
        write_json(folder / "special_tokens_map.json", others | names)
        own = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        write_json(folder / "tokenizer_config.json", {**own, **kept, **names})


class StreamDecoder:
    """Turns ids into text as they come; no piece ends within a UTF-8 character.

    The pieces and `flush`, joined, are the text of all ids, as it continues the text of `after` (a
    prompt). A token's text can depend on the one before it: some tokenizers drop the space that
    begins a text. So each piece is what the last tokens' text gains when the new ones follow.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, after: Sequence[int] = (), skip_special: bool = True
    ):
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._ids = list(after[-16:])  # those of the last piece, then those not yet emitted
        self._num_emitted = len(self._ids)
        self.held = ""  # the text that is not certain yet: it ends within a character

    def feed(self, ids: Iterable[int]) -> str:
        """Take more ids; return the text that is now certain, possibly none."""
        self._ids.extend(ids)
        piece = self._pending()
        self.held = piece if piece.endswith(_REPLACEMENT) else ""
        return "" if self.held else self._emit(piece)

    def flush(self) -> str:
        """Return what is left at the end, an unfinished character included."""
        self.held = ""
        return self._emit(self._pending())

    def _pending(self) -> str:
        emitted = self._tokenizer.decode(self._ids[: self._num_emitted], self._skip_special)
        return self._tokenizer.decode(self._ids, self._skip_special)[len(emitted) :]

    def _emit(self, piece: str) -> str:
        if piece:
            self._ids = self._ids[self._num_emitted :]
            self._num_emitted = len(self._ids)
        return piece


def _with_marks(names: Sequence[str]) -> list[str]:
    """Return tokens with one mark in place of the bytes that are no whole character."""
    marked: list[str] = []
    for is_byte, run in itertools.groupby(names, lambda name: bool(_BYTE_NAME.fullmatch(name))):
        if not is_byte:
            marked += run
            continue
        text = bytes(int(name[3:5], 16) for name in run).decode(errors="replace")
        for character in text:
            is_whole = character != _REPLACEMENT
            marked += (
                [f"<0x{byte:02X}>" for byte in character.encode()] if is_whole else [character]
            )
    return marked


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: neither JSON nor UTF-8
        raise ValueError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object; download it again")
    return value


def _named_id(inner: tokenizers.Tokenizer, token: str | Mapping[str, Any] | None) -> int | None:
    content = token.get("content") if isinstance(token, Mapping) else token
    return inner.token_to_id(content) if isinstance(content, str) else None


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else ids


def hash_vocabulary(folder: Path) -> str | None:
    """Hash what every id stands for, which does not depend on how the file was written."""
    if not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.from_folder(folder)
    tokens = [tokenizer.token(id) for id in range(tokenizer.vocab_size)]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
