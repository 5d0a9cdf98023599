"""Bytes, FLOPs and seconds that several kinds of stage have, in closed form. No torch."""

from collections.abc import Sequence
from dataclasses import replace

from fretsaw.model.config import ModelConfig
from fretsaw.model.size import (
    BYTES_PER_ELEMENT,
    block_flops,
    forward_flops,
    gradient_bytes,
    head_flops,
    num_params,
)
from fretsaw.plan.work import Hardware
from fretsaw.puzzle.settings import SpaceSettings, judging_draws
from fretsaw.scenario.memory import gram_bytes
from fretsaw.scenario.roofline import network_ms
from fretsaw.scenario.scenario import parse_scenarios
from fretsaw.training.settings import MAX_LOGITS

DISK_BYTES_PER_S = 1e9
CHUNK = 1024  # tokens whose logits are in memory at once
EVAL_BATCH = 128  # sequences decoded together
PROMPT = 64  # tokens of a problem
MOST_IN, MOST_OUT = 256, 16  # tokens of a request that a rehearsal serves
ROW_TOKENS = 60  # of a generated conversation


def weight_bytes(*configs: ModelConfig, width: float = 4.0) -> float:
    """Return the bytes of weights as stages load them: in fp32."""
    return width * sum(map(num_params, configs))


def frontier_bytes(config: ModelConfig, tokens: float) -> float:
    """Return the hidden states of a text at one layer, in fp32: read, and written."""
    return 2 * tokens * 4 * config.hidden_size


def refit_bytes(config: ModelConfig) -> float:
    """Return what refitting the widest FFN takes."""
    return gram_bytes(max(block.intermediate_size for block in config.blocks))


def gram_flops(config: ModelConfig, tokens: float) -> float:
    """FLOPs of every FFN's X^T X."""
    return sum(2 * tokens * block.intermediate_size**2 for block in config.blocks)


def logit_bytes(config: ModelConfig, tokens: float = CHUNK, copies: int = 2) -> float:
    """Return the bytes of so many tokens' logits in fp32, which come in chunks."""
    return copies * 4 * min(tokens * config.vocab_size, MAX_LOGITS)


def token_flops(config: ModelConfig, seq_len: float) -> float:
    """FLOPs of one token in a row, its mean causal context being half of that."""
    return forward_flops(config, context=seq_len / 2)


def decoding_s(
    config: ModelConfig, on: Hardware, sequences: float, prompt: int, tokens: int, batch: int
) -> float:
    """Seconds in which so many sequences are read and continued, by roofline on one device."""
    if sequences <= 0 or tokens <= 0:
        return 0.0
    together = max(1, min(batch, round(sequences)))
    scenario = on.scenario(batch=together, prompt_tokens=prompt, output_tokens=tokens)
    return sequences / together * sum(network_ms(config, scenario).values()) / 1e3


def replay_flops(config: ModelConfig, seq_len: int, layers: Sequence[int] | None = None) -> float:
    """FLOPs a token of one candidate in each layer: its layer to the last, and the head."""
    per_block = [block_flops(config, b, context=seq_len / 2).total for b in config.blocks]
    chosen = range(len(per_block)) if layers is None else layers
    return sum(sum(per_block[i:]) + head_flops(config) for i in chosen)


def gradient_flops(config: ModelConfig, tokens: float, seq_len: int, draws: int) -> float:
    """FLOPs of the gradients that estimates rest on: two forwards, and one a draw back to states.

    The head is applied forwards and, for all draws at once, back.
    """
    head = head_flops(config)
    return tokens * ((2 + draws) * (token_flops(config, seq_len) - head) + 2 * head)


def judging_flops(config: ModelConfig, fitted: float, seq_len: int) -> float:
    """FLOPs of the gradients of the text that judges refits, an eighth of the text to fit."""
    rows = max(1, int(fitted / 8 / seq_len))
    return gradient_flops(config, fitted / 8, seq_len, judging_draws(rows))


def judging_bytes(config: ModelConfig, fitted: float, seq_len: int) -> float:
    """Return the bytes of these gradients on disk, while the stage runs."""
    rows = max(1, int(fitted / 8 / seq_len))
    return gradient_bytes(config, fitted / 8, judging_draws(rows))


def saved_bytes(config: ModelConfig, on: Hardware) -> float:
    """Return the bytes of a checkpoint on disk."""
    return weight_bytes(config, width=BYTES_PER_ELEMENT["fp32"])


def half_width_alone(space: SpaceSettings) -> SpaceSettings:
    """Return a space of half the width alone, for a rehearsal."""
    return replace(space, kv_heads=(1,), ffn_percents=(50,), linear=False, none=False)


def short_scenario(scenario: str) -> str:
    """Return the first of some scenarios with few tokens, for a rehearsal."""
    first = parse_scenarios(scenario)[0]
    return str(
        replace(
            first,
            prompt_tokens=min(first.prompt_tokens, MOST_IN),
            output_tokens=min(first.output_tokens, MOST_OUT),
        )
    )
