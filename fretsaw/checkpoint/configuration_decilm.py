"""Remote code of a DeciLM checkpoint (`nemotron-nas`): the config. Needs transformers alone.

`block_configs` says for every layer what its attention and its FFN are; see `modeling_decilm.py`.
"""

import copy
from types import SimpleNamespace

from transformers import PreTrainedConfig


class DeciLMConfig(PreTrainedConfig):
    """A Llama whose layers may differ, lack a subblock, or have one matrix in its place."""

    model_type = "nemotron-nas"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size=32000,
        hidden_size=4096,
        num_attention_heads=32,
        head_dim=None,
        block_configs=None,
        num_hidden_layers=None,
        num_key_value_heads=None,
        intermediate_size=None,
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
        attention_dropout=0.0,
        rms_norm_eps=1e-6,
        initializer_range=0.02,
        max_position_embeddings=2048,
        rope_parameters=None,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=True,
        **kwargs,
    ):
        self.block_configs = [_namespace(block) for block in block_configs or []]
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.num_hidden_layers = num_hidden_layers or len(self.block_configs)
        self.num_key_value_heads = num_key_value_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.attention_bias = attention_bias
        self.mlp_bias = mlp_bias
        self.attention_dropout = attention_dropout
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.max_position_embeddings = max_position_embeddings
        self.rope_parameters = rope_parameters
        self.tie_word_embeddings = tie_word_embeddings
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.use_cache = use_cache
        super().__init__(**kwargs)
        if len(self.block_configs) != self.num_hidden_layers:
            raise ValueError(
                f"{len(self.block_configs)} block_configs for {self.num_hidden_layers} "
                "num_hidden_layers; there must be one per layer"
            )

    @property
    def layer_types(self):
        """What each layer caches; "moe" is transformers' word for a layer without a cache."""
        return ["full_attention" if has_attention(b) else "moe" for b in self.block_configs]

    def to_dict(self):
        """Return plain data, with the rotary settings in the legacy spelling too."""
        namespaces, self.block_configs = self.block_configs, []  # what follows wants plain data
        try:
            output = super().to_dict()
        finally:
            self.block_configs = namespaces
        output["block_configs"] = [_plain(block) for block in namespaces]
        rope = copy.deepcopy(output.get("rope_parameters") or {})
        output["rope_theta"] = rope.pop("rope_theta", 10000.0)
        output["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
        return output


def has_attention(block):
    """Whether the layer has attention proper, and so keys and values."""
    return not (block.attention.no_op or block.attention.replace_with_linear)


def has_swiglu(block):
    """Whether the layer has an FFN proper."""
    return not (block.ffn.no_op or block.ffn.replace_with_linear)


def ffn_width(block, hidden_size):
    """Return the width of a layer's FFN, from `ffn_mult` or `intermediate_size`."""
    mult = getattr(block.ffn, "ffn_mult", None)
    if mult is None:
        return block.ffn.intermediate_size
    width = int(2 * mult * hidden_size / 3)
    return width if width % 256 == 0 else width + 256 - width % 256


def _namespace(value):
    if isinstance(value, dict):
        return SimpleNamespace(**{key: _namespace(entry) for key, entry in value.items()})
    return value


def _plain(value):
    if isinstance(value, SimpleNamespace):
        return {key: _plain(entry) for key, entry in vars(value).items()}
    return value
