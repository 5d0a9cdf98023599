"""Settings of a model that judges answers. Standard library only."""

from dataclasses import dataclass

from fretsaw.stage.settings import check_range


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """A model behind an OpenAI-compatible server that judges answers; its key is $JUDGE_API_KEY."""

    judge_url: str = ""
    """The server; without one nothing can be judged."""
    judge_model: str = ""
    """The model at that server; the first that it names where this is empty."""
    judge_votes: int = 1
    """How often each answer is judged; most votes, or their mean, count."""
    judge_temperature: float = 0.0
    """Of the judge; several votes need one above 0."""
    judge_max_tokens: int = 2048
    """Tokens of a judgement at most."""
    judge_deadline_s: float = 120.0
    """Seconds for a judgement, all tries together; after that there is no verdict."""

    def __post_init__(self) -> None:
        check_range(self, 1, "judge_votes", "judge_max_tokens", "judge_deadline_s")
        check_range(self, 0, "judge_temperature")
        if self.judge_votes > 1 and self.judge_temperature == 0:
            raise ValueError(
                f"judge_votes: {self.judge_votes} at temperature 0 are all the same; give a "
                "judge_temperature"
            )
