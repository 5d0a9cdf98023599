"""A checkpoint for other engines: rewritten to what a target takes, written, reopened, compared.

Nothing is emitted that the target would get wrong: what it can't express is rewritten exactly or
refused. An export takes its name only once it has been read back from the disk and gives the
source's logits, rounded as the file's precision rounds.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.chat.control_tokens import is_chat
from fretsaw.chat.llama3_template import chat_template, write_chat_template
from fretsaw.chat.template import read_chat_template
from fretsaw.chat.toggle import Toggle, toggle_of
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.export_targets import (
    EXPORT_TARGETS,
    QUANTISED_WIDTHS,
    ExportTarget,
    Format,
    refuse_inexpressible,
    refuse_unquantisable,
)
from fretsaw.checkpoint.hub import resolve
from fretsaw.checkpoint.llama import DTYPE_NAMES
from fretsaw.checkpoint.vocabulary import Vocabulary, read_vocabulary
from fretsaw.export.portable import rewrite
from fretsaw.model.config import ModelConfig
from fretsaw.model.decoder import Decoder
from fretsaw.model.kinds import Precision
from fretsaw.model.quantised import quantised
from fretsaw.model.size import num_params
from fretsaw.stage.artifact import Refused, atomic_folder, replace_file, require_disk

ExportDtype = Literal["fp32", "bf16", "fp16", "q8_0"]
WeightPrecision = Literal["auto", "full", "fp8", "int8"]
DTYPES: dict[Format, tuple[ExportDtype, ...]] = {
    "decilm": ("fp32", "bf16", "fp16"),
    "gguf": ("fp32", "bf16", "fp16", "q8_0"),
}
BYTES: dict[ExportDtype, float] = {"fp32": 4, "bf16": 2, "fp16": 2, "q8_0": 34 / 32}  # of a weight
TOLERANCE = 1e-4  # of a logit, and of the largest one where that is above 1
MAX_FP16 = 65504.0


@dataclass(frozen=True)
class Exported:
    """What an export came to."""

    out: Path
    target: ExportTarget
    format: Format
    dtype: ExportDtype
    in_8_bits: tuple[Precision, ...]  # of the layers' matrices
    notes: tuple[str, ...]  # what was rewritten, and what the reader of the file should know
    max_difference: float  # between the logits of source and export
    num_bytes: int

    def render(self) -> str:
        """Return a few lines for the user."""
        precision = " and ".join((*self.in_8_bits, self.dtype))
        head = f"{self.out}: {self.format} in {precision}, {self.num_bytes / 2**20:.1f} MiB"
        lines = [f"  {note}" for note in self.notes or ("the layers as they are",)]
        check = f"  reopened: logits within {self.max_difference:.1e} of the source's"
        return "\n".join([f"{head}, for {self.target.name}", *lines, check])


def export(
    name_or_path: str | Path,
    out: Path,
    *,
    target: str = "auto",
    format: str = "auto",
    dtype: str = "auto",
    weights: WeightPrecision = "auto",
) -> Exported:
    """Write a checkpoint for a target, as a DeciLM (or Llama) folder or as a GGUF file.

    `format` "auto" is what the name of `out` says or the target takes first, `dtype` "auto" what
    the source states, `weights` "auto" what the search chose for it, `target` "auto" portable, or
    vllm with weights in 8 bits. Raises ValueError before anything is read in full where the target,
    the format and the network do not go together, and RuntimeError where what was written, read
    back, does not compute the same; then nothing is left of it.
    """
    source = resolve(name_or_path)
    config = _settle_weights(source, weights, out)
    if target == "auto":
        target = "vllm" if config.is_quantised else "portable"
    chosen, form = _settle_format(target, format, out)
    precision = _settle_dtype(checkpoint.read_dtype(source) if dtype == "auto" else dtype, form)
    refuse_inexpressible(config, chosen)
    toggle = _toggle_without_template(source)
    vocabulary, width_multiple = None, 1
    if form == "gguf":
        vocabulary = read_vocabulary(source, config.vocab_size)
        if toggle is not None:
            vocabulary = replace(vocabulary, chat_template=chat_template(toggle))
    if precision == "q8_0":
        refuse_unquantisable(config)
        width_multiple = QUANTISED_WIDTHS

    decoder = checkpoint.load(source)
    if precision == "fp16":
        _refuse_overflow(decoder)
    decoder = quantised(decoder, config.blocks)
    rewritten, notes = rewrite(decoder, chosen, width_multiple=width_multiple)
    require_disk(out, math.ceil(num_params(rewritten.config) * BYTES[precision] * 1.01))
    with _beside(out, form) as written:
        _write(rewritten, written, source, vocabulary, chosen, precision)
        if toggle is not None and form == "decilm":
            write_chat_template(written, toggle)
        del rewritten  # so that the source and what is read back are all that is held
        ids = _random_ids(config.vocab_size, min(64, config.max_position_embeddings))
        _round(decoder, precision, form)
        expected = _logits(decoder, ids)
        del decoder
        max_difference = _largest_difference(expected, _logits(_reopen(written, form), ids))
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not max_difference <= allowed:  # NaN too
            raise RuntimeError(
                f"{out}: read back, its logits differ from the source's by {max_difference:.2e} "
                f"(allowed {allowed:.1e}), so it was not kept; this is a fault of fretsaw's or of "
                "the disk's"
            )
    return Exported(
        out,
        chosen,
        form,
        precision,
        _in_8_bits(config),
        (*notes, *_template_notes(source, toggle)),
        max_difference,
        sum(path.stat().st_size for path in ([out] if out.is_file() else out.iterdir())),
    )


# --- what is asked for ----------------------------------------------------------------------------


def _in_8_bits(config: ModelConfig) -> tuple[Precision, ...]:
    stored = {p for b in config.blocks for p in (b.attention_precision, b.ffn_precision)}
    in_8_bits: tuple[Precision, ...] = ("fp8", "int8")
    return tuple(precision for precision in in_8_bits if precision in stored)


def _settle_weights(source: Path, weights: WeightPrecision, out: Path) -> ModelConfig:
    """Return the checkpoint's network with its matrices in the precision asked for."""
    is_file = out.suffix == ".gguf"
    if is_file and weights in ("fp8", "int8"):
        raise ValueError(
            f"--weights {weights}: a GGUF file has formats of its own; choose --dtype q8_0"
        )
    config = checkpoint.read_config(source)
    asked = "full" if is_file else None if weights == "auto" else weights
    return replace(config, blocks=checkpoint.served_blocks(source, config, asked))


