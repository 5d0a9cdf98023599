"""Remote code of a DeciLM checkpoint (`nemotron-nas`): the network. Torch and transformers alone.

A Llama whose layers may differ. Each layer's `block_configs` entry says what its attention and its
FFN are: the usual module, one matrix (`linear_attn`, `linear_mlp`), or nothing, norm included.
"""

import inspect
import math

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

from .configuration_decilm import DeciLMConfig, ffn_width, has_attention, has_swiglu

# transformers calls the cache `past_key_values` up to 5.23 and `cache` from 5.24 on.
CACHE = (
    "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
)


class DeciLMRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x):
        full = x.float()
        full = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * full.to(x.dtype)


def rotary_tables(config, positions, dtype):
    """Return cosine and sine for every position; frequencies are computed anew, in float32.

    No buffer holds them, so neither a cast nor loading by way of the meta device can spoil them.
    """
    rope, device = config.rope_parameters, positions.device
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    inv_freq = 1.0 / rope["rope_theta"] ** (pairs / config.head_dim)
    kind = rope.get("rope_type", "default")
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * inv_freq / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        inv_freq = keep * inv_freq + (1 - keep) * inv_freq / rope["factor"]
    elif kind != "default":
        raise ValueError(f"rope_type {kind!r} is not supported; only 'default' and 'llama3' are")
    angles = positions[..., None].float() * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class DeciLMAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.block_configs[layer_idx].attention.n_heads_in_group
        self.scaling, self.is_causal = config.head_dim**-0.5, True
        hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
        kv_width = width // self.num_key_value_groups
        self.q_proj = nn.Linear(hidden, width, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden, kv_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden, kv_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(width, hidden, bias=config.attention_bias)

    def forward(self, x, rotary, attention_mask=None, past_key_values=None, **kwargs):
        batch, seq, _ = x.shape
        shape = (batch, seq, -1, self.head_dim)
        query = rotate(self.q_proj(x).view(shape).transpose(1, 2), *rotary)
        key = rotate(self.k_proj(x).view(shape).transpose(1, 2), *rotary)
        value = self.v_proj(x).view(shape).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        mixed, weights = attention(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )
        return self.o_proj(mixed.reshape(batch, seq, -1)), weights


# The name must not say "attention": transformers would look in this class for its interface.
class DeciLMLinearMixer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.linear_attn = nn.Linear(
            config.hidden_size, config.hidden_size, bias=config.attention_bias
        )

    def forward(self, x, rotary, attention_mask=None, past_key_values=None, **kwargs):
        return self.linear_attn(x), None


class DeciLMMLP(nn.Module):
    def __init__(self, config, width):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DeciLMLinearMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.linear_mlp = nn.Linear(config.hidden_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x):
        return self.linear_mlp(x)


class DeciLMDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config, layer_idx):
        super().__init__()
        block, hidden = config.block_configs[layer_idx], config.hidden_size
        self.has_attention, self.has_ffn = not block.attention.no_op, not block.ffn.no_op
        if self.has_attention:
            self.input_layernorm = DeciLMRMSNorm(hidden, config.rms_norm_eps)
            is_full = has_attention(block)
            self.self_attn = (
                DeciLMAttention(config, layer_idx) if is_full else DeciLMLinearMixer(config)
            )
        if self.has_ffn:
            self.post_attention_layernorm = DeciLMRMSNorm(hidden, config.rms_norm_eps)
            is_full = has_swiglu(block)
            self.mlp = (
                DeciLMMLP(config, ffn_width(block, hidden)) if is_full else DeciLMLinearMLP(config)
            )

    def forward(self, x, rotary, attention_mask=None, past_key_values=None, **kwargs):
        weights = None
        if self.has_attention:
            mixed, weights = self.self_attn(
                self.input_layernorm(x), rotary, attention_mask, past_key_values, **kwargs
            )
            x = x + mixed
        if self.has_ffn:
            x = x + self.mlp(self.post_attention_layernorm(x))
        return x, weights


class DeciLMPreTrainedModel(PreTrainedModel):
    config_class = DeciLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DeciLMDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class DeciLMModel(DeciLMPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            DeciLMDecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = DeciLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_hidden_states=None,
        output_attentions=None,
        cache=None,
        **kwargs,
    ):
        past_key_values = past_key_values if cache is None else cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if output_attentions is None:
            output_attentions = config.output_attentions
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if self.gradient_checkpointing and self.training:
            use_cache, past_key_values = False, None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(x.shape[1], device=x.device) + seen)[None]
        if isinstance(attention_mask, dict):  # `generate` prepares one for every layer type
            mask = attention_mask.get("full_attention")
        else:
            mask = create_causal_mask(
                config=config,
                inputs_embeds=x,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **{CACHE: past_key_values},  # pyright: ignore[reportArgumentType]
            )
        rotary = rotary_tables(config, position_ids, x.dtype)
        hidden_states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(
                x, rotary, attention_mask=mask, past_key_values=past_key_values, **kwargs
            )
            hidden_states.append(x)
            attentions.append(weights)
        x = self.norm(x)
        hidden_states[-1] = x  # as Llama's: the last one is normed
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            **{CACHE: past_key_values},
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


class DeciLMForCausalLM(DeciLMPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = DeciLMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        cache=None,
        **kwargs,
    ):
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=cache,
            **kwargs,
        )
        kept = logits_to_keep
        kept = slice(-kept, None) if isinstance(kept, int) and kept else kept
        hidden = outputs.last_hidden_state
        logits = self.lm_head(hidden if isinstance(kept, int) else hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


DeciLMConfig.register_for_auto_class()
DeciLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
