"""`fretsaw import`: a GGUF file as a checkpoint folder."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of `fretsaw import`."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL.gguf")]
    """A file of the Llama family, with its tokenizer in it."""
    out: Path
    """A new folder."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the weights; auto is the file's own, or fp32 where it holds fewer than 16 bits,
    which is exact."""


def import_(argv: list[str]) -> None:
    """Run `fretsaw import`."""
    options = tyro.cli(
        ImportOptions,
        args=argv,
        prog="fretsaw import",
        config=(tyro.conf.FlagCreatePairsOff,),
        description="Write a GGUF file as a folder in Hugging Face layout: weights, config, "
        "tokenizer and chat template. Weights in few bits are expanded. For example: "
        "fretsaw import SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2.",
    )
    from fretsaw.stage import leftovers
    from fretsaw.stage.holder import hold
    from fretsaw.stage.place import refuse_existing

    with hold(options.out):
        leftovers.clear(options.out)
        refuse_existing(options.out)
        from fretsaw.checkpoint.gguf_import import import_gguf

        imported = import_gguf(options.model, options.out, dtype=options.dtype)
    print(imported.render())
