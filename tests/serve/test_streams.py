"""A stream's parts joined are the whole answer, wherever it is cut and however it comes in pieces.

Events are made up, so no model is needed: broken characters, tags and calls cut anywhere.
"""

import asyncio
import dataclasses
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import byte_level, sentencepiece

from fretsaw.chat.reasoning import split_reasoning
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import Event, Request, TokenLogprob
from fretsaw.serve.answer import Answer, Reading
from fretsaw.serve.chat_completions import ChatChoice
from fretsaw.serve.choices import DONE, AnswerChoice, Head, _gathered, _streamed, growth
from fretsaw.serve.completions import TextChoice
from fretsaw.serve.completions import begun as begun_text
from fretsaw.serve.engine_thread import Job
from fretsaw.serve.metrics import Metrics, Stopwatch
from fretsaw.serve.protocol import ChatRequest, CompletionRequest

VOCABULARIES = {"byte-level": byte_level(), "sentencepiece": sentencepiece()}
CALL = '<TOOLCALL>[{"name": "f", "arguments": {"x": 1}}]</TOOLCALL>'
TEXTS = ["<think>", "</think>", "<think>a</think>", "<think>\n\n</think>\n\n", "\n<think>\n"]
TEXTS += [CALL, CALL[:-12], "<TOOLCALL>", "<TOOL", CALL.replace("1", "NaN")]
TEXTS += ["\n\n", " ", "\n", "a", "ab", " end", "STOP", "é", "😀", "\ufffd", "<", "]</TOOLCALL>"]
STOPS = ["STOP", "OP e", "\n\n", "</think>", "<think>a</think>b", "é", "]</", " "]
BROKEN = [b"\xc3", b"\xe2\x82", b"\x80", b"\xf0\x9f\x98", b"\xa9", b"\xff"]
TOOL = {"type": "function", "function": {"name": "f"}}


@st.composite
def answers(draw: st.DrawFn, tokenizer: Tokenizer) -> list[Event]:
    """Return the events of an answer that is cut anywhere."""
    parts = st.sampled_from(TEXTS).map(lambda text: tuple(tokenizer.encode(text)))
    letters = st.sampled_from(TEXTS).map(
        lambda text: tuple(id for letter in text[:80] for id in tokenizer.encode(letter))
    )
    broken = st.integers(0, tokenizer.vocab_size - 1).map(lambda id: (id,))
    drawn = draw(
        st.lists(
            parts
            | parts
            | letters
            | broken
            | st.sampled_from(BROKEN).map(_ids_of_bytes(tokenizer)),
            min_size=1,
            max_size=8,
        )
    )
    ids = [id for part in drawn for id in part]
    reason = draw(st.sampled_from(["stop", "length"]))
    if reason == "length":
        ids = ids[: draw(st.integers(1, len(ids)))]
    else:
        ids.append(tokenizer.eos_token_ids[0])
    last = len(ids) - 1
    return [Event(0, id, -0.5, reason if i == last else None) for i, id in enumerate(ids)]


def cuts(events: Sequence[Event]) -> st.SearchStrategy[range]:
    """Return where the events are cut into what comes together."""
    sizes = st.sampled_from([1, 1, 2, 3, 7])
    return st.builds(lambda at, size: range(at, len(events), size), st.integers(0, 8), sizes)


def _ids_of_bytes(tokenizer: Tokenizer) -> Any:
    of = {tokenizer.token_bytes(id): id for id in reversed(range(tokenizer.vocab_size))}
    return lambda raw: tuple(of[bytes([byte])] for byte in raw)


