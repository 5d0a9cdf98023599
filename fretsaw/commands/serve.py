"""`fretsaw serve`: a checkpoint over HTTP."""

import dataclasses
import os

import tyro

from fretsaw.commands.options import Checkpoint, Dtype, Repeated
from fretsaw.serve.settings import Limits


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of `fretsaw serve`."""

    checkpoint: Checkpoint
    """A folder with a checkpoint, or a Hub id."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 lets other machines in (give an --api-key then)."""
    port: int = 8000
    """0 takes a free port, which is printed."""
    api_key: Repeated = dataclasses.field(default_factory=list)
    """A key that requests must carry; may be given again. Also read from FRETSAW_API_KEY."""
    allow_origin: Repeated = dataclasses.field(default_factory=list)
    """An origin whose pages may call from a browser, or * for any; may be given again."""
    name: str | None = None
    """What requests call the model; by default the folder's name."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Dtype = "auto"
    """Precision of the weights; auto is bf16 for checkpoints of 16 bits where that is fast."""
    fp8: bool = False
    """Cast matrices to FP8: faster on an accelerator that multiplies it, and less exact."""
    cuda_graphs: bool = False
    """Replay decoding steps instead of launching them; on an accelerator alone."""
    max_batch: int = 64
    """Answers written at once; further ones wait."""
    memory_mib: float | None = None
    """Memory of the KV pages; by default what --max-batch sequences of the full context take."""
    grace_s: float = 30.0
    """Seconds that running answers get after SIGTERM or Ctrl-C; a second one ends at once."""
    limits: Limits = dataclasses.field(default_factory=Limits)
    log: bool = False
    """Print a line a request."""


def serve(argv: list[str]) -> None:
    """Run `fretsaw serve`."""
    options = tyro.cli(
        ServeOptions,
        args=argv,
        prog="fretsaw serve",
        description=(
            "Answer over HTTP as OpenAI's API does, until Ctrl-C: /v1/chat/completions, "
            "/v1/completions, /v1/models, /tokenize, /metrics; a chat page is at /. Reasoning is "
            "switched by the system prompt (detailed thinking on|off), by chat_template_kwargs "
            "{enable_thinking: ...} or by reasoning_effort (none: off)."
        ),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    from fretsaw.serve.run import serve as run_server

    keys = [*options.api_key, *filter(None, [os.environ.get("FRETSAW_API_KEY")])]
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    del given["checkpoint"], given["api_key"], given["allow_origin"]
    run_server(options.checkpoint, api_keys=keys, allow_origins=options.allow_origin, **given)
