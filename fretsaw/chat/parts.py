"""The parts of an answer's tokens: its trace, what it says, the calls it makes, what ends it."""

from collections.abc import Sequence
from itertools import accumulate

from fretsaw.chat.message import Message
from fretsaw.chat.reasoning import CLOSE_TAG, without_reasoning
from fretsaw.chat.tokenizer import Tokenizer


def answer_parts(
    tokenizer: Tokenizer, token_ids: Sequence[int], message: Message
) -> tuple[int, int]:
    """Return how many tokens of a rendered answer are its trace, and how many its calls.

    The trace stands at the beginning, its tags included; the calls stand after the text, before the
    last token, which ends the turn. A token that lies in two parts belongs to the one it begins in.
    """
    if not message.tool_calls and message.reasoning is None and CLOSE_TAG not in message.content:
        return 0, 0
    pieces = [tokenizer.token_bytes(id) for id in token_ids]
    written, starts = b"".join(pieces), [0, *accumulate(map(len, pieces))]
    closing = written.find(CLOSE_TAG.encode())
    answer_at = 0 if closing < 0 else closing + len(CLOSE_TAG)
    num_thinking = sum(start < answer_at for start in starts[:-1])
    if not message.tool_calls:
        return num_thinking, 0
    said = without_reasoning(message.content).encode()
    calls_at = max(answer_at, written.find(said, answer_at) + len(said))
    return num_thinking, sum(start >= calls_at for start in starts[:-2])
