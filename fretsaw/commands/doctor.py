"""`fretsaw doctor`: what would spoil a training, before it."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Options of `fretsaw doctor`."""

    path: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")] = None
    """A checkpoint (a folder or a Hub id), or the folder of a run of `fretsaw rl`. Without it the
    rows of --data are read alone."""
    data: list[str] = dataclasses.field(default_factory=list)
    """Files of conversations; without them a checkpoint learns a few generated ones."""
    parent: str | None = None
    """The checkpoint it was made of, whose tokenizer is compared."""
    seq_len: int = 0
    """Tokens of one packed row; 0 is the model's context, up to 4096."""
    micro_batch_tokens: int = 4096
    """Tokens of one forward and backward."""
    lora_rank: int = 0
    """Rank of the factors, as in `fretsaw sft`; it tells in what memory a step takes."""
    html: Path | None = None
    """Write the examples as an HTML page to this new file, all their tokens coloured."""
    seed: int = 0
    """Seed of generated conversations."""


def doctor(argv: list[str]) -> None:
    """Run `fretsaw doctor`; exit code 2 where something would spoil the training."""
    options = tyro.cli(
        DoctorOptions,
        args=argv,
        prog="fretsaw doctor",
        description="Show what a checkpoint would learn of rows, token by token, and name what is "
        "wrong. Exit code 2: it would spoil the training. "
        "fretsaw doctor CHECKPOINT --data rows.jsonl --html page.html; "
        "fretsaw doctor RUN/rl",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if options.path is None and not options.data:
        raise ValueError("doctor: nothing to look at; give a checkpoint, --data FILES, or a run")
    if options.html is not None and options.html.exists():
        raise ValueError(f"{options.html}: already there; choose another --html or remove it first")
    if options.path is None:
        _rows_alone(options.data)
        return
    from fretsaw.sft.doctor import ROLLOUTS

    look = _run if (Path(options.path) / ROLLOUTS).is_dir() else _lesson
    if look(options, options.path):
        raise SystemExit(2)


def _rows_alone(files: list[str]) -> None:
    """Read rows without a model; what is wrong with one is raised."""
    from collections import Counter

    from fretsaw.data.records import read_records

    counted = Counter((record.kind, record.mode) for record in read_records(files))
    for (kind, mode), number in sorted(counted.items()):
        print(f"{number:,} conversations of {kind}, reasoning {mode}")
    print("no fault in the rows; give a checkpoint too, to see what it would learn of them")


def _run(options: DoctorOptions, path: str) -> bool:
    """Tell what a run sampled; return whether it is spoilt."""
    from fretsaw.sft.doctor import findings_of_rollouts, read_rollouts

    if options.data or options.html is not None:
        raise ValueError(f"{path}: a run of `fretsaw rl`, which has neither --data nor --html")
    rows = read_rollouts(Path(path))
    findings = findings_of_rollouts(rows)
    mean = sum(row.reward for row in rows) / len(rows)
    print(f"{len(rows):,} answers in the last rollout, mean reward {mean:.3f}")
    return _tell(findings)


def _lesson(options: DoctorOptions, path: str) -> bool:
    """Tell what a checkpoint would learn; return whether that is spoilt."""
    from fretsaw.checkpoint.hub import resolve
    from fretsaw.sft.doctor import findings_of, lesson_lines, lesson_page
    from fretsaw.sft.lesson import read_lesson
    from fretsaw.sft.settings import SftSettings
    from fretsaw.stage.whole import replace_file
    from fretsaw.training.settings import LoraSettings

    settings = SftSettings(
        source="files" if options.data else "world",
        num_rows=8,
        seq_len=options.seq_len,
        too_long="skip",
        micro_batch_tokens=options.micro_batch_tokens,
        heldout_share=0.0,
        lora=LoraSettings(lora_rank=options.lora_rank),
    )
    inputs = {"model": resolve(path, weights=False)}
    inputs |= {f"data{i or ''}": Path(name) for i, name in enumerate(options.data)}
    lesson = read_lesson(settings, inputs, options.seed)
    findings = findings_of(lesson, resolve(options.parent) if options.parent else None)
    for line in lesson_lines(lesson, [], colour=sys.stdout.isatty()):
        print(line)
    if options.html is not None:
        with replace_file(options.html) as beside:
            beside.write_text(lesson_page(lesson, findings), encoding="utf-8")
    print()
    return _tell(findings)


def _tell(findings: list) -> bool:
    for finding in findings:
        print(finding)
    if not findings:
        print("no fault found")
    return any(finding.severity == "error" for finding in findings)
