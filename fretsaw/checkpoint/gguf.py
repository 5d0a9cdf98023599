"""GGUF, llama.cpp's file: written for the architectures `llama` and `deci`.

One file holds the architecture, the tokenizer and the weights. Tensors have llama.cpp's names;
queries and keys are permuted, since it rotates neighbouring channels where Hugging Face rotates
halves; Llama 3's rotary scaling is a tensor of factors. The container is the `gguf` package's, an
optional dependency. `gguf_reader.py` reads it back.
"""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType, quants
from jaxtyping import Float
from torch import Tensor

from fretsaw.checkpoint.vocabulary import Vocabulary
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.rope import rope_inv_freq

TYPES = {
    "fp32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "fp16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
F32 = GGMLQuantizationType.F32
ROPE_FACTORS = "rope_freqs.weight"
ROTATED = ("attn_q.weight", "attn_k.weight")
_GLOBAL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.linear_attn": "attn_output",  # known from the layer's 0 key-value heads
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensor_name(name: str) -> str:
    """Return llama.cpp's name of one of our tensors."""
    if name in _GLOBAL:
        return _GLOBAL[name]
    layer, _, inner = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_IN_LAYER[inner.removesuffix('.weight')]}.weight"


def permuted(
    weight: Float[Tensor, "heads_x_head_dim hidden"], head_dim: int, *, back: bool = False
) -> Float[Tensor, "heads_x_head_dim hidden"]:
    """Reorder the rows of queries or keys, rotated as halves, to be rotated as neighbours."""
    pairs = (head_dim // 2, 2) if back else (2, head_dim // 2)
    return weight.view(-1, *pairs, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def rounded(weight: Tensor, dtype: str) -> Tensor:
    """Return a weight as a file of this precision gives it back, in float32.

    Norms stay in float32. A block of Q8_0 is 32 values of a row; a short last one is as if filled
    with zeros.
    """
    if weight.dim() == 1 or dtype == "fp32":
        return weight.float()
    type, _ = TYPES[dtype]
    block, _ = gguf.GGML_QUANT_SIZES[type]
    whole = torch.nn.functional.pad(weight.float(), (0, -weight.shape[1] % block))
    stored = quants.dequantize(quants.quantize(whole.numpy(), type), type)
    return torch.from_numpy(stored)[:, : weight.shape[1]].contiguous()


@torch.no_grad()
def write(
    decoder: Decoder, path: Path, *, vocabulary: Vocabulary, name: str, dtype: str = "fp32"
) -> None:
    """Write a decoder as `rewrite` leaves it for llama.cpp, tensor by tensor.

    A plain Llama becomes `llama`, any other `deci`.
    """
    config = decoder.config
    assert all(block.ffn == "swiglu" for block in config.blocks), "llama.cpp needs FFNs everywhere"
    arch = "llama" if config.is_homogeneous else "deci"
    type, file_type = TYPES[dtype]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_architecture(writer, config)
    _add_vocabulary(writer, vocabulary)
    weights = decoder.state_dict()
    factors = _rope_factors(config)
    stored = {tensor_name(name): (type if w.dim() > 1 else F32, w) for name, w in weights.items()}
    if factors is not None:
        stored[ROPE_FACTORS] = F32, factors
    for name, (stored_as, weight) in stored.items():
        block, num_bytes = gguf.GGML_QUANT_SIZES[stored_as]
        size = weight.numel() // block * num_bytes
        writer.add_tensor_info(name, weight.shape, np.dtype(np.float32), size, stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, (stored_as, weight) in stored.items():  # one at a time: a copy of each, not of all
        is_rotated = name.endswith(ROTATED)
        whole = permuted(weight, config.head_dim) if is_rotated else weight
        values = whole.detach().to("cpu", torch.float32).contiguous().numpy()
        writer.write_tensor_data(quants.quantize(values, stored_as))
    writer.close()


def _rope_factors(config: ModelConfig) -> Float[Tensor, " half_head_dim"] | None:
    """Return what llama.cpp divides the unscaled frequencies by."""
    if config.rope_scaling is None:
        return None
    return _unscaled(config) / rope_inv_freq(config)


def _unscaled(config: ModelConfig) -> Float[Tensor, " half_head_dim"]:
    return rope_inv_freq(replace(config, rope_scaling=None))


def _add_architecture(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    blocks, heads = config.blocks, config.num_attention_heads
    writer.add_block_count(len(blocks))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)  # left out, 10000 is taken without a word
    if config.is_homogeneous:
        writer.add_head_count(heads)
        writer.add_head_count_kv(blocks[0].num_key_value_heads)
        writer.add_feed_forward_length(blocks[0].intermediate_size)
    else:  # no heads: no attention; heads without key-value heads: a matrix in its place
        writer.add_head_count([0 if b.attention == "none" else heads for b in blocks])
        writer.add_head_count_kv([b.num_key_value_heads for b in blocks])
        writer.add_feed_forward_length([b.intermediate_size for b in blocks])


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.adds_space)
    else:
        writer.add_token_merges(vocabulary.merges)
    ends = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, id in zip(ends, vocabulary.eos_token_ids, strict=False):
        add(id)
    if vocabulary.bos_token_id is not None:
        writer.add_bos_token_id(vocabulary.bos_token_id)
    if vocabulary.unk_token_id is not None:
        writer.add_unk_token_id(vocabulary.unk_token_id)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    if vocabulary.pad_token_id is not None:
        writer.add_pad_token_id(vocabulary.pad_token_id)
    if vocabulary.chat_templates:
        writer.add_chat_template(
            [{"name": n, "template": text} for n, text in vocabulary.chat_templates.items()]
        )
