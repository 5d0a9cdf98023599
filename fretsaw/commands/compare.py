"""`fretsaw eval compare`: two evaluations, problem by problem."""

from pathlib import Path

HELP = """\
usage: fretsaw eval compare FIRST SECOND

What the second scored beyond the first on the same problems, in each task and mode of both, with a
95 % interval of the paired difference (bootstrap over problems), and tokens an answer. FIRST and
SECOND are folders that `fretsaw eval` wrote."""


def compare(argv: list[str]) -> None:
    """Run `fretsaw eval compare`."""
    if len(argv) != 2 or argv[0].startswith("-"):
        print(HELP)
        raise SystemExit(0 if argv[:1] in (["-h"], ["--help"]) else 2)
    from fretsaw.eval.compare import differences, table
    from fretsaw.stage.text_table import aligned

    first, second = map(Path, argv)
    print(f"first   {first}\nsecond  {second}\n")
    for line in aligned(table(differences(first, second))):
        print(line)
