"""Log-probabilities in the two shapes of OpenAI's API."""

from collections.abc import Sequence
from typing import Any

from fretsaw.chat.tokenizer import StreamDecoder, Tokenizer
from fretsaw.engine.sequence import Event, TokenLogprob
from fretsaw.serve.answer import is_forced
from fretsaw.serve.engine_thread import FORCED_LOGPROB


def chat_logprob(tokenizer: Tokenizer, event: Event) -> dict[str, Any]:
    """Return one token's entry of a chat completion's `logprobs.content`."""
    assert event.token_id is not None, "a chat completion has at least one token"
    entry = _entry(tokenizer, event.token_id, event.logprob)
    entry["top_logprobs"] = [_entry(tokenizer, id, logprob) for id, logprob in event.top_logprobs]
    return entry | {"forced": True} if is_forced(event) else entry


def _entry(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    raw = tokenizer.token_bytes(id)
    return {"token": _shown(raw), "logprob": finite(logprob), "bytes": list(raw)}


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can hold: OpenAI's lowest in place of minus infinity."""
    return max(logprob, FORCED_LOGPROB)


class CompletionLogprobs:
    """The four parallel lists of a completion, token by token.

    `echoed` is the prompt as the response's text begins with it; `places` is where the prompt's
    tokens begin in it, where that is known: of a text that the client wrote.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        after: Sequence[int] = (),
        echoed: str = "",
        places: Sequence[int] | None = None,
        skip_special: bool = True,
    ):
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._echoed, self._prompt_places = echoed, places
        self._places = _Places(
            StreamDecoder(tokenizer, after=after, skip_special=skip_special), len(echoed)
        )
        self._lists: dict[str, list[Any]] = self._empty()

    @staticmethod
    def _empty() -> dict[str, list[Any]]:
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def take_prompt(self, ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> None:
        """Add the prompt's tokens; the first has no log-probability, as nothing precedes it."""
        places = self._prompt_places
        if places is None:
            read = _Places(StreamDecoder(self._tokenizer, skip_special=self._skip_special))
            places = [read.of(id) for id in ids]
        first, *others = (min(place, len(self._echoed)) for place in places)
        self._add(ids[0], None, (), first)
        for token, place in zip(logprobs, others, strict=True):
            self._add(token.token_id, token.logprob, token.top, place)

    def take(self, event: Event) -> None:
        """Add a generated token."""
        if event.token_id is not None:
            place = self._places.of(event.token_id)
            self._add(event.token_id, event.logprob, event.top_logprobs, place)

    def drain(self) -> dict[str, list[Any]]:
        """Return what was added since the last time."""
        lists, self._lists = self._lists, self._empty()
        return lists

    def _add(
        self, id: int, logprob: float | None, top: Sequence[tuple[int, float]], offset: int
    ) -> None:
        lists, raw = self._lists, self._tokenizer.token_bytes(id)
        lists["tokens"].append(_shown(raw))
        lists["token_logprobs"].append(None if logprob is None else finite(logprob))
        lists["text_offset"].append(offset)
        if logprob is None:
            lists["top_logprobs"].append(None)
            return
        best: dict[str, float] = {}
        for other, its in [*top, (id, logprob)]:
            text = token_text(self._tokenizer, other)
            best[text] = finite(max(its, best.get(text, its)))  # two tokens may read alike
        lists["top_logprobs"].append(best)


class _Places:
    """Tells where tokens begin in a text, as they come."""

    def __init__(self, decoded: StreamDecoder, begin: int = 0):
        self._decoded, self._end = decoded, begin  # of the text that is certain

    def of(self, id: int) -> int:
        """Take the next token; return where its text begins, part of a character with the whole."""
        held = self._decoded.held
        piece = self._decoded.feed([id])
        text = piece or self._decoded.held
        place = self._end + len(held)
        if held and not (len(text) > len(held) and text.startswith(held)):
            place -= 1  # it goes on with the character that the last one left unfinished
        self._end += len(piece)
        return place


def token_text(tokenizer: Tokenizer, id: int) -> str:
    """Return a token as text; part of a character as its bytes are written, `bytes:\\xc3`."""
    return _shown(tokenizer.token_bytes(id))


def _shown(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
