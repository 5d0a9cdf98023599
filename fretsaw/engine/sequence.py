"""What is asked of the engine, what it says, and what it remembers of a request in between."""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it.

    Penalties and filters act in the order of Hugging Face's generation: repetition, presence and
    frequency on the logits, then temperature, top-k, top-p, min-p.
    """

    token_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0  # 0 is greedy
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # weakens the logits of tokens seen, in the prompt too
    presence_penalty: float = 0.0  # taken off once from tokens that were generated
    frequency_penalty: float = 0.0  # taken off as often as they were
    num_top_logprobs: int = 0  # reported beside every token
    prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        ranges = {
            "max_tokens": (self.max_tokens >= 0, "at least 0"),
            "temperature": (0 <= self.temperature < math.inf, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0 (0: all tokens)"),
            "presence_penalty": (math.isfinite(self.presence_penalty), "a finite number"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "a finite number"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p < 1, "in [0, 1)"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0 (1: none)"),
            "num_top_logprobs": (self.num_top_logprobs >= 0, "at least 0"),
        }
        for name, (is_good, rule) in ranges.items():
            if not is_good:
                raise ValueError(f"{name} {getattr(self, name)}: must be {rule}")

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the distribution beyond the model's own doing."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )

    @property
    def has_filters(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


@dataclass(frozen=True)
class TokenLogprob:
    """A token's raw log-probability at temperature 1, and its strongest rivals, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """One generated token; the last of a request says why it ended."""

    request: int  # what `add` returned; within `generate`, the index into the requests
    token_id: int | None  # None only where nothing was to be generated
    logprob: float
    finish_reason: str | None = None  # "stop" or "length"
    top_logprobs: tuple[tuple[int, float], ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None  # in the first event, where asked


@dataclass(eq=False)  # itself, not one that looks alike
class SequenceState:
    """A request on its way: its tokens so far, and how many have keys and values in its pages."""

    id: int
    request: Request
    token_ids: list[int]
    num_computed: int = 0
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)  # of its whole prefix blocks, see pages.py
    is_running: bool = False
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    has_spoken: bool = False

    @property
    def num_generated(self) -> int:
        """Tokens after the prompt."""
        return len(self.token_ids) - len(self.request.token_ids)

    @property
    def num_pending(self) -> int:
        """Tokens that have no keys and values yet; the last of them gives the next one's logits."""
        return len(self.token_ids) - self.num_computed


@dataclass(frozen=True)
class Slice:
    """The tokens of one sequence that a step computes: `length` of them from `start` on."""

    sequence: SequenceState
    start: int
    length: int

    @property
    def is_last(self) -> bool:
        """Whether the next token's logits come of it."""
        return self.start + self.length == len(self.sequence.token_ids)

    @property
    def is_decoding(self) -> bool:
        """Whether it is the token after the last that was generated."""
        return self.is_last and self.length == 1 and self.sequence.has_spoken
