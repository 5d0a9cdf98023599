"""The one decoder that is trained, scored and served: plain single-device PyTorch.

Modules carry Hugging Face's Llama names, so reading a Llama checkpoint is a check, not a mapping.
Each layer has its own shapes; a missing subblock has no modules, no norm and no cost.
"""

import copy
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fretsaw.model.attention import (
    AttentionContext,
    packed_mask,
    packed_positions,
)
from fretsaw.model.config import BlockConfig, ModelConfig
from fretsaw.model.kinds import SubblockKind
from fretsaw.model.rope import rope_inv_freq, rope_tables
from fretsaw.model.without_storage import without_storage


def module_of(kind: SubblockKind) -> Any:
    """Return the class that computes a kind of attention or FFN."""
    module, name = kind.module.split(":")
    return getattr(importlib.import_module(module), name)


class Block(nn.Module):
    """One pre-norm residual block: `attend`, then `feed`; either may be absent."""

    def __init__(self, config: ModelConfig, block: BlockConfig):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        if block.attention != "none":
            self.input_layernorm = nn.RMSNorm(hidden, eps)
            self.self_attn = module_of(block.attention_kind).build(
                config, block.num_key_value_heads, block.attention_precision
            )
        if block.ffn != "none":
            self.post_attention_layernorm = nn.RMSNorm(hidden, eps)
            self.mlp = module_of(block.ffn_kind).build(
                config, block.intermediate_size, block.ffn_precision
            )
        self.has_attention, self.has_ffn = block.attention != "none", block.ffn != "none"

    def attend(
        self, x: Float[Tensor, "batch seq hidden"], context: AttentionContext
    ) -> Float[Tensor, "batch seq hidden"]:
        """Apply the attention half with its residual."""
        return x + self.self_attn(self.input_layernorm(x), context) if self.has_attention else x

    def feed(self, x: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:
        """Apply the FFN half with its residual."""
        return x + self.mlp(self.post_attention_layernorm(x)) if self.has_ffn else x

    def forward(
        self, x: Float[Tensor, "batch seq hidden"], context: AttentionContext
    ) -> Float[Tensor, "batch seq hidden"]:
        """Apply both halves."""
        return self.feed(self.attend(x, context))


class Backbone(nn.Module):
    """Embeddings, blocks and the final norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, block) for block in config.blocks)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """A Llama whose layers may differ; `forward` gives logits, `hidden_states` what is before."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # Kept out of the buffers: a cast of the model to bf16 must not round the frequencies.
        self._inv_freq = rope_inv_freq(config)

    @property
    def head_weight(self) -> Float[Tensor, "vocab hidden"]:
        """The output matrix, which is the embedding table where the two are tied."""
        tied = self.config.tie_word_embeddings
        return self.model.embed_tokens.weight if tied else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embed_tokens.weight.device

    def set_context(self, config: ModelConfig) -> None:
        """Take a config's context length and rotary frequencies; the weights stay."""
        if config != self.config:
            self.config, self._inv_freq = config, rope_inv_freq(config)

    def context(
        self,
        batch_size: int,
        seq: int,
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        cu_seqlens: Int[Tensor, " num_documents_plus_1"] | None = None,
    ) -> AttentionContext:
        """Make what the attention layers of one forward share.

        Plain rows are causal from position 0. With `cu_seqlens` the rows are packed documents,
        blind to one another and counted from 0 each.
        """
        device = self.device
        if self._inv_freq.device != device:
            self._inv_freq = self._inv_freq.to(device)
        mask = None
        if cu_seqlens is not None:
            mask = packed_mask(cu_seqlens, batch_size, seq)
            if positions is None:
                positions = packed_positions(cu_seqlens, batch_size, seq)
        elif positions is None:
            positions = torch.arange(seq, device=device)[None]
        cos, sin = rope_tables(self._inv_freq, positions)
        return AttentionContext(cos, sin, mask)

    def hidden_states(
        self,
        token_ids: Int[Tensor, "batch seq"],
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        cu_seqlens: Int[Tensor, " num_documents_plus_1"] | None = None,
        collect: list[Tensor] | None = None,
    ) -> Float[Tensor, "batch seq hidden"]:
        """Run the blocks and the final norm; append every block's output to `collect` if given."""
        batch_size, seq = token_ids.shape
        context = self.context(batch_size, seq, positions=positions, cu_seqlens=cu_seqlens)
        x = self.model.embed_tokens(token_ids)
        for block in self.model.layers:
            x = block(x, context)
            if collect is not None:
                collect.append(x)
        return self.model.norm(x)

    def forward(
        self,
        token_ids: Int[Tensor, "batch seq"],
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        cu_seqlens: Int[Tensor, " num_documents_plus_1"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of every token's successor."""
        hidden = self.hidden_states(token_ids, positions=positions, cu_seqlens=cu_seqlens)
        return F.linear(hidden, self.head_weight)

    def with_blocks(self, config: ModelConfig, blocks: Iterable[nn.Module]) -> "Decoder":
        """Return a decoder of other blocks, which `config` describes; the rest is shared."""
        with without_storage():
            other = Decoder(config)
        other.model.embed_tokens, other.model.norm = self.model.embed_tokens, self.model.norm
        if not config.tie_word_embeddings:
            other.lm_head = self.lm_head
        other.model.layers = nn.ModuleList(blocks)
        return other

    def with_vocab(self, vocab_size: int, eos_token_ids: Sequence[int]) -> "Decoder":
        """Return the decoder with more tokens, each new row at the mean of the old ones."""
        old = self.config.vocab_size
        assert vocab_size >= old, f"{vocab_size} tokens, but the model has {old} already"
        wider = copy.deepcopy(self)
        wider.config = replace(
            self.config, vocab_size=vocab_size, eos_token_ids=tuple(eos_token_ids)
        )
        if vocab_size == old:
            return wider

        def widened(weight: Float[Tensor, "old hidden"]) -> nn.Parameter:
            mean = weight.detach().mean(0, keepdim=True)
            return nn.Parameter(torch.cat([weight.detach(), mean.repeat(vocab_size - old, 1)]))

        embed = wider.model.embed_tokens
        embed.weight, embed.num_embeddings = widened(embed.weight), vocab_size
        if not self.config.tie_word_embeddings:
            wider.lm_head.weight = widened(wider.lm_head.weight)
            wider.lm_head.out_features = vocab_size
        return wider

    def init_weights(self, seed: int) -> None:
        """Fill with the usual small normal values, residual outputs scaled by 1/sqrt(2 layers)."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        depth_scale = (2 * self.config.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
                continue
            is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 * depth_scale if is_output else 0.02
            values = torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
            with torch.no_grad():
                parameter.copy_(values)
