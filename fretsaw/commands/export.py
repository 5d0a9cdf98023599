"""`fretsaw export`: a checkpoint for other engines."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fretsaw.checkpoint.export_targets import EXPORT_TARGETS
from fretsaw.commands.options import Checkpoint

READERS = "Who will read it. auto: portable, or vllm with weights in 8 bits. " + " ".join(
    f"{target.name}: {target.summary}." for target in EXPORT_TARGETS.values()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `fretsaw export`."""

    checkpoint: Checkpoint
    """A folder with a checkpoint, or a Hub id."""
    out: Path
    """A new folder, or a new file NAME.gguf."""
    target: Annotated[
        str, tyro.conf.arg(metavar=f"{{auto,{','.join(EXPORT_TARGETS)}}}", help=READERS)
    ] = "auto"
    format: Annotated[str, tyro.conf.arg(metavar="{auto,decilm,gguf}")] = "auto"
    """decilm: a folder in Hugging Face layout, a plain Llama where all layers are the same. gguf:
    llama.cpp's file. auto: what --out and the target say."""
    dtype: Annotated[str, tyro.conf.arg(metavar="{auto,fp32,bf16,fp16,q8_0}")] = "auto"
    """Precision of the weights; auto is the checkpoint's own, q8_0 is for gguf."""
    weights: Literal["auto", "full", "fp8", "int8"] = "auto"
    """The layers' matrices in 8 bits, a scale a row, as compressed-tensors that vLLM reads;
    activations are scaled as they come. auto: as the search chose, in full where it didn't."""
    dry_run: bool = False
    """Check all that can be checked from configs and headers, say what would be written, stop."""


def export(argv: list[str]) -> None:
    """Run `fretsaw export`."""
    options = tyro.cli(
        ExportOptions,
        args=argv,
        prog="fretsaw export",
        config=(tyro.conf.FlagCreatePairsOff,),
        description="Write a checkpoint for other engines. What the target can't express is "
        "rewritten exactly, or refused with the reason; the result is read back and its logits "
        "compared with the source's before it takes its name. For example: "
        "fretsaw export RUN/distill --out child; "
        "fretsaw export RUN/distill --out child.gguf --target llama.cpp --dtype q8_0; "
        "fretsaw export RUN/distill --out child-fp8 --weights fp8.",
    )
    from fretsaw.export.asked import settle
    from fretsaw.stage import leftovers
    from fretsaw.stage.holder import hold
    from fretsaw.stage.place import refuse_existing

    asked = (options.checkpoint, options.out)
    how: dict[str, Any] = {
        "target": options.target,
        "format": options.format,
        "dtype": options.dtype,
        "weights": options.weights,
    }
    if options.dry_run:
        print(settle(*asked, **how).render())
        return
    with hold(options.out):
        leftovers.clear(options.out)
        refuse_existing(options.out)
        from fretsaw.export.export import export

        exported = export(*asked, **how)
    print(exported.render())
