"""A model at a URL that is asked for judgements."""

import os
from collections.abc import Sequence
from pathlib import Path

from fretsaw.client.judge_settings import JudgeSettings
from fretsaw.client.openai import Client, Fault

CHAT = "/v1/chat/completions"
ANY_STATUS = range(600)  # whatever fails is one judgement's own failure


class Judge:
    """A model at a URL that is asked for judgements; `cache` keeps them by what was asked."""

    def __init__(self, settings: JudgeSettings, cache: Path | None = None):
        """Raise ValueError where no server answers."""
        self._settings = settings
        self._client = Client(
            settings.judge_url,
            api_key=os.environ.get("JUDGE_API_KEY", ""),
            deadline_s=settings.judge_deadline_s,
            may_repeat=True,
            cache=cache,
        )
        self.model = settings.judge_model or self._client.first_model()
        self.votes = settings.judge_votes

    def ask(self, asked: Sequence[tuple[str, str]]) -> list[list[str | Fault]]:
        """Return the replies to (system text, prompt) pairs, one a vote.

        One that failed is its `Fault`; raises the first where all did.
        """
        bodies = [self._body(*pair, seed=vote) for pair in asked for vote in range(self.votes)]
        replies: list[str | Fault] = [""] * len(bodies)
        for number, reply in self._client.call_all(CHAT, bodies, refused=ANY_STATUS):
            replies[number] = _text(reply)
        faults = [reply for reply in replies if isinstance(reply, Fault)]
        if faults and len(faults) == len(replies):
            raise faults[0]
        return [replies[at : at + self.votes] for at in range(0, len(replies), self.votes)]

    def _body(self, system: str, prompt: str, *, seed: int) -> dict:
        turns = [{"role": "system", "content": system}] if system else []
        return {
            "model": self.model,
            "messages": [*turns, {"role": "user", "content": prompt}],
            "max_tokens": self._settings.judge_max_tokens,
            "temperature": self._settings.judge_temperature,
            "seed": seed,
        }


def _text(reply: object) -> str | Fault:
    match reply:
        case Fault():
            return reply
        case {"choices": [{"message": {"content": str(content)}}, *_]}:
            return content
    return ""
