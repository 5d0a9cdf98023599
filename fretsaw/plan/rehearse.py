"""Two real steps of every stage, with random weights of the true shapes: how fast they are here.

The recipe runs twice in a folder of its own, with one step's work and with three: the two steps
between tell each kind's speed apart from what it takes to start. What a search would find is what
the forecast takes for it, so that later stages have their true shapes.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fretsaw.bench.settings import BenchSettings
from fretsaw.chat.control_tokens import CONTROL_TOKENS, add_control_tokens
from fretsaw.checkpoint import folder as checkpoint
from fretsaw.corpus.settings import CorpusSettings
from fretsaw.model.config import ModelConfig
from fretsaw.pipeline.kinds import FILES, STAGES
from fretsaw.pipeline.recipe import Stage
from fretsaw.plan.calibration import Calibration, Point, lines_through
from fretsaw.plan.forecast import MODELS, ConfigOf, inputs_of, shapes_of
from fretsaw.plan.stages import ROW_TOKENS, WORK
from fretsaw.plan.work import Hardware, Shapes
from fretsaw.puzzle.settings import SpaceSettings
from fretsaw.scenario.scenario import parse_scenarios
from fretsaw.stage.artifact import Request
from fretsaw.stage.execute import execute

STEPS = (1, 3)
NOT_REHEARSED = ("search", "verify", "select", "report")  # seconds on the host, or no step of it
MOST_IN, MOST_OUT = 256, 16  # tokens of a request that is served
NEVER = 10**9
LEFT_OUT = {("bench", "search"), ("cost", "refit"), ("cost", "measured")}  # of other spaces


def rehearse(
    stages: Sequence[Stage], hardware: Hardware, config_of: ConfigOf, *, device: str, dtype: str
) -> Calibration:
    """Return what the steps of every stage tell of its kind's speed on this machine's `device`."""
    shapes = shapes_of(stages, hardware, config_of)
    points: list[Point] = []
    with tempfile.TemporaryDirectory(prefix="fretsaw-rehearsal-") as name:
        root = Path(name)
        outside = dict(_random_checkpoints(stages, config_of, root))
        for steps in STEPS:
            made: dict[str, Path] = {}
            for stage in stages:
                out = root / str(steps) / stage.name
                made[stage.name] = out
                if stage.kind in NOT_REHEARSED:
                    _stand_in(stage, shapes[stage.name], made)
                    continue
                settings = shrunk(stage, stages, steps)
                inputs = dict(_inputs(stage, made, outside))
                request = Request.of(stage.kind, settings, inputs, seed=0)
                out.parent.mkdir(parents=True, exist_ok=True)
                function = STAGES[stage.kind].load()
                done = execute(function, request, settings, out, device=device, dtype=dtype)
                if _is_told(stage):
                    work = WORK[stage.kind](
                        settings, shapes[stage.name], hardware.alone.running(stage.kind)
                    )
                    points.append(Point(stage.kind, work.seconds, done["run"]["wall_s"]))
    return Calibration(lines_through(points), source="a rehearsal on this machine")


def require_device(hardware: Hardware) -> None:
    """Raise where the steps of a GPU's forecast can't be done here."""
    import torch

    if hardware.device.name != "cpu" and not torch.cuda.is_available():
        raise ValueError(
            f"--rehearse --gpu {hardware.device.name}: two steps of every stage are done on this "
            "machine, which has no GPU; rehearse there, or leave --rehearse out"
        )


def _is_told(stage: Stage) -> bool:
    """Whether the stage rehearsed is the one foreseen: text that is read is generated instead."""
    return stage.kind != "corpus" or stage.settings.source == "world"


# --- what is read ---------------------------------------------------------------------------------


def _random_checkpoints(
    stages: Sequence[Stage], config_of: ConfigOf, root: Path
) -> Iterator[tuple[str, Path]]:
    """Write random weights for every checkpoint that no stage makes; yield where."""
    from fretsaw.model.decoder import Decoder

    names = {stage.name for stage in stages}
    values = {v for stage in stages for n, v in inputs_of(stage) if n in MODELS and v not in names}
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
    for name, value in inputs_of(stage):
        path = made.get(value) or outside.get(value)
        if (stage.kind, name) in LEFT_OUT or (path is None and name in FILES):
            continue  # text and problems are generated
        number = counts[name] = counts.get(name, -1) + 1
        yield (f"{name}{number}" if number else name), path or Path(value)  # a finished folder


def _stand_in(stage: Stage, at: Shapes, made: dict[str, Path]) -> None:
    """Put in place of a stage what the next ones read of it."""
    inputs = dict(inputs_of(stage))
    out = made[stage.name]
    if stage.kind == "search":
        out.mkdir(parents=True)
        choices = [[b.attention_name, b.ffn_name] for b in at["child"].blocks]
        solution = {"score": 0.0, "proved": False, "costs": {}, "choices": choices}
        (out / "solutions.json").write_text(json.dumps([solution] * stage.settings.num_solutions))
        (out / "forecast.json").write_text(json.dumps({"target": stage.settings.target}))
    elif stage.kind == "verify":
        made[stage.name] = made.get(inputs["search"], Path(inputs["search"]))
    elif stage.kind == "select":
        made[stage.name] = made.get(inputs["assembled"], Path(inputs["assembled"]))


# --- less of the same -----------------------------------------------------------------------------


def shrunk(stage: Stage, stages: Sequence[Stage], steps: int) -> Any:
    """Return a stage's settings with only so many steps of its work."""
    s: Any = stage.settings
    match stage.kind:
        case "corpus":
            return _text(s, stages, steps)
        case "pretrain" | "cpt" | "distill":
            train = replace(
                s.train,
                tokens=steps * s.train.batch_tokens,
                lengths=(),
                heldout_tokens=s.train.seq_len,
                heldout_every=NEVER,
                save_every_s=NEVER,
            )
            return replace(s, train=train)
        case "teach":
            readers = [d for d in stages if d.inputs.get("teacher") == stage.name]
            tokens, rows = steps * s.micro_batch_tokens, s.seq_len
            if readers:
                train = readers[0].settings.train
                tokens, rows = steps * train.batch_tokens, train.seq_len
            return replace(s, tokens=tokens, heldout_tokens=rows)
        case "sft":
            rows = math.ceil(steps * s.batch_tokens / ROW_TOKENS)
            return replace(s, source="world", num_rows=rows, epochs=1, save_every_s=NEVER)
        case "rl":
            return replace(s, num_rollouts=steps, heldout_problems=2, heldout_every=NEVER,
                           needs_signal=False)  # fmt: skip
        case "rank":
            return replace(s, tokens=4 * steps * s.seq_len)
        case "bld":
            rows = 4 * s.seq_len
            return replace(s, space=_small(s.space), tokens=steps * s.batch_tokens,
                           repair_tokens=rows, heldout_tokens=rows, cross=False)  # fmt: skip
        case "score":
            rows = 2 * steps * s.seq_len
            repair = rows if s.repair_tokens else 0
            return replace(s, space=_small(s.space), metric="kl", task="", tokens=rows,
                           repair_tokens=repair, first_tokens=0, max_error=0.0, exact=False,
                           fused=0, joint_pairs=0)  # fmt: skip
        case "cost":
            return replace(s, space=_small(s.space), rounds=steps, layers=1, probes=0)
        case "assemble":
            return replace(s, solution=0, tokens=2 * steps * s.seq_len)
        case "fuse":
            rows = 2 * steps * s.seq_len
            scenario = _short(s.scenario) if s.scenario else ""
            return replace(s, tokens=rows, repair_tokens=rows if s.repair_tokens else 0,
                           dependency_tokens=0, rounds=1, scenario=scenario)  # fmt: skip
        case "eval":
            rows = steps * s.batch_rows * s.seq_len
            return replace(s, tokens=min(s.tokens, rows), num_problems=4 * steps)
        case "bench":
            return BenchSettings(scenario=_short(s.scenario), rounds=steps)
    raise AssertionError(f"{stage.kind} is not rehearsed")


