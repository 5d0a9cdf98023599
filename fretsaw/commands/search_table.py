"""`fretsaw search-table`: the exact search in a table of other people's measurements.

Its short spelling is `fretsaw search --library`.
"""

import dataclasses
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchFileOptions:
    """Search a table of other people's measurements."""

    library: Path
    """JSON: layers -> alternatives -> score and named costs (docs/search.md)."""
    limit: list[str]
    """An upper bound, such as runtime_ms=20; may be given again."""
    out: Path
    """A new folder for solutions.json."""
    num_solutions: int = 1
    """Solutions, best first."""


def search_table(argv: list[str]) -> None:
    """Run `fretsaw search-table`."""
    from fretsaw.puzzle.search.solutions import search_file
    from fretsaw.stage.holder import hold

    options = tyro.cli(
        SearchFileOptions,
        args=argv,
        prog="fretsaw search-table",
        description="Choose one alternative per subblock of a table, exactly. For example: fretsaw "
        "search-table --library table.json --limit runtime_ms=20 --out solved.",
        config=(tyro.conf.UseAppendAction,),
    )
    with hold(options.out):
        solutions = search_file(options.library, options.limit, options.out, options.num_solutions)
    best = solutions[0]
    costs = ", ".join(f"{name} {value:.6g}" for name, value in best.costs.items())
    print(f"score {best.score:.6f}  {costs}  -> {options.out / 'solutions.json'}")
