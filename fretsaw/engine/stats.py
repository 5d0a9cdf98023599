"""What an engine tells of itself; apart from it, so that who only reads it needs no torch."""

from dataclasses import dataclass


@dataclass
class Stats:
    """What the engine has done so far, and what it is doing."""

    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    prefix_hit_tokens: int = 0  # not computed, because an earlier text began alike
    num_preemptions: int = 0
    num_waiting: int = 0
    num_running: int = 0
    pages_used: int = 0  # held by sequences; what is only kept for reuse does not count
    pages_total: int = 0
    weight_version: int = 0
