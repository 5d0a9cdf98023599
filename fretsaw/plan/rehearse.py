"""Two real steps of every stage, with random weights of the true shapes: how fast they are here.

The recipe runs twice in a folder of its own, with one step's work and with three: the two steps
between tell each kind's speed apart from what it takes to start. What a search would find is what
the forecast takes for it, so that later stages have their true shapes.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fretsaw.chat.control_tokens import CONTROL_TOKENS, add_control_tokens
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.model.config import ModelConfig
from fretsaw.pipeline.kinds import CHECKPOINTS, FILES, STAGES
from fretsaw.pipeline.recipe import Stage, inputs_of
from fretsaw.plan.calibration import Speeds, StageTime, lines_through
from fretsaw.plan.shapes import ConfigOf, shapes_of
from fretsaw.plan.work import Hardware
from fretsaw.stage.artifact import StageRequest
from fretsaw.stage.execute import execute

STEPS = (1, 3)


def rehearse(
    stages: Sequence[Stage], hardware: Hardware, config_of: ConfigOf, *, device: str, dtype: str
) -> Speeds:
    """Return what the steps of every stage tell of its kind's speed on this machine's `device`."""
    shapes = shapes_of(stages, hardware, config_of)
    points: list[StageTime] = []
    with tempfile.TemporaryDirectory(prefix="fretsaw-rehearsal-") as name:
        root = Path(name)
        outside = dict(_random_checkpoints(stages, config_of, root))
        for steps in STEPS:
            made: dict[str, Path] = {}
            for stage in stages:
                out = root / str(steps) / stage.name
                made[stage.name] = out
                plan = STAGES[stage.kind].load_plan()
                if plan.fewer is None:
                    plan.stand_in(stage, shapes[stage.name], made)
                    continue
                settings = plan.fewer(stage, stages, steps)
                inputs = dict(_inputs(stage, made, outside))
                request = StageRequest.of(stage.kind, settings, inputs, seed=0)
                out.parent.mkdir(parents=True, exist_ok=True)
                function = STAGES[stage.kind].load()
                done = execute(function, request, settings, out, device=device, dtype=dtype)
                if plan.is_told(stage.settings):
                    here = hardware.alone.multiplying(casts=STAGES[stage.kind].casts)
                    work = plan.work(settings, shapes[stage.name], here)
                    points.append(StageTime(stage.kind, work.seconds, done["run"]["wall_s"]))
    return Speeds(lines_through(points), source="a rehearsal on this machine")


def require_device(hardware: Hardware) -> None:
    """Raise where the steps of a GPU's forecast can't be done here."""
    import torch

    if hardware.device.name != "cpu" and not torch.cuda.is_available():
        raise ValueError(
            f"--rehearse --gpu {hardware.device.name}: two steps of every stage are done on this "
            "machine, which has no GPU; rehearse there, or leave --rehearse out"
        )


# --- what is read ---------------------------------------------------------------------------------


def _random_checkpoints(
    stages: Sequence[Stage], config_of: ConfigOf, root: Path
) -> Iterator[tuple[str, Path]]:
    """Write random weights for every checkpoint that no stage makes; yield where."""
    from fretsaw.model.decoder import Decoder

    names = {stage.name for stage in stages}
    values = {
        v for stage in stages for n, v in inputs_of(stage) if n in CHECKPOINTS and v not in names
    }
    for number, value in enumerate(sorted(values)):
        config = config_of(value)
        decoder = Decoder(config).requires_grad_(False)
        decoder.init_weights(seed=0)
        out = root / f"outside-{number}"
        tokenizer = _tokenizer(value, config, root, is_chat=any(s.kind == "rl" for s in stages))
        checkpoint.save(decoder, out, like=tokenizer)
        yield value, out


def _tokenizer(value: str, config: ModelConfig, root: Path, *, is_chat: bool) -> Path:
    """Return a folder with the checkpoint's own tokenizer, else with a small one."""
    own = Path(value).expanduser()
    if (own / "tokenizer.json").is_file():
        return own
    from fretsaw.chat.tokenizer import Tokenizer
    from fretsaw.data.world import documents

    out = root / f"tokenizer-{'chat' if is_chat else 'plain'}"
    out.mkdir(exist_ok=True)
    spare = len(CONTROL_TOKENS) if is_chat else 0
    tokenizer = Tokenizer.train(documents(0, "train", 500), min(512, config.vocab_size - spare))
    if is_chat:
        add_control_tokens(tokenizer)
    tokenizer.save(out)
    return out


def _inputs(
    stage: Stage, made: dict[str, Path], outside: dict[str, Path]
) -> Iterator[tuple[str, Path]]:
    counts: dict[str, int] = {}
    left_out = STAGES[stage.kind].load_plan().left_out
    for name, value in inputs_of(stage):
        path = made.get(value) or outside.get(value)
        if name in left_out or (path is None and name in FILES):
            continue  # text and problems are generated
        number = counts[name] = counts.get(name, -1) + 1
        yield (f"{name}{number}" if number else name), path or Path(value)  # a finished folder
