"""A heterogeneous decoder whose greedy choices are no ties, and naive decoding to compare with."""

from collections.abc import Sequence

import torch

from fretsaw.engine.draws import choose
from fretsaw.engine.sampling import Sampling
from fretsaw.engine.sequence import Request, SequenceState
from fretsaw.model.config import ModelConfig, blocks_from_names
from fretsaw.model.decoder import Decoder

MIXES = {
    "uniform": [("gqa2", "ffn32")] * 3,
    "mixed": [("gqa4", "ffn32"), ("attn_none", "ffn48"), ("gqa1", "ffn_none"), ("gqa2", "ffn16")],
    "linear": [("attn_linear", "ffn32"), ("gqa2", "ffn_linear"), ("attn_none", "ffn_none")],
    "no attention": [("attn_none", "ffn32"), ("attn_linear", "ffn_linear")],
}


def make_decoder(name: str, seed: int = 1) -> Decoder:
    config = ModelConfig(
        vocab_size=50,
        hidden_size=32,
        num_attention_heads=4,
        head_dim=8,
        blocks=blocks_from_names(MIXES[name]),
        max_position_embeddings=128,
    )
    decoder = Decoder(config)
    decoder.init_weights(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3)  # few ties, and float32 stays within 2e-6 of float64
    return decoder


def ask(
    token_ids: Sequence[int],
    max_tokens: int,
    *,
    stop_token_ids: tuple[int, ...] = (),
    num_top_logprobs: int = 0,
    prompt_logprobs: bool = False,
    **sampling,
) -> Request:
    """Return a request whose sampling is given by its fields."""
    drawn = Sampling(max_tokens=max_tokens, **sampling)
    return Request(tuple(token_ids), drawn, stop_token_ids, num_top_logprobs, prompt_logprobs)


@torch.inference_mode()
def naive(decoder: Decoder, request: Request) -> list[tuple[int, float, float]]:
    """Decode without any cache: (token, log-probability, gap between the two best) a token."""
    sequence = SequenceState(0, request, list(request.token_ids))
    made = []
    while sequence.num_generated < request.sampling.max_tokens:
        logits = decoder(torch.tensor([sequence.token_ids]))[:, -1]
        token = int(choose(logits, [sequence])[0])
        first, second = logits[0].topk(2).values.tolist()
        made.append((token, logits[0].log_softmax(-1)[token].item(), first - second))
        sequence.token_ids.append(token)
        if token in request.stop_token_ids:
            break
    return made
