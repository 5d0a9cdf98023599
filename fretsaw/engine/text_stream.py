"""Token ids -> text as it comes, up to where a stop string begins."""

from collections.abc import Iterable, Sequence

from fretsaw.chat.tokenizer import StreamDecoder, Tokenizer


class TextStream:
    """Turns a sequence's ids into text, and tells where a stop string ends it.

    Text that may be the beginning of a stop string is held back until that is decided, and no piece
    ends within a UTF-8 character. The stop string that is complete first wins; it is no part of the
    text. What comes out does not depend on how the ids were cut into feeds.

    `spare` is a pair of tags: where the text begins with the first, no stop string counts before
    the second, nor in the blank that follows it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        after: Sequence[int] = (),
        spare: tuple[str, str] | None = None,
        skip_special: bool = True,
        opening: str = "",  # what stands before it and is no part of it, such as the first tag
    ):
        assert all(stop), "an empty stop string would end every text at once"
        self._decoded = StreamDecoder(tokenizer, after=after, skip_special=skip_special)
        self._stop = tuple(stop)
        self._tags = spare if stop else None
        self._place = "before" if self._tags else "after"  # before, within or after the tags
        if self._tags and opening.lstrip().startswith(self._tags[0]):
            self._place = "within"
        self._held = ""
        self.stopped_by: str | None = None

    def feed(self, token_ids: Iterable[int]) -> str:
        """Take more ids; return the text that is now certain, possibly none."""
        return self._pass(self._decoded.feed(token_ids))

    def flush(self) -> str:
        """Return what is left at the end of the sequence, a begun stop string included."""
        text = self._pass(self._decoded.flush())
        if self._place == "before":  # too short to be the tag that it could have begun
            self._place, self._tags = "after", None
            text += self._pass_stops()
        if self.stopped_by is None:
            text, self._held = text + self._held, ""
        return text

    def _pass(self, text: str) -> str:
        if self.stopped_by is not None:
            return ""
        self._held += text
        passed = self._pass_tags(*self._tags) if self._tags else ""
        return passed + self._pass_stops() if self._place == "after" else passed

    def _pass_tags(self, opening: str, closing: str) -> str:
        """Return the text in which no stop string counts, as far as it has come."""
        if self._place == "before":
            begun = self._held.lstrip()
            if opening.startswith(begun[: len(opening)]) and len(begun) < len(opening):
                return ""
            self._place = "within" if begun.startswith(opening) else "after"
            if self._place == "after":
                self._tags = None
                return ""
        passed = ""
        if self._place == "within":
            at = self._held.find(closing)
            if at < 0:
                return self._release(len(self._held) - _begun(self._held, (closing,)))
            passed, self._place = self._release(at + len(closing)), "after"
        blank = len(self._held) - len(self._held.lstrip())
        if blank < len(self._held):
            self._tags = None
        return passed + self._release(blank)

    def _pass_stops(self) -> str:
        found = [(at + len(s), -len(s), s) for s in self._stop if (at := self._held.find(s)) >= 0]
        if not found:
            return self._release(len(self._held) - _begun(self._held, self._stop))
        end, length, self.stopped_by = min(found)
        text, self._held = self._held[: end + length], ""
        return text

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text


def _begun(text: str, strings: Sequence[str]) -> int:
    """Return the length of the longest end of `text` that begins, and only begins, a string."""
    for length in range(min(len(text), max(map(len, strings), default=0) - 1), 0, -1):
        tail = text[-length:]
        if any(len(string) > length and string.startswith(tail) for string in strings):
            return length
    return 0
