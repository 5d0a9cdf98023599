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

    `echoed` is the prompt as the response's text begins with it, `echoes_text` whether that is what
    the client wrote rather than what the ids `after` read as.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        after: Sequence[int] = (),
        echoed: str = "",
        echoes_text: bool = False,
        skip_special: bool = True,
    ):
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._echoed, self._echoes_text = echoed, echoes_text
        self._decoded = StreamDecoder(tokenizer, after=after, skip_special=skip_special)
        self._offset = len(echoed)  # in the text of the response, where the next token begins
        self._lists: dict[str, list[Any]] = self._empty()

    @staticmethod
    def _empty() -> dict[str, list[Any]]:
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def take_prompt(self, ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> None:
        """Add the prompt's tokens; the first has no log-probability, as nothing precedes it."""
        first, *others = self._prompt_offsets(ids)
        self._add(ids[0], None, (), first)
        for token, offset in zip(logprobs, others, strict=True):
            self._add(token.token_id, token.logprob, token.top, offset)

    def _prompt_offsets(self, ids: Sequence[int]) -> list[int]:
        """Return where the prompt's tokens begin in the text that echoes it."""
        echoed, offsets, at = self._echoed, [], 0
        decoded = StreamDecoder(self._tokenizer, skip_special=self._skip_special)
        for id in ids:
            offsets.append(min(at, len(echoed)))
            if self._echoes_text and self._tokenizer.is_special(id):
                # What lies between special tokens was encoded alone; a bos may be in no text.
                at += len(decoded.flush())
                name = self._tokenizer.token(id) or ""
                at += len(name) if echoed.startswith(name, at) else 0
                decoded = StreamDecoder(self._tokenizer, skip_special=self._skip_special)
            else:
                at += len(decoded.feed([id]))
        return offsets

    def take(self, event: Event) -> None:
        """Add a generated token."""
        if event.token_id is not None:
            self._add(event.token_id, event.logprob, event.top_logprobs, self._offset)
            self._offset += len(self._decoded.feed([event.token_id]))

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


def token_text(tokenizer: Tokenizer, id: int) -> str:
    """Return a token as text; part of a character as its bytes are written, `bytes:\\xc3`."""
    return _shown(tokenizer.token_bytes(id))


def _shown(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