class Played(Job):
    """Events as they come from an engine, in pieces."""

    def __init__(self, events: Sequence[Event], cuts: Sequence[int]):
        bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(events)}), len(events)]
        self._pieces = [
            [(0, event) for event in events[a:b]] for a, b in itertools.pairwise(bounds)
        ]

    async def events(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """Yield the pieces."""
        for piece in self._pieces:
            yield piece

    def drop(self, index: int) -> None:
        """Nothing runs."""


def whole(choice: AnswerChoice, events: Sequence[Event]) -> dict[str, Any]:
    """Return the choice of a response that comes at once."""
    job = Played(events, ())
    grown = growth(job, [choice], Stopwatch(Metrics(), 1))
    head = Head("id", "kind", "model", 0)
    return asyncio.run(_gathered(head, [choice], grown, 1))["choices"][0]


def streamed(
    choice: AnswerChoice, events: Sequence[Event], cuts: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the choices of a stream's parts."""

    async def read() -> list[bytes]:
        job = Played(events, cuts)
        grown = growth(job, [choice], Stopwatch(Metrics(), 1))
        head = Head("id", "kind", "model", 0)
        return [part async for part in _streamed(head, [choice], grown, 1, tells_usage=False)]

    raw = b"".join(asyncio.run(read()))
    assert raw.endswith(DONE)
    lines = raw.removesuffix(DONE).split(b"\n\n")[:-1]
    parts = [json.loads(line.removeprefix(b"data: ")) for line in lines]
    return [choice for part in parts for choice in part["choices"]]


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what a client makes of a stream of messages."""
    found: dict[str, Any] = {"content": "", "reasoning": "", "calls": {}, "entries": []}
    for part in parts:
        delta = part["delta"]
        assert not (delta.get("content") and delta.get("reasoning")), "two kinds in one delta"
        assert found.get("reason") is None, "nothing follows the end"
        found["content"] += delta.get("content") or ""
        found["reasoning"] += delta.get("reasoning") or ""
        assert delta.get("reasoning") == delta.get("reasoning_content")
        for call in delta.get("tool_calls", ()):
            known = found["calls"].setdefault(call["index"], {"name": "", "arguments": ""})
            for key in known:
                known[key] += call["function"][key]
        found["entries"] += (part["logprobs"] or {"content": []})["content"]
        found["reason"] = part["finish_reason"]
    return found


def told(choice: dict[str, Any]) -> dict[str, Any]:
    """Return the same of a whole message."""
    message = choice["message"]
    return {
        "content": message["content"] or "",
        "reasoning": message.get("reasoning") or "",
        "calls": {
            i: {key: call["function"][key] for key in ("name", "arguments")}
            for i, call in enumerate(message.get("tool_calls", ()))
        },
        "entries": (choice["logprobs"] or {"content": []})["content"],
        "reason": choice["finish_reason"],
    }


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize(("is_split", "has_tools"), itertools.product((True, False), repeat=2))
@settings(deadline=None, derandomize=True, max_examples=40)
@given(data=st.data())
def test_the_deltas_of_a_chat_are_its_message(
    kind: str, is_split: bool, has_tools: bool, data: st.DataObject
) -> None:
    tokenizer = VOCABULARIES[kind]
    events, spares = data.draw(answers(tokenizer)), data.draw(st.booleans())
    stop = tuple(data.draw(st.lists(st.sampled_from(STOPS), max_size=2)))
    body = ChatRequest.model_validate(
        {
            "messages": [{"role": "user", "content": "a"}],
            "logprobs": True,
            "separate_reasoning": is_split,
            "tools": [TOOL] if has_tools else [],
        }
    )
    reading = Reading(stop, is_split=is_split, spares_reasoning=spares)

    def begun() -> ChatChoice:
        return ChatChoice(0, Answer(tokenizer, reading), tokenizer, body, has_tools=has_tools)

    expected = told(whole(begun(), events))
    assert joined(streamed(begun(), events, data.draw(cuts(events)))) == expected
    if not stop and not has_tools:
        text = _text(tokenizer, events)
        if not is_split:
            assert expected["content"] == text
        elif not "<think>".startswith(text.strip()) or not text.strip():
            reasoning, content = split_reasoning(text)
            assert (expected["reasoning"], expected["content"]) == (reasoning or "", content)


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_reasoning_that_a_stop_string_held_back(kind: str) -> None:
    tokenizer = VOCABULARIES[kind]
    ids = tokenizer.encode("<think>a</think>c")
    last = len(ids) - 1
    events = [Event(0, id, -0.5, "length" if i == last else None) for i, id in enumerate(ids)]
    body = ChatRequest.model_validate({"messages": [{"role": "user", "content": "a"}]})
    reading = Reading(("<think>a</think>b",), is_split=True)
    answers = [Answer(tokenizer, reading) for _ in range(2)]
    first, second = (ChatChoice(0, one, tokenizer, body, has_tools=False) for one in answers)
    message = whole(first, events)["message"]
    assert (message["reasoning"], message["content"]) == ("a", "c")
    assert joined(streamed(second, events, range(len(events))))["reasoning"] == "a"
    assert answers[0].num_reasoning_tokens > 0


def _text(tokenizer: Tokenizer, events: Sequence[Event]) -> str:
    is_told = [event.finish_reason != "stop" for event in events]
    ids = [event.token_id for event in events if event.token_id is not None]
    return tokenizer.decode([id for id, told in zip(ids, is_told, strict=True) if told])


PROMPTS = ["a", " ab", "é end", "<s>a</s> b", "\n\na", "<|eot_id|>", "a<s> b", "😀 a", "<s>"]
SEVERAL = st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3).map("".join)


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize(("is_text", "echo"), itertools.product((True, False), repeat=2))
@settings(deadline=None, derandomize=True, max_examples=40)
@given(data=st.data())
def test_the_parts_of_a_completion_are_its_text(
    kind: str, is_text: bool, echo: bool, data: st.DataObject
) -> None:
    tokenizer = VOCABULARIES[kind]
    events, prompt = data.draw(answers(tokenizer)), data.draw(SEVERAL)
    stop = tuple(data.draw(st.lists(st.sampled_from(STOPS), max_size=2)))
    skips, parses, has_bos = (data.draw(st.booleans()) for _ in range(3))
    ids = tokenizer.encode_raw(prompt) if parses else tokenizer.encode(prompt)
    ids = [tokenizer.bos_token_id or 0, *ids] if has_bos else ids
    if not is_text:
        ids = ids[: data.draw(st.integers(1, len(ids)))]
    body = CompletionRequest.model_validate(
        {"prompt": prompt if is_text else ids, "echo": echo, "logprobs": 0}
        | {"parse_special": parses, "return_token_ids": True}
    )
    if echo:
        heard = tuple(TokenLogprob(id, -0.25) for id in ids[1:])
        events[0] = dataclasses.replace(events[0], prompt_logprobs=heard)
    reading, request = Reading(stop, skip_special=skips), Request(tuple(ids), Sampling())

    def begun() -> TextChoice:
        return begun_text(tokenizer, body, reading, 0, request)

    expected = whole(begun(), events)
    parts = streamed(begun(), events, data.draw(cuts(events)))
    assert "".join(part["text"] for part in parts) == expected["text"]
    assert parts[-1]["finish_reason"] == expected["finish_reason"]
    for name, values in expected["logprobs"].items():
        assert [value for part in parts for value in part["logprobs"][name]] == values
    assert [id for part in parts for id in part["token_ids"]] == expected["token_ids"]
    if not stop:
        _check_places(tokenizer, [*(ids if echo else ()), *expected["token_ids"]], expected)


def _check_places(tokenizer: Tokenizer, ids: Sequence[int], choice: dict[str, Any]) -> None:
    """Check that what lies between two offsets is the token's text, all of it and in order."""
    text, told = choice["text"], choice["logprobs"]
    bounds = [*told["text_offset"], len(text)]
    assert bounds[0] == 0
    assert bounds == sorted(bounds)
    for id, token, (begin, end) in zip(
        ids, told["tokens"], itertools.pairwise(bounds), strict=True
    ):
        between = text[begin:end]
        if token.startswith("bytes:"):
            assert len(between) <= 1
        elif tokenizer.is_special(id):
            assert between in ("", "\ufffd", token)
        elif token.startswith(" "):  # the space that is put before a text is none of it
            assert between in (token, token[1:])
        else:
            assert between == token


@pytest.mark.parametrize("name", ["stories260K", "babyllama-char105"])
@pytest.mark.parametrize(
    "text", ["Once upon a time", " lead two", "é 😀 x", "a<s>b</s>c<unk>", "a\r\nb", "", "𝄞\tq"]
)
def test_places_in_a_text_for_shared_tokenizers(data_folder: Path, name: str, text: str) -> None:
    folder = data_folder / "models" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    tokenizer = Tokenizer.from_folder(folder)
    for parses in (True, False):
        ids = tokenizer.encode_raw(text) if parses else tokenizer.encode(text)
        places = tokenizer.places(text, parse_special=parses)
        bounds = [*places, len(text)]
        assert len(places) == len(ids)
        assert bounds == sorted(bounds)
        for id, (begin, end) in zip(ids, itertools.pairwise(bounds), strict=True):
            shown, between = tokenizer.token_bytes(id), text[begin:end]
            if len(shown) > 1 and shown.isascii() and shown != b"<unk>":
                assert between in (shown.decode(), shown.decode()[1:])
            else:
                assert len(between) <= 1 or shown in (b" ", b"<unk>")
