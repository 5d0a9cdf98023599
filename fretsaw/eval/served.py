"""A model behind an OpenAI-compatible server that is evaluated: conversations in, text out.

Answers are kept by what was asked, so a run that goes on pays for none twice.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fretsaw.chat.message import Message
from fretsaw.chat.reasoning import MODES, OPEN_TAG, Mode, with_reasoning
from fretsaw.chat.toggle import NO_THINK, THINK, TOGGLE
from fretsaw.client.openai import Client, Fault
from fretsaw.engine.sampling import Sampling
from fretsaw.eval.settings import EvalSettings
from fretsaw.grade.grader import Asks
from fretsaw.rollout.rows import Row
from fretsaw.rollout.sample import Sample, sample_seed
from fretsaw.tasks.answers import graded_rows
from fretsaw.tasks.problem import Problem
from fretsaw.tasks.prompt import Prompt

CHAT = "/v1/chat/completions"
REFUSED = (400, 413, 422)  # this request alone, such as a prompt beyond the context


class ServedModel:
    """A model at a URL, asked over chat completions."""

    def __init__(self, settings: EvalSettings, cache: Path, judge: Asks | None = None):
        """Raise ValueError where no server answers; the key is $OPENAI_API_KEY."""
        key = os.environ.get("OPENAI_API_KEY", "")
        self._client = Client(settings.url, api_key=key, may_repeat=True, cache=cache)
        self._toggle, self._judge = settings.url_toggle, judge
        self.model = settings.url_model or self._client.first_model()
        self.modes: tuple[Mode, ...] = MODES if self._toggle != "none" else ("off",)
        how = f"the mode is told by {self._toggle}" if self._toggle != "none" else "without a mode"
        self.manner = f"{self.model} at {self._client.url}, {how}"

    def answers(
        self,
        problems: Sequence[Problem],
        mode: Mode,
        sampling: Sampling,
        *,
        num_samples: int,
        first_group: int,
        on_answer: Callable[[int], None],
    ) -> list[Row]:
        """Return graded answers, problem by problem; `on_answer` is told how many have come.

        A request that the server refuses by itself is an answer that failed; any other fault is
        raised, and what came before it is kept.
        """
        asked = [
            (first_group + group, index, told(problem.messages, mode, self._toggle))
            for group, problem in enumerate(problems)
            for index in range(num_samples)
        ]
        own = [
            replace(sampling, seed=sample_seed(sampling.seed, group, index))
            for group, index, _ in asked
        ]
        bodies = [self._body(turns, one, mode) for (*_, turns), one in zip(asked, own, strict=True)]
        replies: dict[int, Any] = {}
        for number, reply in self._client.call_all(CHAT, bodies, refused=REFUSED):
            replies[number] = reply
            on_answer(len(replies))
        samples, texts = [], []
        for number, ((group, index, _), one) in enumerate(zip(asked, own, strict=True)):
            sample, text = self._read(replies[number], group, index, one)
            samples.append(sample)
            texts.append(text)
        prompts = [Prompt(problems[group - first_group], mode, ()) for group, *_ in asked]
        shown = ["\n\n".join(f"{m.role}: {m.content}" for m in turns) for *_, turns in asked]
        return graded_rows(samples, prompts, shown, texts, self._judge)

    def _body(self, turns: Sequence[Message], sampling: Sampling, mode: Mode) -> dict[str, Any]:
        switch = {"chat_template_kwargs": {"enable_thinking": mode == "on"}}
        return {
            "model": self.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in turns],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed % 2**63,
            **(switch if self._toggle == "enable_thinking" else {}),
        }

    def _read(self, reply: Any, group: int, index: int, sampling: Sampling) -> tuple[Sample, str]:
        text, num_tokens, reason, error = "", 0, "", None
        match reply:
            case Fault():
                error = str(reply)
            case {"choices": [{"message": {} as message, **choice}, *_]}:
                text = text_of_answer(message)
                reason = choice.get("finish_reason")
                num_tokens = int((reply.get("usage") or {}).get("completion_tokens") or 0)
            case _:
                raise Fault(f"{self._client.url}: a chat completion without a choice", status=200)
        sample = Sample(
            group=group,
            index=index,
            prompt_ids=(),
            token_ids=(),
            logprobs=(),
            num_tokens=num_tokens,
            is_finished=reason == "stop",
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            weight_version=0,
            error=error,
        )
        return sample, text


def text_of_answer(message: Mapping[str, Any]) -> str:
    """Return an answer with its trace in front, which servers tell apart under two names."""
    content = message.get("content") or ""
    reasoning = message.get("reasoning_content")
    reasoning = message.get("reasoning") if reasoning is None else reasoning
    if reasoning is None:
        return content
    return with_reasoning(reasoning, content) if content else f"{OPEN_TAG}\n{reasoning}"


def told(messages: Sequence[Message], mode: Mode, toggle: str) -> list[Message]:
    """Return a conversation whose system turn tells the mode, where that is how it is told."""
    lines = {
        "v1": f"{TOGGLE} {mode}",
        "v1.5": THINK if mode == "on" else NO_THINK,
    }
    if toggle not in lines:
        return list(messages)
    first, *others = messages
    if first.role != "system":
        return [Message("system", lines[toggle]), *messages]
    return [replace(first, content=f"{lines[toggle]}\n\n{first.content}"), *others]
