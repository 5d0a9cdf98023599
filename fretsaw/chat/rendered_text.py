"""A rendered conversation -> token ids: its control tokens are the template's, never the user's.

A template can only write text, so a message that spells a control token would become one. Before
it is rendered, such a name in a message gets a guard inside, a character that no text holds. What
is rendered then has names of two kinds: bare ones are tokens, guarded ones are text. Bare ones are
encoded through stand-ins, private characters that a copy of the tokenizer knows as tokens, with
the same rules for the spaces around them; so ids are those that transformers gives the same text.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken

from fretsaw.chat.tokenizer import Tokenizer

GUARD = "\ufdd2"  # a noncharacter
_GUARDS = re.compile(re.escape(GUARD) + "|" + re.escape(json.dumps(GUARD)[1:-1]))
_PLANES = (0xF0000, 0x100000)  # of private characters; each has room for any vocabulary's


class RenderedText:
    """Encodes what a template has rendered from guarded messages."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._special = tokenizer, tokenizer.special_tokens()
        names = sorted(self._special, key=len, reverse=True)  # the longest that fits wins
        self._names = re.compile("|".join(map(re.escape, names)) or "(?!)")
        self._place = {name: place for place, name in enumerate(names)}
        self._copies: dict[int, tuple[tokenizers.Tokenizer, dict[int, int]]] = {}

    def guarded(self, value: Any) -> Any:
        """Return a copy of messages or tools with a guard in every control token's name.

        The names of fields are the client's too, where they are a tool's parameters.
        """
        if isinstance(value, str):
            bare = value.replace(GUARD, "")
            return self._names.sub(lambda name: name[0][:1] + GUARD + name[0][1:], bare)
        if isinstance(value, Mapping):
            return {self.guarded(key): self.guarded(inner) for key, inner in value.items()}
        return (
            [self.guarded(inner) for inner in value] if isinstance(value, list | tuple) else value
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a rendered text.

        Raises ValueError where its private characters leave none to stand in for control tokens.
        """
        top = len(self._place)
        plane = next((p for p in _PLANES if not any(p <= ord(c) < p + top for c in text)), None)
        if plane is None:
            raise ValueError(
                "messages: private characters (U+F0000 and U+100000 on), which stand in for "
                "control tokens here; leave them out"
            )
        standing_in = self._names.sub(lambda name: chr(plane + self._place[name[0]]), text)
        if plane not in self._copies:
            self._copies[plane] = self._copy(plane)
        copy, meant = self._copies[plane]
        ids = copy.encode(_GUARDS.sub("", standing_in), add_special_tokens=False).ids
        return [meant.get(id, id) for id in ids]

    def _copy(self, plane: int) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        """Return the tokenizer with a stand-in for every control token, and which each means."""
        copy = tokenizers.Tokenizer.from_str(self._tokenizer.to_json())
        copy.encode_special_tokens = True
        for name, place in self._place.items():
            token = self._special[name]
            rules = {key: getattr(token, key) for key in ("single_word", "lstrip", "rstrip")}
            copy.add_tokens(
                [AddedToken(chr(plane + place), **rules, normalized=False, special=False)]
            )
        meant = {}
        for name, place in self._place.items():
            own, stand_in = self._tokenizer.token_id(name), copy.token_to_id(chr(plane + place))
            if own is None or stand_in is None:
                raise AssertionError(f"{name}: a control token without an id")
            meant[stand_in] = own
        return copy, meant
