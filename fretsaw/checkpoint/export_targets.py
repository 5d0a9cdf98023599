"""What each engine takes of a heterogeneous Llama: a table, and what no rewriting can mend.

Standard library only, so that a hopeless export is refused before its weights are read. What is
here was measured on the engines' own builds (docs/export.md); `portable.py` does the rewriting.
"""

from dataclasses import dataclass
from typing import Literal

from fretsaw.checkpoint.decilm import ffn_mult_of, width_of
from fretsaw.model.config import ModelConfig

Format = Literal["decilm", "gguf"]


@dataclass(frozen=True, kw_only=True)
class ExportTarget:
    """The rules of one destination; with `keeps_layout` nothing is rewritten."""

    name: str
    summary: str  # for the help of `fretsaw export`
    formats: tuple[Format, ...]  # the first is written where none is asked for
    keeps_layout: bool = False
    always_decilm: bool = False  # DeciLM even where a plain Llama would do
    needs_first_attention: bool = False
    needs_ffns: bool = False
    linear: Literal["refused", "kept", "as_attention"] = "refused"
    takes_any_head_dim: bool = True  # else head_dim must be hidden_size / num_attention_heads
    width_multiple: int = 1  # of the FFN widths of layers that differ
    takes_8_bits: bool = False  # compressed-tensors
    page: str = "export.md"  # its page in docs/


PUBLISHED_WIDTHS = 256  # what NVIDIA's dialect can spell
QUANTISED_WIDTHS = 32  # a block of Q8_0

EXPORT_TARGETS: dict[str, ExportTarget] = {
    target.name: target
    for target in (
        # What transformers, vLLM, llama.cpp and mlx-lm all take.
        ExportTarget(
            name="portable",
            summary="any of transformers, vLLM, llama.cpp and mlx-lm",
            formats=("decilm", "gguf"),
            needs_first_attention=True,
            needs_ffns=True,
            takes_any_head_dim=False,
            width_multiple=PUBLISHED_WIDTHS,
        ),
        # Crashes without attention in layer 0; reads both dialects; linear subblocks fail to load.
        ExportTarget(
            name="vllm",
            summary="the layers as small as vLLM takes them",
            formats=("decilm",),
            needs_first_attention=True,
            takes_8_bits=True,
        ),
        # Layer 0 defines the head size; without an FFN it drops the layer's attention without a
        # word, and aborts if the layer is the last. A matrix may stand in an attention's place.
        ExportTarget(
            name="llama.cpp",
            summary="the layers as small as llama.cpp takes them",
            formats=("gguf",),
            needs_first_attention=True,
            needs_ffns=True,
            linear="as_attention",
            width_multiple=QUANTISED_WIDTHS,
        ),
        # Reads NVIDIA's dialect alone; looks for linear subblocks under a name nobody writes.
        ExportTarget(
            name="mlx",
            summary="the layers as small as mlx-lm takes them",
            formats=("decilm",),
            takes_any_head_dim=False,
            width_multiple=PUBLISHED_WIDTHS,
        ),
        ExportTarget(
            name="transformers",
            summary="the layers as they are",
            formats=("decilm",),
            keeps_layout=True,
            linear="kept",
        ),
        ExportTarget(
            name="nvidia",
            summary="as they are, in NVIDIA's published spelling, or refused",
            formats=("decilm",),
            keeps_layout=True,
            always_decilm=True,
            linear="kept",
            takes_any_head_dim=False,
            width_multiple=PUBLISHED_WIDTHS,
        ),
    )
}


def refuse_inexpressible(config: ModelConfig, target: ExportTarget) -> None:
    """Raise for the first layer that the target can't take and no exact rewriting can mend.

    A linear subblock is such: softmax gives every earlier token some weight, so no attention is a
    token's own matrix; and a SwiGLU without biases is of second order in its input, so none has a
    linear term.
    """
    if target.linear == "refused":
        for i, block in enumerate(config.blocks):
            for half, kind in (("attention", block.attention_kind), ("FFN", block.ffn_kind)):
                if not kind.is_llamas:
                    what = "linear (one matrix)" if kind.name == "linear" else kind.name
                    raise ValueError(
                        f"layer {i}: its {half} is {what}, which {target.name} does "
                        "not take and which no attention or SwiGLU equals; export it with "
                        "--target llama.cpp or --target transformers"
                    )
    if config.is_quantised and not target.takes_8_bits:
        takers = ", ".join(name for name, one in EXPORT_TARGETS.items() if one.takes_8_bits)
        raise ValueError(
            f"weights in 8 bits: {target.name} does not read compressed-tensors; export it with "
            f"--target {takers}, or with --weights full"
        )
    is_decilm = target.always_decilm or not config.in_full.is_homogeneous
    own_head_dim = config.head_dim * config.num_attention_heads != config.hidden_size
    if is_decilm and own_head_dim and not target.takes_any_head_dim:
        raise ValueError(
            f"head_dim {config.head_dim}: {target.name} takes only hidden_size / "
            f"num_attention_heads ({config.hidden_size} / {config.num_attention_heads}) where "
            "layers differ; export it with --target vllm, llama.cpp or transformers"
        )
    if target.keeps_layout and target.width_multiple > 1:
        for i, block in enumerate(config.blocks):
            width = block.intermediate_size
            if width_of(ffn_mult_of(width, config.hidden_size), config.hidden_size) != width:
                raise ValueError(
                    f"layer {i}: an FFN {width} wide, but {target.name}'s dialect spells multiples "
                    f"of {target.width_multiple} only; export it with --target portable, which "
                    "pads with zeros, or --target transformers"
                )


def refuse_unquantisable(config: ModelConfig) -> None:
    """Raise where rows can't be cut into the blocks of Q8_0; FFN widths can be padded."""
    sizes = {
        "hidden_size": config.hidden_size,
        "num_attention_heads * head_dim": config.num_attention_heads * config.head_dim,
    }
    for name, size in sizes.items():
        if size % QUANTISED_WIDTHS:
            raise ValueError(
                f"{name} is {size}, but q8_0 stores rows in blocks of {QUANTISED_WIDTHS}; "
                "export it with --dtype fp16"
            )