def _settle_format(target: str, format: str, out: Path) -> tuple[ExportTarget, Format]:
    if target not in EXPORT_TARGETS:
        raise ValueError(f"target {target!r}: unknown; choose one of {', '.join(EXPORT_TARGETS)}")
    chosen, is_file = EXPORT_TARGETS[target], out.suffix == ".gguf"
    if format == "auto":
        format = "gguf" if is_file and "gguf" in chosen.formats else chosen.formats[0]
    if format not in get_args(Format):
        raise ValueError(f"format {format!r}: unknown; choose decilm or gguf")
    if format not in chosen.formats:
        takes = " or ".join(chosen.formats)
        raise ValueError(f"--format {format}: {target} reads {takes} only; leave --format out")
    if (format == "gguf") != is_file:
        wanted = (
            "one file, so give --out NAME.gguf" if format == "gguf" else "a folder, not a .gguf"
        )
        raise ValueError(f"--out {out}: {format} for {target} is {wanted}")
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise Refused(f"{out}: already there; choose another --out or remove it first")
    if format == "gguf" and find_spec("gguf") is None:
        raise ValueError("--format gguf needs the gguf package; pip install 'fretsaw[gguf]'")
    return chosen, format  # type: ignore[return-value]


def _settle_dtype(dtype: str, format: Format) -> ExportDtype:
    if dtype not in DTYPES[format]:
        raise ValueError(
            f"--dtype {dtype}: {format} is written in {', '.join(DTYPES[format])}"
            + ("; for q8_0 choose --format gguf" if dtype == "q8_0" else "")
        )
    return dtype  # type: ignore[return-value]


def _refuse_overflow(decoder: Decoder) -> None:
    for name, weight in decoder.state_dict().items():
        largest = float(weight.abs().max())
        if largest > MAX_FP16:
            raise ValueError(
                f"--dtype fp16: {name} reaches {largest:.3g}, but fp16 ends at {MAX_FP16:.0f}; "
                "export it with --dtype bf16"
            )


# --- the chat template, by which alone engines render messages ------------------------------------


def _toggle_without_template(source: Path) -> Toggle | None:
    """Return how a chat checkpoint that lacks its template is told the mode, None for any other."""
    if read_chat_template(source) is not None or not (source / "tokenizer.json").is_file():
        return None
    return toggle_of(source) if is_chat(Tokenizer.from_folder(source)) else None


def _template_notes(source: Path, added: Toggle | None) -> Iterator[str]:
    if added is not None:
        yield f"the source has no chat template; the format's own is added, with toggle {added}"
    elif "enable_thinking" not in (read_chat_template(source) or "enable_thinking"):
        yield (
            "the chat template does not know enable_thinking: vLLM's reasoning parsers would take "
            "an answer without reasoning for reasoning"
        )


# --- writing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _beside(out: Path, format: Format) -> Iterator[Path]:
    """Yield where to write; it takes the name `out` when the block ends without an error."""
    if format == "gguf":
        out.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(out) if format == "gguf" else atomic_folder(out) as beside:
        yield beside


def _write(
    decoder: Decoder,
    written: Path,
    source: Path,
    vocabulary: Vocabulary | None,
    target: ExportTarget,
    dtype: ExportDtype,
) -> None:
    if vocabulary is None:
        decilm = {"like": source, "always_decilm": target.always_decilm}
        return checkpoint.write(decoder, written, dtype=dtype, **decilm)
    from fretsaw.checkpoint import gguf

    gguf.write(decoder, written, vocabulary=vocabulary, name=source.absolute().name, dtype=dtype)


# --- checking -------------------------------------------------------------------------------------


def _reopen(written: Path, format: Format) -> Decoder:
    if format == "decilm":
        return checkpoint.load_served(written)
    from fretsaw.checkpoint import gguf

    return gguf.read(written)


@torch.no_grad()
def _round(decoder: Decoder, dtype: ExportDtype, format: Format) -> None:
    """Round the weights in place as the file does, so that the comparison stays sharp."""
    if dtype == "fp32":
        return
    for weight in decoder.parameters():
        if format == "decilm":
            weight.copy_(weight.to(getattr(torch, DTYPE_NAMES[dtype])))
        else:
            from fretsaw.checkpoint import gguf

            weight.copy_(gguf.rounded(weight.detach(), dtype))


def _random_ids(vocab_size: int, seq: int) -> Int[Tensor, "batch seq"]:
    return torch.randint(vocab_size, (2, seq), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _logits(decoder: Decoder, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
    return decoder(ids)


def _largest_difference(
    expected: Float[Tensor, "batch seq vocab"], actual: Float[Tensor, "batch seq vocab"]
) -> float:
    return float((expected - actual).abs().max())