def _small(space: SpaceSettings) -> SpaceSettings:
    """Return a space of half the width alone."""
    return replace(space, kv_heads=(1,), ffn_percents=(50,), linear=False, none=False)


def _short(scenario: str) -> str:
    first = parse_scenarios(scenario)[0]
    return str(
        replace(
            first,
            prompt_tokens=min(first.prompt_tokens, MOST_IN),
            output_tokens=min(first.output_tokens, MOST_OUT),
        )
    )


def _text(s: CorpusSettings, stages: Sequence[Stage], steps: int) -> CorpusSettings:
    """Return a corpus of generated text as long as the stages that read it need."""
    longest = heldout = 0
    for stage in stages:
        if stage.kind == "corpus" or stage.kind in NOT_REHEARSED:
            continue
        one = shrunk(stage, stages, steps)
        own = getattr(one, "train", one)
        rows = getattr(own, "seq_len", 0)
        read = max(getattr(own, "tokens", 0), getattr(one, "repair_tokens", 0))
        longest = max(longest, 2 * read, 4 * rows)
        heldout = max(heldout, 2 * rows, getattr(one, "tokens", 0))
        heldout = max(heldout, getattr(own, "heldout_tokens", 0))
    longest, heldout = max(longest, 10 * heldout, 4 * s.seq_len), max(heldout, s.seq_len)
    return replace(s, source="world", dataset="", max_tokens=longest, heldout_tokens=heldout)
