"""Settings of `fretsaw serve`: limits of what one server takes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit


def check_origins(origins: Sequence[str]) -> None:
    """Raise ValueError for what a browser never names as a page's origin; `*` is any."""
    for origin in origins:
        parts = urlsplit(origin)
        if origin not in ("*", "null") and (
            not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}"
        ):
            raise ValueError(
                f"serve: allow-origin {origin!r} is no origin; give a scheme and a host, such as "
                "https://example.org or http://localhost:3000, or * for any"
            )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for, and how much may wait."""

    max_tokens: int | None = None
    """Tokens of one answer at most; by default what the model's context leaves."""
    max_n: int = 128
    """Answers to one prompt at most."""
    max_choices: int = 1024
    """Answers of one request at most: prompts times n."""
    max_body_mib: float = 8.0
    """Size of a request's body at most."""
    max_queue: int = 256
    """Answers that may wait for a place in the batch; beyond it requests get 429."""
    body_timeout_s: float = 30.0
    """Seconds a request's body may take to arrive."""
    thinking_budget: int | None = None
    """Tokens of reasoning before an answer is begun, where a request names no budget itself."""

    def __post_init__(self) -> None:
        for name in ("max_n", "max_choices", "max_body_mib", "max_queue", "body_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"serve: {name} {getattr(self, name)} lets no request through; give at least 1"
                )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(
                f"serve: max_tokens {self.max_tokens}; give at least 1, or leave it out"
            )
        if self.thinking_budget is not None and self.thinking_budget < 0:
            raise ValueError(
                f"serve: thinking_budget {self.thinking_budget} is negative; 0 closes every trace "
                "at once, leaving it out closes none"
            )

    @property
    def max_body_bytes(self) -> int:
        """The limit of a body in bytes."""
        return int(self.max_body_mib * 2**20)
