"""`fretsaw status`, `lineage` and `inspect`: what is there."""

from pathlib import Path


def _one_path(argv: list[str], name: str, summary: str) -> Path:
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        print(f"usage: fretsaw {name} PATH\n\n{summary}")
        raise SystemExit(0 if argv[:1] in (["-h"], ["--help"]) else 2)
    return Path(argv[0])


def status(argv: list[str]) -> None:
    """Run `fretsaw status`."""
    path = _one_path(
        argv, "status", "What a run is doing: stage, step, ETA, last metrics, the tail of an error."
    )
    from fretsaw.pipeline.status import render_status

    print(render_status(path))


def lineage(argv: list[str]) -> None:
    """Run `fretsaw lineage`."""
    path = _one_path(argv, "lineage", "Where an artifact came from: its inputs, and theirs.")
    from fretsaw.stage.lineage import render_lineage

    print(render_lineage(path))


def inspect(argv: list[str]) -> None:
    """Run `fretsaw inspect`."""
    path = _one_path(argv, "inspect", "What a checkpoint is made of, layer by layer.")
    from fretsaw.plan.shapes import outside
    from fretsaw.talk.inspect import render_config

    print(render_config(outside(str(path))))
