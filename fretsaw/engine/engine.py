"""The minimal cached decoder: batched generation with a key-value cache, on one device.

Requests are decoded in batches of `max_batch`; a finished sequence leaves its batch at once, so it
stops costing. Log-probabilities are of the raw distribution at temperature 1, whatever was sampled.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.model.attention import KVCache
from fretsaw.model.decoder import Decoder


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it."""

    token_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0  # 0 is greedy
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Event:
    """One generated token; the last of a request says why it ended."""

    request: int  # index into the requests
    token_id: int
    logprob: float
    finish_reason: str | None = None  # "stop" or "length"


@dataclass
class Stats:
    """What the engine has done so far."""

    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    weight_version: int = 0
    extra: dict[str, float] = field(default_factory=dict)


class Engine:
    """Generate from a decoder whose weights may be exchanged in place."""

    def __init__(self, decoder: Decoder, *, max_batch: int = 64):
        self.decoder, self.max_batch = decoder.eval(), max_batch
        self._stats = Stats()
        self._is_awake = True

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Yield tokens as they are made, batch by batch; the events of one request are in order."""
        assert self._is_awake, "the engine sleeps; call wake() first"
        limit = self.decoder.config.max_position_embeddings
        for i, request in enumerate(requests):
            if not request.token_ids:
                raise ValueError(f"request {i}: an empty prompt; give at least one token")
            if len(request.token_ids) + request.max_tokens > limit:
                raise ValueError(
                    f"request {i}: {len(request.token_ids)} prompt tokens and {request.max_tokens} "
                    f"to generate, but the model's context is {limit}; shorten one of them"
                )
        # Similar lengths together, so that little of a batch is padding.
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].token_ids))
        for at in range(0, len(order), self.max_batch):
            yield from self._generate_batch(requests, order[at : at + self.max_batch])

    def _generate_batch(self, requests: Sequence[Request], batch: list[int]) -> Iterator[Event]:
        active = np.array(batch)
        # A prompt that several requests share is run once, and its cache copied.
        prompts = list(dict.fromkeys(requests[i].token_ids for i in batch))
        row_of = {prompt: row for row, prompt in enumerate(prompts)}
        room = max(len(requests[i].token_ids) + requests[i].max_tokens for i in batch)
        cache = new_cache(self.decoder, len(prompts), max(map(len, prompts)))
        started = time.perf_counter()
        logits = prefill(self.decoder, prompts, cache)
        copies = torch.tensor([row_of[requests[i].token_ids] for i in batch], device=logits.device)
        cache.spread(copies, room)
        logits = logits[copies]
        self._stats.prefill_s += time.perf_counter() - started
        self._stats.prefill_tokens += sum(map(len, prompts))
        num_generated = 0
        while True:
            chosen = [requests[i] for i in active]
            token_ids, logprobs = sample(logits, chosen, num_generated)
            num_generated += 1
            is_active = np.ones(len(active), dtype=bool)
            for row, (i, token_id) in enumerate(zip(active, token_ids.tolist(), strict=True)):
                reason = None
                if token_id in requests[i].stop_token_ids:
                    reason = "stop"
                elif num_generated == requests[i].max_tokens:
                    reason = "length"
                is_active[row] = reason is None
                yield Event(int(i), token_id, logprobs[row].item(), reason)
            if not is_active.any():
                return
            if not is_active.all():
                kept = torch.from_numpy(np.flatnonzero(is_active)).to(token_ids.device)
                order = cache.keep(kept)
                token_ids, active = token_ids[order], active[order.cpu().numpy()]
            started = time.perf_counter()
            logits = decode(self.decoder, token_ids, cache)
            self._stats.decode_s += time.perf_counter() - started
            self._stats.decode_tokens += len(active)

    @torch.inference_mode()
    def logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Return the log-probability of every token after the first, given those before it."""
        ids = torch.tensor([list(token_ids)], device=self.decoder.device)
        log_probs = self.decoder(ids[:, :-1]).float().log_softmax(-1)
        return log_probs.gather(-1, ids[:, 1:, None]).flatten().tolist()

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Overwrite weights in place; names and shapes must be the decoder's own."""
        own = dict(self.decoder.named_parameters())
        with torch.no_grad():
            for name, tensor in named_tensors:
                if name not in own:
                    raise ValueError(f"{name}: the model has no such weight")
                own[name].copy_(tensor)
        self._stats.weight_version = version

    def sleep(self) -> None:
        """Refuse work until `wake`; the cache lives only while generating, so nothing is held."""
        self._is_awake = False

    def wake(self) -> None:
        """Accept work again."""
        self._is_awake = True

    def stats(self) -> Stats:
        """Return counts and seconds so far."""
        return self._stats


def new_cache(decoder: Decoder, batch_size: int, max_length: int) -> KVCache:
    """Return an empty cache in the weights' own precision."""
    dtype = decoder.model.embed_tokens.weight.dtype
    return KVCache(decoder.config, batch_size, max_length, dtype=dtype, device=decoder.device)


def prefill(
    decoder: Decoder, prompts: Sequence[Sequence[int]], cache: KVCache
) -> Float[Tensor, "batch vocab"]:
    """Run the prompts, padded on the right, into an empty cache; return the last token's logits."""
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=decoder.device)
    padded = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = torch.as_tensor(prompt)
    hidden = decoder.hidden_states(padded.to(decoder.device), cache=cache)
    cache.set_lengths(lengths)
    last = hidden[torch.arange(len(prompts), device=hidden.device), lengths - 1]
    return F.linear(last, decoder.head_weight)


def decode(
    decoder: Decoder, token_ids: Int[Tensor, " batch"], cache: KVCache
) -> Float[Tensor, "batch vocab"]:
    """Run one more token of every row; return the logits of the next."""
    return F.linear(
        decoder.hidden_states(token_ids[:, None], cache=cache)[:, 0], decoder.head_weight
    )


def sample(
    logits: Float[Tensor, "batch vocab"], requests: Sequence[Request], position: int
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Choose a token for every row, by inverse transform of one uniform number a row.

    The number is a function of the request's seed and the position alone, so what else is in the
    batch never decides.
    """
    log_probs = logits.float().log_softmax(-1)
    chosen = log_probs.argmax(-1)
    temperatures = torch.tensor([r.temperature for r in requests], device=logits.device)
    if bool((temperatures > 0).any()):
        scaled = logits.float() / temperatures.clamp(min=1e-6)[:, None]
        cumulative = scaled.softmax(-1).double().cumsum(-1)
        seeds = np.array([r.seed for r in requests], dtype=np.uint64)
        draws = torch.from_numpy(uniform(seeds, position)).to(logits.device)
        drawn = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)
        drawn = drawn[:, 0].clamp(max=logits.shape[-1] - 1)
        chosen = torch.where(temperatures > 0, drawn, chosen)
    return chosen, log_probs.gather(-1, chosen[:, None])[:, 0]


def uniform(seeds: np.ndarray, position: int) -> np.ndarray:
    """Return one number in [0, 1) for every seed at this position (the SplitMix64 generator)."""
    with np.errstate(over="ignore"):
        z = seeds * np.uint64(0xD1342543DE82EF95) + np.uint64(position + 1) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
