"""What is asked of an export: target, format and precisions settled, or refused with the reason."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from fretsaw.chat.control_tokens import is_chat
from fretsaw.chat.llama3_template import chat_template
from fretsaw.chat.template import read_chat_template
from fretsaw.chat.toggle import Toggle, toggle_of
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.export_targets import (
    EXPORT_TARGETS,
    ExportTarget,
    Format,
    refuse_inexpressible,
    refuse_unquantisable,
)
from fretsaw.checkpoint.hub import resolve
from fretsaw.checkpoint.vocabulary import Vocabulary, read_vocabulary
from fretsaw.model.config import ModelConfig
from fretsaw.model.kinds import Precision
from fretsaw.model.size import num_params
from fretsaw.scenario.processor import NO_INT8, multiplies_int8
from fretsaw.stage.place import refuse_existing

ExportDtype = Literal["fp32", "bf16", "fp16", "q8_0"]
WeightPrecision = Literal["auto", "full", "fp8", "int8"]
DTYPES: dict[Format, tuple[ExportDtype, ...]] = {
    "decilm": ("fp32", "bf16", "fp16"),
    "gguf": ("fp32", "bf16", "fp16", "q8_0"),
}
BYTES: dict[ExportDtype, float] = {"fp32": 4, "bf16": 2, "fp16": 2, "q8_0": 34 / 32}  # of a weight


@dataclass(frozen=True)
class Asked:
    """What an export is to be, checked as far as configs and headers tell."""

    source: Path
    out: Path
    config: ModelConfig  # with its matrices in the precision asked for
    target: ExportTarget
    format: Format
    dtype: ExportDtype
    toggle: Toggle | None  # of a chat template that is to be added
    vocabulary: Vocabulary | None  # for GGUF

    def notes(self) -> Iterator[str]:
        """Yield what is to be known of what it is made of, whatever is rewritten."""
        yield from template_notes(self.source, self.toggle, self.format)
        if "int8" in in_8_bits_of(self.config) and not multiplies_int8():
            yield NO_INT8

    def render(self) -> str:
        """Return what would be done, for a dry run."""
        precision = " and ".join((*in_8_bits_of(self.config), self.dtype))
        mib = num_params(self.config) * BYTES[self.dtype] / 2**20
        lines = [
            f"would export {self.source}",
            f"to {self.out}: {self.format} in {precision}, about {mib:.1f} MiB, "
            f"for {self.target.name}",
            *(f"  {note}" for note in self.notes()),
            "nothing was written",
        ]
        return "\n".join(lines)


def settle(
    name_or_path: str | Path,
    out: Path,
    *,
    target: str = "auto",
    format: str = "auto",
    dtype: str = "auto",
    weights: WeightPrecision = "auto",
) -> Asked:
    """Return what `export` would do. Raises ValueError where that can't be done."""
    source = resolve(name_or_path)
    config = _settle_weights(source, weights, out)
    if target == "auto":
        target = "vllm" if config.is_quantised else "portable"
    chosen, form = _settle_format(target, format, out)
    checkpoint.refuse_8_bits(source, checkpoint.check(source))
    precision = _settle_dtype(checkpoint.read_dtype(source) if dtype == "auto" else dtype, form)
    refuse_inexpressible(config, chosen)
    toggle = _toggle_without_template(source)
    vocabulary = None
    if form == "gguf":
        vocabulary = read_vocabulary(source, config.vocab_size)
        if toggle is not None:
            vocabulary = replace(vocabulary, chat_templates={"default": chat_template(toggle)})
    if precision == "q8_0":
        refuse_unquantisable(config)
    return Asked(source, out, config, chosen, form, precision, toggle, vocabulary)


def in_8_bits_of(config: ModelConfig) -> tuple[Precision, ...]:
    """Return the precisions in 8 bits that a network's matrices are in."""
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
    refuse_existing(out)
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


# --- the chat template, by which alone engines render messages ------------------------------------


def _toggle_without_template(source: Path) -> Toggle | None:
    """Return how a chat checkpoint that lacks its template is told the mode, None for any other."""
    if read_chat_template(source) is not None or not (source / "tokenizer.json").is_file():
        return None
    return toggle_of(source) if is_chat(Tokenizer.from_folder(source)) else None


def template_notes(source: Path, added: Toggle | None, format: Format) -> Iterator[str]:
    """Yield what is to be known of the template, as far as it matters for this export.

    Reasoning parsers are vLLM's, which reads folders, and are for a model that is told to reason.
    """
    if added is not None:
        yield f"the source has no chat template; the format's own is added, with toggle {added}"
        return
    template = read_chat_template(source)
    if format != "decilm" or template is None or not (source / "tokenizer.json").is_file():
        return
    if "enable_thinking" not in template and toggle_of(source) != "none":
        yield (
            "the chat template does not know enable_thinking: vLLM's reasoning parsers would take "
            "an answer without reasoning for reasoning"
        )
