"""A checkpoint for other engines: rewritten to what a target takes, written, reopened, compared.

Nothing is emitted that the target would get wrong: what it can't express is rewritten exactly or
refused. An export takes its name only once it has been read back from the disk and gives the
source's logits, rounded as the file's precision rounds.
"""

import contextlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fretsaw.chat.llama3_template import write_chat_template
from fretsaw.chat.tokenizer import Tokenizer
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.checkpoint.export_targets import (
    QUANTISED_WIDTHS,
    ExportTarget,
    Format,
)
from fretsaw.checkpoint.llama import DTYPE_NAMES
from fretsaw.checkpoint.vocabulary import Vocabulary
from fretsaw.export.asked import (
    BYTES,
    ExportDtype,
    WeightPrecision,
    in_8_bits_of,
    settle,
)
from fretsaw.export.portable import rewrite
from fretsaw.model.decoder import Decoder
from fretsaw.model.kinds import Precision
from fretsaw.model.quantised import quantised
from fretsaw.model.size import num_params
from fretsaw.stage.artifact import require_disk
from fretsaw.stage.whole import atomic_folder, replace_file

TOLERANCE = 1e-4  # of a logit, and of the largest one where that is above 1
MAX_FP16 = 65504.0
TEXTS = (  # on which a tokenizer that was rewritten must give the same ids
    *(
        "",
        " ",
        "a",
        " a  b",
        "\n\n\tx = 12345.67;\r\n",
        "It's we'll I'd CAN'T",
        "...!?\u2026\u2014",
    ),
    *("caf\u00e9 e\u0301 \u6771\u4eac \U0001f642", "def f(x):\n    return x ** 2  # 100%"),
    *("<s>[INST]</s><|im_end|>", "1234567890 12 3"),
)


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
    asked = settle(name_or_path, out, target=target, format=format, dtype=dtype, weights=weights)
    source, config, toggle = asked.source, asked.config, asked.toggle
    chosen, form, precision = asked.target, asked.format, asked.dtype
    decoder = checkpoint.load(source)
    if precision == "fp16":
        _refuse_overflow(decoder)
    decoder = quantised(decoder, config.blocks)
    multiple = QUANTISED_WIDTHS if precision == "q8_0" else 1
    rewritten, notes = rewrite(decoder, chosen, width_multiple=multiple)
    require_disk(out, math.ceil(num_params(rewritten.config) * BYTES[precision] * 1.01))
    with _beside(out, form) as written:
        _write(rewritten, written, source, asked.vocabulary, chosen, precision)
        if toggle is not None and form == "decilm":
            write_chat_template(written, toggle)
        del rewritten  # so that the source and what is read back are all that is held
        ids = _random_ids(config.vocab_size, min(64, config.max_position_embeddings))
        _round(decoder, precision, form)
        expected = _logits(decoder, ids)
        del decoder
        if form == "gguf":
            _refuse_other_ids(written, source)
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
        in_8_bits_of(config),
        (*notes, *asked.notes()),
        max_difference,
        sum(path.stat().st_size for path in ([out] if out.is_file() else out.iterdir())),
    )


def _refuse_overflow(decoder: Decoder) -> None:
    for name, weight in decoder.state_dict().items():
        largest = float(weight.abs().max())
        if largest > MAX_FP16:
            raise ValueError(
                f"--dtype fp16: {name} reaches {largest:.3g}, but fp16 ends at {MAX_FP16:.0f}; "
                "export it with --dtype bf16"
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


def _refuse_other_ids(written: Path, source: Path) -> None:
    """Raise where the tokenizer in a GGUF file gives a text other ids than the source's does."""
    from fretsaw.checkpoint.gguf_reader import GgufFile
    from fretsaw.checkpoint.vocabulary_files import write_vocabulary

    own = Tokenizer.from_folder(source)
    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(GgufFile(written).vocabulary(), Path(folder), max_len=1)
        back = Tokenizer.from_folder(Path(folder))
    for text in TEXTS:
        if (ids := back.text_ids(text)) != (expected := own.text_ids(text)):
            raise RuntimeError(
                f"{written}: read back, its tokenizer gives {text!r} the ids {list(ids)}, but the "
                f"source's {list(expected)}, so it was not kept; this is a fault of fretsaw's"
            )


def _reopen(written: Path, format: Format) -> Decoder:
    if format == "decilm":
        return checkpoint.load_served(written)
    from fretsaw.checkpoint import gguf_reader

    return gguf_reader.read(written)


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
