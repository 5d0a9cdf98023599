"""`fretsaw generate` and `fretsaw chat`: text out of a checkpoint."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fretsaw.commands.options import Checkpoint, Dtype
from fretsaw.engine.sampling import Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Options of `fretsaw generate`."""

    checkpoint: Checkpoint
    """A folder with a checkpoint, or a Hub id."""
    prompt: Annotated[str | None, tyro.conf.Positional] = None
    """A text to continue; it streams to stdout. Or give --prompts and --out."""
    prompts: Path | None = None
    """Many prompts: .txt with one a line, or .jsonl or .parquet rows of `prompt` or `messages`."""
    out: Path | None = None
    """Where their answers go, as JSONL; an interrupted run goes on by the same command."""
    thinking: Literal["on", "off"] | None = None
    """Put plain prompts as a user's turn to a chat checkpoint, with reasoning on or off."""
    num_samples: int = 1
    """Answers to each of --prompts."""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Dtype = "auto"
    """Precision of the weights; auto is bf16 for checkpoints of 16 bits where that is fast."""


def generate(argv: list[str]) -> None:
    """Run `fretsaw generate`."""
    options = tyro.cli(
        GenerateOptions,
        args=argv,
        prog="fretsaw generate",
        description="Continue a prompt, or answer many of a file into a JSONL file.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if (options.prompt is None) == (options.prompts is None):
        raise ValueError("generate: give one PROMPT, or --prompts FILE --out FILE")
    if (options.prompts is None) != (options.out is None):
        raise ValueError("generate: --prompts and --out go together")
    if options.prompts is not None and options.out is not None:
        _generate_file(options, options.prompts, options.out)
        return
    import fretsaw
    from fretsaw.chat.message import Message

    model = fretsaw.load(options.checkpoint, device=options.device, dtype=options.dtype)
    assert options.prompt is not None
    if options.thinking is None:
        print(options.prompt, end="", flush=True)
        pieces = model.stream(options.prompt, options.sampling)
    else:
        turns = [Message("user", options.prompt)]
        pieces = model.chat(turns, options.thinking, options.sampling)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _generate_file(options: GenerateOptions, prompts: Path, out: Path) -> None:
    """Answer the prompts of a file; where all are answered the model is not loaded."""
    import fretsaw
    from fretsaw.stage.holder import hold
    from fretsaw.stage.progress import say
    from fretsaw.talk.generate import generate_file, num_unanswered

    asked = (prompts, out, options.sampling)
    how: dict[str, Any] = {
        "mode": options.thinking,
        "num_samples": options.num_samples,
        "origin": options.checkpoint,
    }
    with hold(out):
        if num_unanswered(*asked, **how) == 0:
            say(f"generate: done already in {out}")
            return
        model = fretsaw.load(options.checkpoint, device=options.device, dtype=options.dtype)
        num_written = generate_file(model, *asked, **how)
    print(f"{num_written} answers -> {out}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Options of `fretsaw chat`."""

    checkpoint: Checkpoint
    """A folder with a chat checkpoint, or a Hub id."""
    thinking: Literal["on", "off"] = "on"
    """Reason before answering; /think and /no_think change it on the way."""
    system: str = ""
    """A system text of your own; the toggle's line is put before it."""
    sampling: Sampling = dataclasses.field(default_factory=lambda: Sampling(max_tokens=512))
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Dtype = "auto"
    """Precision of the weights; auto is bf16 for checkpoints of 16 bits where that is fast."""


def chat(argv: list[str]) -> None:
    """Run `fretsaw chat`."""
    options = tyro.cli(
        ChatOptions,
        args=argv,
        prog="fretsaw chat",
        description="Talk to a chat checkpoint. Turns may be piped in too, one a line.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    from fretsaw.talk.loaded import LoadedModel
    from fretsaw.talk.terminal import converse

    converse(
        LoadedModel.from_checkpoint(
            options.checkpoint, device=options.device, dtype=options.dtype, needs_chat=True
        ),
        mode=options.thinking,
        system=options.system,
        sampling=options.sampling,
    )
