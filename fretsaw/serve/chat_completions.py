"""/v1/chat/completions: a conversation in, its next turn out, the reasoning apart."""

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.chat.tools import ToolCall, before_calls, parse_tool_calls, to_json
from fretsaw.engine.sequence import Event
from fretsaw.serve.answer import Answer, Pieces, Reading, ThinkingBudget
from fretsaw.serve.choices import respond
from fretsaw.serve.errors import bad_request
from fretsaw.serve.logprobs import chat_logprob
from fretsaw.serve.protocol import ChatRequest, Conversation
from fretsaw.serve.service import (
    Service,
    check_counts,
    check_hope,
    check_model,
    engine_requests,
    in_thread_if_long,
    room_after,
    stop_strings,
)

_PLACE = re.compile(r"messages\[\d+\]")  # what the renderer's errors begin with


def rendered(service: Service, body: Conversation, *, begins: bool = True) -> tuple[int, ...]:
    """Return a conversation's ids, with the header of the turn to write where one begins."""
    model, turns = service.model, body.turns
    if model.format is None:
        raise bad_request(
            f"messages: {model.name} has no chat format, it only continues text; send a prompt to "
            "/v1/completions",
            "messages",
        )
    for number, turn in enumerate(turns):
        check_hope(model, turn.content, f"messages[{number}].content")
    try:
        ids = model.format.prompt_ids if begins else model.format.conversation_ids
        return ids(turns, body.mode, body.offered_tools)
    except ValueError as error:
        place = _PLACE.match(str(error))
        raise bad_request(str(error), place[0] if place else "messages", "invalid_value") from error


async def complete_chat(service: Service, body: ChatRequest, http: HttpRequest) -> Response:
    """Answer a conversation, at once or as a stream."""
    check_model(service, body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs: send logprobs: true with it", "top_logprobs")
    if None not in (body.max_tokens, body.max_completion_tokens):
        raise bad_request("max_tokens: max_completion_tokens is given too; send one", "max_tokens")
    check_counts(service, body.n, 1)
    size = sum(len(turn.content) for turn in body.messages)
    prompt = await in_thread_if_long(size, lambda: rendered(service, body))
    named = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    room = room_after(service, prompt, getattr(body, named), prompt_param="messages", param=named)
    requests = engine_requests(
        service, body, [prompt], [room], num_top_logprobs=body.top_logprobs or 0
    )
    reading = Reading(
        stop_strings(service, body),
        is_split=body.separate_reasoning,
        spares_reasoning=body.stop_scope == "answer",
    )
    tokenizer, budget = service.model.tokenizer, body.thinking_budget
    if budget is None:
        budget = service.limits.thinking_budget
    opening = "" if service.model.format is None else service.model.format.opening(body.mode)
    watches = [
        None if budget is None else ThinkingBudget(tokenizer, budget, opening).feed
        for _ in requests
    ]
    has_tools = bool(body.offered_tools)
    choices = [
        ChatChoice(
            index, Answer(tokenizer, reading, opening=opening), tokenizer, body, has_tools=has_tools
        )
        for index in range(len(requests))
    ]
    return await respond(
        service,
        http,
        body,
        requests,
        choices,
        prefix="chatcmpl",
        kind="chat.completion.chunk" if body.stream else "chat.completion",
        num_prompt=len(prompt),
        watches=watches,
    )


@dataclass
class ChatChoice:
    """One answer as a message, or as the deltas of one."""

    index: int
    answer: Answer
    tokenizer: Tokenizer
    body: ChatRequest
    has_tools: bool
    parts: dict[str, list[str]] = field(default_factory=lambda: {"reasoning": [], "content": []})
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    call_id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:16]}_")
    num_sent: int = 0  # characters of the content, where calls may follow

    def take(self, pieces: Pieces, events: Sequence[Event]) -> None:
        """Take what the answer gained."""
        for kind, text in pieces:
            self.parts[kind].append(text)
        if self.body.logprobs:
            self.logprobs += [chat_logprob(self.tokenizer, event) for event in events]
        self.token_ids += [event.token_id for event in events if event.token_id is not None]

    def whole(self) -> dict[str, Any]:
        """Return the message and why it ended."""
        message, reason = self.message()
        return self._choice("message", message, reason)

    def opening(self) -> list[dict[str, Any]]:
        """Return what every message begins with."""
        return [self._choice("delta", {"role": "assistant", "content": ""})]

    def chunks(self, pieces: Pieces) -> list[dict[str, Any]]:
        """Return what pieces of text add to the message, and its end once it is there."""
        found = [self._choice("delta", delta) for delta in self.deltas(pieces)]
        if self.answer.finish_reason is not None:
            found.append(self._choice("delta", {}, self.message()[1]))
        return found

    def _choice(self, name: str, text: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        """Return a message or delta with what is told of the tokens since the last time."""
        entries, self.logprobs = self.logprobs, []
        ids, self.token_ids = self.token_ids, []
        return {
            "index": self.index,
            name: text,
            "logprobs": {"content": entries} if entries else None,
            **({"token_ids": ids} if self.body.return_token_ids else {}),
            "finish_reason": reason,
        }

    def message(self) -> tuple[dict[str, Any], str | None]:
        """Return the message as far as it has come, and why it ended."""
        reasoning, content = ("".join(self.parts[kind]) for kind in ("reasoning", "content"))
        calls: tuple[ToolCall, ...] = ()
        if self.has_tools:
            content, calls = parse_tool_calls(content)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if self.body.include_reasoning:
            has_trace = self.answer.num_reasoning_tokens > 0  # be it an empty one
            message |= _reasoning(reasoning if has_trace else None)
        reason = self.answer.finish_reason
        if calls:
            message["content"] = content or None
            message["tool_calls"] = [
                _call(call, f"{self.call_id}{i}") for i, call in enumerate(calls)
            ]
            reason = "tool_calls" if reason == "stop" else reason
        return message, reason

    def deltas(self, pieces: Pieces) -> list[dict[str, Any]]:
        """Return what pieces of text add to the message, never two kinds in one.

        Where tools are offered, content is withheld from where calls may begin.
        """
        found: list[dict[str, Any]] = []
        for kind, text in pieces:
            if kind == "reasoning":
                found += [_reasoning(text)] if self.body.include_reasoning else []
            elif not self.has_tools:
                found.append({"content": text})
        return found + self._content_before_calls() if self.has_tools else found

    def _content_before_calls(self) -> list[dict[str, Any]]:
        content, is_whole = "".join(self.parts["content"]), self.answer.finish_reason is not None
        message: dict[str, Any] = (
            self.message()[0] if is_whole else {"content": before_calls(content)}
        )
        text = (message["content"] or "")[self.num_sent :]
        self.num_sent += len(text)
        found: list[dict[str, Any]] = [{"content": text}] if text else []
        calls: list[dict[str, Any]] = message.get("tool_calls", [])
        return found + [{"tool_calls": [{"index": i, **call}]} for i, call in enumerate(calls)]


def _reasoning(text: str | None) -> dict[str, Any]:
    """Return reasoning under both names that clients read."""
    return {"reasoning": text, "reasoning_content": text}


def _call(call: ToolCall, id: str) -> dict[str, Any]:
    function = {"name": call.name, "arguments": to_json(call.arguments)}
    return {"id": id, "type": "function", "function": function}
